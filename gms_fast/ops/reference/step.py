"""One whole step: moments, fit and draw (docs/notation.md)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gms_fast.ops.reference.mixture import draw, fit_mixture
from gms_fast.ops.reference.moments import step_moments


def split_variance(var: Tensor, floor: float, fit: str) -> tuple[Tensor, Tensor]:
    """Return (base, excess) of a variance: the part up to `floor`, and the rest.

    The means of a mixture may use the rest only. Only the closed fits look at the floor: for the others all is base. A
    negative variance, as rounding leaves, counts as zero.
    """
    whole = var.clamp(min=0)
    if fit not in ("exact", "free"):
        return whole, torch.zeros_like(whole)
    return whole.clamp(max=floor), (whole - floor).clamp(min=0)


def sample_mixture(
    mean: Tensor,
    var: Tensor,
    third: Tensor,
    floor: float,
    z: Tensor,
    u: Tensor,
    fit: str,
    weight: float,
    iterations: int,
    lr: float,
    eps: float,
) -> Tensor:
    """Fit a mixture and draw from it; u broadcasts against mean."""
    return draw(fit_mixture(mean, *split_variance(var, floor, fit), third, fit, weight, iterations, lr, eps), z, u)


def gms_step(
    x: Tensor,
    e1: Tensor,
    e2: Tensor | None,
    e3: Tensor | None,
    coefficients: Sequence[float | Tensor],
    z: Tensor,
    u: Tensor,
    *,
    fit: str,
    weight: float,
    moments: str,
    central: bool,
    clip: tuple[float, float] | None,
    iterations: int,
    lr: float,
    eps: float,
    to: Tensor | None = None,
) -> Tensor:
    """Return x_s from noise moments.

    coefficients  (alpha_t, sigma_t, A, B, c, var_max)
    to            as in `step_moments`
    """
    *step, var_max = coefficients
    B = step[3]
    ends = clip if fit == "free" and moments == "cumulant" else None  # bounds of the nodes of x_0
    mean, base, excess, third, m = step_moments(
        x, e1, e2, e3, step, moments=moments, central=central, clip=clip, bound=ends is not None, to=to
    )
    nodes = None if ends is None else (B * (m - ends[0]), B * (ends[1] - m))
    weight_, mean_a, mean_b, v = fit_mixture(mean, base, excess, third, fit, weight, iterations, lr, eps, nodes)
    return draw((weight_, mean_a, mean_b, v.clamp(max=var_max)), z, u)
