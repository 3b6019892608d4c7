"""Sample averages for the empirical model statistics, and the curves made from them.

Pass 1, with probes v of independent signs: l = E[sigma (J v) v], J = d eps/dx, the average diagonal of sigma J.
Pass 2, with ' the derivative along the ODE: s = Cov(f, f')/Var(f) and b = E f' - s E f, of

    f  = (sigma eps - l x)/alpha        f' = exp(-lambda) ((l - 1) eps + eps') - l' x/alpha

eps' = d eps along dx/dlambda = dlog(alpha)/dlambda x - sigma eps. All is elementwise. Expectations are over
x = alpha x_0 + sigma z with data x_0. Source: Zheng et al. 2023, arXiv 2310.13268, section 3.2, and its authors'
script.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gms_fast.derivatives import Derivative
from gms_fast.measure.noise import Noise
from gms_fast.schedules import Schedule
from gms_fast.tables.wide import wide


class Node(NamedTuple):
    """One node of the grid, as float64 scalars.

    `drift` is dlog(alpha)/dlambda, and `dt` is dt/dlambda.
    """

    t: Tensor
    lam: Tensor
    alpha: Tensor
    sigma: Tensor
    drift: Tensor
    dt: Tensor


def nodes_of(schedule: Schedule, t: Tensor, lam: Tensor) -> list[Node]:
    """Return the nodes at the times t (N+1,).

    Slopes come from automatic differentiation of the schedule.
    """
    along = torch.ones_like(t)
    log_alpha_slope = torch.func.jvp(lambda t: schedule.alpha(t).log(), (t,), (along,))[1]
    dt = 1 / torch.func.jvp(schedule.log_snr, (t,), (along,))[1]
    return [Node(*n) for n in zip(t, lam, schedule.alpha(t), schedule.sigma(t), log_alpha_slope * dt, dt, strict=True)]


def diagonal(noise: Noise, derivative: Derivative, node: Node, x: Tensor, v: Tensor) -> Tensor:
    """Return sigma (J v) v of every sample, (B, *) float64: an unbiased diagonal of sigma J."""
    _, (along,) = derivative(noise, (x, node.t), [(v, torch.zeros_like(node.t))])
    return float(node.sigma) * wide(along * v)


def residuals(
    noise: Noise, derivative: Derivative, node: Node, x: Tensor, l: Tensor, l_slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return f, f' and the squared size of the two terms of f, for every sample, (B, *) float64."""
    alpha, sigma, drift, r = map(float, (node.alpha, node.sigma, node.drift, (-node.lam).exp()))
    with torch.no_grad():
        eps = noise(x, node.t)
    _, (change,) = derivative(noise, (x, node.t), [(drift * x - sigma * eps, node.dt)])
    eps, change, y = wide(eps), wide(change), wide(x) / alpha
    f = r * eps - l * y
    return f, r * ((l - 1) * eps + change) - l_slope * y, (r * eps) ** 2 + (l * y) ** 2


def moments(f: Tensor, f_slope: Tensor, size: Tensor) -> Tensor:
    """Return sums over the batch of f, f', f^2, f f' and `size`, (5, *)."""
    return torch.stack([f, f_slope, f * f, f * f_slope, size]).sum(1)


def slope(l: Tensor, lam: Tensor, window: float | None) -> Tensor:
    """Return dl/dlambda (N+1, *): central differences, one-sided at the ends, then averaged.

    `window` is the width of the moving average in lambda. It is rounded to an odd number of nodes and cut off at the
    ends; None or 0 means no average.
    """
    step = float(lam[-1] - lam[0]) / (len(lam) - 1)
    raw = torch.gradient(l, spacing=step, dim=0)[0]
    side = round((window or 0.0) / (2 * step))
    return torch.stack([raw[max(j - side, 0) : j + side + 1].mean(0) for j in range(len(raw))])


def regress(means: Tensor, tolerance: float, limit: float = math.inf) -> tuple[Tensor, Tensor]:
    """Return s and b from mean `moments` (N+1, 5, *), the least-squares fit of f' on f.

    s = 0 where f varies too little to determine it. s = 0 too where |s| > limit: an error of l' enters f' as an error
    in y, which exceeds f where f hardly varies.
    """
    f, f_slope, f_f, f_f_slope, size = means.unbind(1)
    variance = f_f - f * f
    known = variance > tolerance * size
    s = torch.where(known, (f_f_slope - f * f_slope) / torch.where(known, variance, 1.0), 0.0)
    s = torch.where(s.abs() > limit, 0.0, s)
    return s, f_slope - s * f
