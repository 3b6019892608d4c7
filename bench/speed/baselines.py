"""Other implementations of the ops, each written from docs/notation.md in plain torch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gms_fast import StepCoefficients
from gms_fast.ops import reference


def released_step(
    x: Tensor, e1: Tensor, e2: Tensor, e3: Tensor, step: StepCoefficients, iterations: int = 70
) -> Tensor:
    """Step of the released recipe, with one uniform number per sample.

    It makes 70 iterations of Adan under autograd on all elements at once.
    """
    numbers = (step.alpha_t, step.sigma_t, step.A, step.B, step.c)
    mean, base, excess, third, _ = reference.step_moments(x, e1, e2, e3, numbers, moments="released")
    var = base + excess
    a, b, v = autograd_fit(mean, var, third, iterations)
    u = torch.rand((len(x), *[1] * (x.ndim - 1)), device=x.device)
    return torch.where(u < 1 / 3, a, b) + v.sqrt() * torch.randn_like(x)


def autograd_fit(mean: Tensor, var: Tensor, third: Tensor, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fit means and variance of the mixture by Adan with gradients from autograd.

    The settings are lr 0.06 and betas 0.9, 0.92, 0.92.
    """
    w, lr, eps = 1 / 3, 0.06, 1e-8
    second, raw = mean**2 + var, third + 3 * mean * var + mean**3
    unknowns = [t.detach().clone().requires_grad_() for t in (mean, mean - 1e-3, torch.full_like(mean, 0.998))]
    states = [[torch.zeros_like(mean) for _ in range(4)] for _ in unknowns]
    for k in range(1, iterations + 1):
        a, b, beta = unknowns
        v = var * beta.clamp(0.1, 1.2)
        e0 = w * a + (1 - w) * b - mean
        e1 = w * (a**2 + v) + (1 - w) * (b**2 + v) - second
        e2 = w * (a**3 + 3 * a * v) + (1 - w) * (b**3 + 3 * b * v) - raw
        gradients = torch.autograd.grad((e0**2 + e1**2 + e2**2).mean(), unknowns)
        with torch.no_grad():
            for p, g, (m, d, s, last) in zip(unknowns, gradients, states, strict=True):
                diff = torch.zeros_like(g) if k == 1 else g - last
                m.mul_(0.9).add_(g, alpha=0.1)
                d.mul_(0.92).add_(diff, alpha=0.08)
                s.mul_(0.92).addcmul_(g + 0.92 * diff, g + 0.92 * diff, value=0.08)
                move = m / (1 - 0.9**k) + 0.92 * d / (1 - 0.92**k)
                p.sub_(lr * move / (s.sqrt() / (1 - 0.92**k) ** 0.5 + eps))
                last.copy_(g)
    a, b, beta = (t.detach() for t in unknowns)
    return a, b, var * beta.clamp(0.1, 1.2)


def eager_step(x: Tensor, e1: Tensor, e2: Tensor, e3: Tensor, step: StepCoefficients) -> Tensor:
    """Closed fit of fit="exact" in eager torch, with torch's own noise."""
    z = torch.randn_like(x)
    u = torch.rand((len(x), *[1] * (x.ndim - 1)), device=x.device)
    options = {"fit": "exact", "weight": 1 / 3, "moments": "cumulant", "central": False, "clip": (-1.0, 1.0)}
    return reference.gms_step(x, e1, e2, e3, step.as_list(), z, u, **options, iterations=0, lr=0.0, eps=0.0)


def ddpm_step(x: Tensor, e1: Tensor, step: StepCoefficients) -> Tensor:
    """Plain DDPM update in eager torch, with clipping."""
    m = ((x - step.sigma_t * e1) / step.alpha_t).clamp(-1, 1)
    return step.A * x + step.B * m + step.c**0.5 * torch.randn_like(x)


def eager_fit(mean: Tensor, var: Tensor, third: Tensor, floor: float) -> tuple[Tensor, ...]:
    """Closed fit alone in eager torch."""
    base, excess = reference.split_variance(var, floor, "exact")
    return reference.fit_mixture(mean, base, excess, third, "exact", 1 / 3, 0, 0.0, 0.0)


def eager_draw(mean: Tensor, var: Tensor, third: Tensor, floor: float) -> Tensor:
    """Closed fit and a draw in eager torch, with one uniform number per element."""
    weight, mean_a, mean_b, v = eager_fit(mean, var, third, floor)
    return torch.where(torch.rand_like(mean) < weight, mean_a, mean_b) + v.sqrt() * torch.randn_like(mean)


def eager_gaussian(mean: Tensor, var: Tensor) -> Tensor:
    """Draw from one Gaussian in eager torch."""
    return mean + var.sqrt() * torch.randn_like(mean)


def released_draw(mean: Tensor, var: Tensor, third: Tensor, iterations: int = 70) -> Tensor:
    """Fit of the released optimiser and a draw, with one uniform number per element."""
    a, b, v = autograd_fit(mean, var, third, iterations)
    return torch.where(torch.rand_like(mean) < 1 / 3, a, b) + v.sqrt() * torch.randn_like(mean)


def eager_affine(
    x: Tensor,
    terms: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    noise_std: float,
    constant: Tensor | None = None,
) -> Tensor:
    """Return weights[0] x + sum of weights[i+1] terms[i] + constant + noise_std z."""
    result = weights[0] * x
    for weight, term in zip(weights[1:], terms, strict=True):
        result = result + weight * term
    if constant is not None:
        result = result + constant
    return result + noise_std * torch.randn_like(x) if noise_std else result


def compiled(function: Callable[..., object]) -> Callable[..., object]:
    """Compile a function by torch.compile for static shapes."""
    return torch.compile(function, dynamic=False)
