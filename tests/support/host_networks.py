"""Very small networks under the class names of other libraries."""

import enum
import types

import numpy as np
import torch


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class UNetModel(torch.nn.Module):
    """Attributes and call of guided-diffusion's U-Net.

    It has 2C output channels, the second half in (-1, 1).
    """

    def __init__(self, channels=3, num_classes=None, learned=True):
        super().__init__()
        self.image_size, self.in_channels, self.model_channels, self.num_classes = 4, channels, 8, num_classes
        self.input_blocks = self.middle_block = self.output_blocks = torch.nn.Identity()
        self.dtype = torch.float32  # dtype of the torso alone
        self.out = torch.nn.Conv2d(channels, channels * (1 + learned), 3, padding=1)
        self.times = []

    def forward(self, x, timesteps, y=None):
        assert (y is not None) == (self.num_classes is not None)
        self.times.append(float(timesteps[0]))
        shift = torch.cos(timesteps / 7).reshape(-1, 1, 1, 1)
        h = self.out(x + shift if y is None else x + shift + 0.3 * y.reshape(-1, 1, 1, 1))
        return torch.cat([h[:, : self.in_channels], h[:, self.in_channels :].tanh()], 1)


Mean = enum.Enum("ModelMeanType", ["PREVIOUS_X", "START_X", "EPSILON"])
Var = enum.Enum("ModelVarType", ["LEARNED", "FIXED_LARGE", "LEARNED_RANGE"])


class SpacedDiffusion:
    """Attributes of guided-diffusion's diffusion object with linear betas; `kept` times remain."""

    def __init__(self, mean="EPSILON", var="LEARNED_RANGE", times=1000, kept=None, rescale=False):
        self.model_mean_type, self.model_var_type = Mean[mean], Var[var]
        self.original_num_steps, self.rescale_timesteps = times, rescale
        self.betas = np.linspace(0.1 / times, 20 / times, kept or times)


class EDMPrecond(torch.nn.Module):
    """Attributes and call of an EDM network: D of data N(0.2, 0.5^2).

    Its torso may be float16.
    """

    def __init__(self, label_dim=0, channels=3, sigma_min=0.0, sigma_max=float("inf")):
        super().__init__()
        self.img_resolution, self.img_channels, self.label_dim, self.use_fp16 = 4, channels, label_dim, True
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        self.torso = torch.nn.Linear(1, 1, dtype=torch.float16)

    def forward(self, x, sigma, class_labels=None, force_fp32=False):
        assert x.dtype == torch.float32
        sigma = sigma.to(torch.float32).reshape(-1, 1, 1, 1)
        shift = 0 if class_labels is None else class_labels.sum()
        return 0.2 + shift + (x - 0.2) * 0.25 / (0.25 + sigma**2)


class DiT(torch.nn.Module):
    """Attributes and call of the DiT repository's transformer."""

    def __init__(self):
        super().__init__()
        self.learn_sigma, self.in_channels = True, 4
        self.x_embedder = torch.nn.Conv2d(4, 8, 1)
        self.x_embedder.img_size = (4, 4)
        self.t_embedder = self.y_embedder = torch.nn.Identity()

    def forward(self, x, t, y):
        return self.x_embedder(x).tanh() + 0.1 * y.reshape(-1, 1, 1, 1)


class Unet(torch.nn.Module):
    """Attributes and call of a network of denoising-diffusion-pytorch."""

    def __init__(self, self_condition=False, classes=False):
        super().__init__()
        self.channels, self.self_condition = 3, self_condition
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        if classes:
            self.classes_emb = torch.nn.Embedding(4, 1)

    def forward(self, x, time, classes=None, cond_drop_prob=0.5):
        y = self.conv(x) + torch.sin(time / 9).reshape(-1, 1, 1, 1)
        if classes is None:
            return y
        dropped = torch.rand(len(x)) < cond_drop_prob
        return y + self.classes_emb(classes).reshape(-1, 1, 1, 1) * ~dropped.reshape(-1, 1, 1, 1)


class GaussianDiffusion(torch.nn.Module):
    """Training object of denoising-diffusion-pytorch that holds a network."""

    def __init__(self, model, objective, image_size=(4, 4)):
        super().__init__()
        self.model, self.objective, self.channels, self.image_size = model, objective, 3, image_size
        self.register_buffer("betas", torch.linspace(0.002, 0.3, 50))

    def sample(self, batch_size):
        raise AssertionError

    def unnormalize(self, x):
        return (x + 1) / 2


class Cosine:
    def __call__(self, t):
        alpha = torch.cos(1.5 * t)
        return alpha, (1 - alpha**2 + 1e-6).sqrt()


class Denoiser(torch.nn.Module):
    """Attributes and call of azula's denoiser: exact for data N(0.2, 0.5^2) of any shape."""

    schedule = Cosine()

    def __init__(self, tells_variance):
        super().__init__()
        self.tells_variance = tells_variance

    def forward(self, x_t, t, **conditions):
        alpha, sigma = (v.reshape(-1, *[1] * (x_t.ndim - 1)) for v in self.schedule(t))
        total = 0.25 * alpha**2 + sigma**2
        mean = 0.2 + 0.25 * alpha / total * (x_t - 0.2 * alpha)
        var = {"var": 0.25 * sigma**2 / total} if self.tells_variance else {}
        return types.SimpleNamespace(mean=mean, **var)


Denoiser.__module__ = "azula.denoise"


def made(kind, *arguments, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*arguments, **options).double().eval()
