"""Exact denoisers as other libraries call them, (x, sigma, **extra_args) -> E[x_0|x]."""

from types import SimpleNamespace

import torch

MEANS = torch.tensor([-0.6, 0.6], dtype=torch.float64)
VARIANCES = torch.tensor([0.4, 0.3], dtype=torch.float64) ** 2
WEIGHTS = torch.tensor([0.3, 0.7], dtype=torch.float64)


class CONST:
    """Class by which ComfyUI marks flow models."""


class FlowSampling(CONST):
    """`model_sampling` object as ComfyUI derives it from `CONST`."""


class Denoiser:
    """Elementwise E[x_0|x] for data around -0.6 and 0.6; records its calls.

    flow: x = (1 - sigma) x_0 + sigma eps, marked as in ComfyUI; else x = x_0 + sigma eps.
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
