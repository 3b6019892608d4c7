"""Learned variance of improved DDPM as a moment of the noise.

Source: Nichol & Dhariwal 2021, arXiv 2102.09672.
"""

import torch
from torch import Tensor

from gms_fast.schedules import VP, Schedule


class LearnedVariance:
    """E[(eps - e1)^2|x_t] from the output v of a network that learned step variances.

    A step t -> t-1 has the variance log var = f log beta + (1 - f) log c with f = (v + 1)/2, where c is the variance of
    the step with x_0 known. A Gaussian step has var = c + B^2 Var[x_0|x_t]. Therefore

        e2 = (alpha/sigma)^2 Var[x_0|x_t] = alpha^2 (e^{f d} - 1)/(e^d - 1),   d = log(beta/c).

    This is 0 for f = 0, and alpha^2, as for data N(0, 1), for f = 1. At t = 0, where c = 0, the variance at t = 1
    replaces c, and e2 = alpha^2 e^{(f - 1) d}, as in improved DDPM.

    `schedule` is the VP schedule of the training, with integer times.
    """

    def __init__(self, schedule: Schedule) -> None:
        if not isinstance(schedule, VP):
            raise ValueError(f"schedule must be a VP with the training betas for a learned variance: got {schedule!r}")
        t = torch.arange(schedule.T, dtype=torch.float64)
        squared, variance = schedule.alpha(t) ** 2, schedule.sigma(t) ** 2
        ratio = variance[1:] / variance[:-1]  # beta/c
        first = (schedule.betas[0] / (schedule.betas[1] / ratio[0])).log()
        d = torch.cat([first[None], ratio.log()])
        above = torch.zeros_like(d)  # added to e^{f d} - 1: 1 at t = 0
        above[0] = 1.0
        self._table = torch.stack([schedule.network_time(t), squared.sqrt(), variance.sqrt(), d, above])
        self._table = torch.cat([self._table, (squared / (d.expm1() + above))[None]]).float()

    def at(self, t: Tensor, like: Tensor) -> tuple[Tensor, ...]:
        """Return (alpha, sigma, d, above, weight) at the times nearest to network times t.

        Each is (B, 1, ..) on the device of t.
        """
        if self._table.device != t.device:
            self._table = self._table.to(t.device)
        nearest = (t[:, None] - self._table[0]).abs().argmin(1)
        return tuple(row[nearest].reshape(-1, *[1] * (like.ndim - 1)) for row in self._table[1:])

    def second(self, v: Tensor, t: Tensor) -> Tensor:
        """Return e2, at least in float32."""
        _, _, d, above, weight = self.at(t, v)
        return weight * (torch.expm1((v.to(torch.promote_types(v.dtype, d.dtype)) + 1) / 2 * d) + above)
