"""Exact denoisers as hosts call them: denoiser(x, sigma, **extra_args) -> E[x_0|x]."""

from types import SimpleNamespace

import torch

MEANS = torch.tensor([-0.6, 0.6], dtype=torch.float64)
VARIANCES = torch.tensor([0.4, 0.3], dtype=torch.float64) ** 2
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


class CONST:
    """The class by which ComfyUI marks flow models."""


class FlowSampling(CONST):
    """A `model_sampling` as ComfyUI makes one of it."""


class Denoiser:
    """E[x_0|x], element by element, of data around -0.6 and 0.6; keeps what it was called with.

    flow  x = (1 - sigma) x_0 + sigma eps, said as ComfyUI says it; else x = x_0 + sigma eps
    """

    def __init__(self, flow=False):
        self.flow, self.sigmas, self.keywords = flow, [], []
        sampling = FlowSampling() if flow else object()
        patcher = SimpleNamespace(get_model_object={"model_sampling": sampling}.__getitem__)
        self.inner_model = SimpleNamespace(model_patcher=patcher)

    def __call__(self, x, sigma, **keywords):
        self.sigmas.append(sigma)
        self.keywords.append(keywords)
        sigma = sigma.double().reshape(-1, *[1] * x.ndim)
        alpha = 1 - sigma if self.flow else torch.ones_like(sigma)
        y = x[..., None].double()
        total = alpha**2 * VARIANCES + sigma**2
        log = WEIGHTS.log() - total.log() / 2 - (y - alpha * MEANS) ** 2 / (2 * total)
        of_each = MEANS + alpha * VARIANCES / total * (y - alpha * MEANS)
        return (log.softmax(-1) * of_each).sum(-1).to(x.dtype)
