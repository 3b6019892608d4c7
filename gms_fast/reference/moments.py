"""From noise moments to the mean, variance and third central moment of x_s (docs/notation.md, eqs. 1-3)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def step_moments(
    x: Tensor,
    e1: Tensor,
    e2: Tensor | None,
    e3: Tensor | None,
    coefficients: Sequence[float],
    *,
    moments: str = "cumulant",
    central: bool = False,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    bound: bool = False,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """(mean_s, base, excess, third_s, m), all shaped like x: cumulants of q(x_s|x_t) with var_s = base + excess, m = E[x_0|x_t].

    The variance comes in two parts, the known Gaussian (base = c) and what x_0 adds (excess = B^2 v), because a fit
    needs the second alone and their sum would have rounded it.

    coefficients  (alpha_t, sigma_t, A, B, c)
    e2, e3        None stands for a posterior of x_0 without variance, without skewness
    bound         also bound v by (m - lo)(hi - m) (Bhatia-Davis), which the two nodes of fit="free" need
    """
    alpha, sigma, A, B, c = coefficients  # noqa: N806
    if moments == "released":
        return _released(x, e1, e2, e3, coefficients, central)
    lo, hi = clip if clip is not None else (-torch.inf, torch.inf)
    r = sigma / alpha
    m = (x / alpha - r * e1).clamp(lo, hi)
    v, k = torch.zeros_like(m), torch.zeros_like(m)
    if e2 is not None:
        v = (r**2 * (e2 if central else e2 - e1**2)).clamp(0, ((hi - lo) / 2) ** 2)
        if bound and clip is not None:
            v = torch.minimum(v, (m - lo) * (hi - m))
    if e3 is not None:
        k = -(r**3) * (e3 if central else e3 - 3 * e1 * e2 + 2 * e1**3)
    return A * x + B * m, torch.full_like(m, c), B**2 * v, B**3 * k, m


def _released(
    x: Tensor, e1: Tensor, e2: Tensor, e3: Tensor | None, coefficients: Sequence[float], central: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The moments as the released code clips them: each raw moment on its own, so that they need not be consistent."""
    alpha, sigma, A, B, c = coefficients  # noqa: N806
    if central:
        e2, e3 = e2 + e1**2, None if e3 is None else e3 + 3 * e1 * e2 + e1**3
    m = ((x - sigma * e1) / alpha).clamp(-1, 1)
    v = ((sigma / alpha) ** 2 * (e2 - e1**2)).clamp(0, 1)
    mean = (A * x + B * m).clamp(-1000, 1000)
    var = (c + B**2 * v).clamp(0, 1)
    base, excess = var.clamp(max=c), (var - c).clamp(min=0)
    if e3 is None:
        return mean, base, excess, torch.zeros_like(mean), m
    q = ((x**2 + sigma**2 * e2 - 2 * x * sigma * e1) / alpha**2).clamp(0, 1)
    u = (x**3 - sigma**3 * e3 - 3 * x**2 * sigma * e1 + 3 * x * sigma**2 * e2) / alpha**3
    u = torch.where(u.abs() <= m.abs(), u, m).clamp(-1, 1)
    a = A * x
    raw = a**3 + 3 * a**2 * B * m + 3 * a * B**2 * q + B**3 * u + 3 * c * (a + B * m)
    return mean, base, excess, raw - 3 * mean * var - mean**3, m
