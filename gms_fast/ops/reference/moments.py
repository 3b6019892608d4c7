"""Noise moments to the first three moments of x_s (docs/notation.md, eqs. 1-3)."""

from collections.abc import Sequence

import torch
from torch import Tensor


def step_moments(
    x: Tensor,
    e1: Tensor,
    e2: Tensor | None,
    e3: Tensor | None,
    coefficients: Sequence[float | Tensor],
    *,
    moments: str = "cumulant",
    central: bool = False,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    bound: bool = False,
    to: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return (mean_s, base, excess, third_s, m), shaped like x: cumulants of q(x_s|x_t), and m.

    m = E[x_0|x_t]. The variance var_s = base + excess comes in two parts: the known Gaussian, base = c, and what x_0
    adds, excess = B^2 v. A fit needs the second alone, and their sum would have rounded it.

    coefficients  (alpha_t, sigma_t, A, B, c)
    e2, e3        None: a posterior of x_0 without variance, without skewness; without e2, e3 is not read
    to            first moment that guidance asks for; the moments about it stay those of e1, e2, e3
    bound         also bound v by (m - lo)(hi - m) (Bhatia-Davis), which the two nodes of fit="free" need
    """
    alpha, sigma, A, B, c = coefficients
    r = sigma / alpha
    m = x / alpha - r * (e1 if to is None else to)
    v, k = torch.zeros_like(m), torch.zeros_like(m)
    if e2 is not None:
        v = r**2 * (e2 if central else e2 - e1**2)
    if e2 is not None and e3 is not None:
        k = -(r**3) * (e3 if central else e3 - 3 * e1 * e2 + 2 * e1**3)
    if moments == "released":
        return _released(x, m, v, k, A, B, c)
    lo, hi = clip if clip is not None else (-torch.inf, torch.inf)
    m, v = m.clamp(lo, hi), v.clamp(0, ((hi - lo) / 2) ** 2)
    if bound and clip is not None:
        v = torch.minimum(v, (m - lo) * (hi - m))
    return A * x + B * m, torch.zeros_like(m) + c, B**2 * v, B**3 * k, m


def _released(
    x: Tensor, m: Tensor, v: Tensor, k: Tensor, A: float | Tensor, B: float | Tensor, c: float | Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the moments as the released code clips them.

    It clips E[x_0^2] and E[x_0^3] separately from m and v, so they are not consistent. The last lines give its third
    raw moment of x_s, less 3 mean_s var_s + mean_s^3, without the cancellation.
    """
    q = (m**2 + v).clamp(0, 1)
    u = m**3 + 3 * m * v + k
    m, v = m.clamp(-1, 1), v.clamp(0, 1)
    u = torch.where(u.abs() <= m.abs(), u, m).clamp(-1, 1)
    mean = (A * x + B * m).clamp(-1000, 1000)
    full = c + B**2 * v
    var = full.clamp(0, 1)
    third = 3 * A * x * B**2 * (q - m**2 - v) + B**3 * (u - m**3 - 3 * m * v) + 3 * mean * (full - var)
    return mean, var.clamp(max=c), (var - c).clamp(min=0), third, m
