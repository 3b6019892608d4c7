"""Averages over samples for the empirical model statistics, and the statistics made of them.

Pass 1, with probes v of independent signs: l = E[sigma (J v) v], J = d eps/dx, the diagonal of sigma J on average.
Pass 2, with ' the derivative along the ODE: s = Cov(f, f')/Var(f) and b = E f' - s E f of

    f  = (sigma eps - l x)/alpha        f' = exp(-lambda) ((l - 1) eps + eps') - l' x/alpha

eps' = d eps along dx/dlambda = dlog(alpha)/dlambda x - sigma eps. All elementwise, expectations over x = alpha x_0 +
sigma z with data x_0. Source: Zheng et al. 2023 (arXiv 2310.13268), section 3.2, and its authors' script.
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
    """One point of the grid, float64 tensors (); `drift` = dlog(alpha)/dlambda, `dt` = dt/dlambda."""

    t: Tensor
    lam: Tensor
    alpha: Tensor
    sigma: Tensor
    drift: Tensor
    dt: Tensor


def nodes_of(schedule: Schedule, t: Tensor, lam: Tensor) -> list[Node]:
    """The numbers of the times t (N+1,), slopes by automatic differentiation of the schedule."""
    along = torch.ones_like(t)
    log_alpha_slope = torch.func.jvp(lambda t: schedule.alpha(t).log(), (t,), (along,))[1]
    dt = 1 / torch.func.jvp(schedule.log_snr, (t,), (along,))[1]
    return [Node(*n) for n in zip(t, lam, schedule.alpha(t), schedule.sigma(t), log_alpha_slope * dt, dt, strict=True)]


def diagonal(noise: Noise, derivative: Derivative, node: Node, x: Tensor, v: Tensor) -> Tensor:
    """sigma (J v) v of every sample, (B, *) float64: without bias sigma times the diagonal of J."""
    _, (along,) = derivative(noise, (x, node.t), [(v, torch.zeros_like(node.t))])
    return float(node.sigma) * wide(along * v)


def residuals(
    noise: Noise, derivative: Derivative, node: Node, x: Tensor, l: Tensor, l_slope: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """f, f', and how large the two terms are whose difference f is, squared; of every sample, (B, *) float64."""
    alpha, sigma, drift, r = map(float, (node.alpha, node.sigma, node.drift, (-node.lam).exp()))
    with torch.no_grad():
        eps = noise(x, node.t)
    _, (change,) = derivative(noise, (x, node.t), [(drift * x - sigma * eps, node.dt)])
    eps, change, y = wide(eps), wide(change), wide(x) / alpha
    f = r * eps - l * y
    return f, r * ((l - 1) * eps + change) - l_slope * y, (r * eps) ** 2 + (l * y) ** 2


def moments(f: Tensor, f_slope: Tensor, size: Tensor) -> Tensor:
    """Sums over the batch of f, f', f^2, f f' and of `size`, (5, *)."""
    return torch.stack([f, f_slope, f * f, f * f_slope, size]).sum(1)


def slope(l: Tensor, lam: Tensor, window: float | None) -> Tensor:
    """dl/dlambda (N+1, *): central differences, one-sided at the ends, then their moving average.

    window  its width in lambda, rounded to an odd number of nodes and cut off at the ends; none for None or 0
    """
    step = float(lam[-1] - lam[0]) / (len(lam) - 1)
    raw = torch.gradient(l, spacing=step, dim=0)[0]
    side = round((window or 0.0) / (2 * step))
    return torch.stack([raw[max(j - side, 0) : j + side + 1].mean(0) for j in range(len(raw))])


def regress(means: Tensor, tolerance: float, limit: float = math.inf) -> tuple[Tensor, Tensor]:
    """s and b of mean `moments` (N+1, 5, *): least squares of f' on f.

    s = 0 where f varies too little to tell it, and where |s| > limit: an error of l' enters f' as an error of y, which
    dwarfs f where f hardly varies.
    """
    f, f_slope, f_f, f_f_slope, size = means.unbind(1)
    variance = f_f - f * f
    known = variance > tolerance * size
    s = torch.where(known, (f_f_slope - f * f_slope) / torch.where(known, variance, 1.0), 0.0)
    s = torch.where(s.abs() > limit, 0.0, s)
    return s, f_slope - s * f
