"""Noise levels of a schedule at network times, looked up on the device of the times."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from gms_fast.models.normalised import unit
from gms_fast.schedules import Schedule

_NODES = 1 << 14  # for schedules of continuous time: linear interpolation has a relative error of 3e-6


class NoiseLevel(NamedTuple):
    """Noise level of each sample, (B, 1, ..) float32.

    `unit` is that of normalised heads. `angle` is arctan(sigma/(alpha s)) in [0, pi/2], from data to noise.
    """

    alpha: Tensor
    sigma: Tensor
    unit: Tensor
    angle: Tensor


class LevelTable(nn.Module):
    """Noise levels by network time, for networks that give moments at any level.

    A call with network times t (B,) and a tensor x (B, *) returns a `NoiseLevel`, without waiting for a GPU. It is
    exact at the times of a discrete schedule, and linear between nodes otherwise. alpha and sigma of EDM and flow
    matching are exact.

    Args:
        schedule: Noise schedule whose network times rise with its times.
        data_std: s, as in `normalised.unit`.
    """

    _bits: Tensor

    def __init__(self, schedule: Schedule, data_std: float = 1.0) -> None:
        super().__init__()
        self.data_std, whole = data_std, schedule.whole_times
        self.goes_on = whole is None  # extrapolate, for instance EDM's levels to a larger sigma_max
        times = schedule.grid(_NODES, "quadratic").flip(0) if whole is None else whole  # denser where sigma bends
        alpha, sigma = schedule.alpha(times), schedule.sigma(times)
        rows = [schedule.network_time(times), alpha, sigma]
        table = torch.stack([*rows, unit(alpha, sigma, data_std), torch.atan2(sigma, alpha * data_std)])
        table = table[:, table[0].argsort()].float().repeat(1, 2 if len(times) == 1 else 1)
        # stored as integers, which `module.to(torch.bfloat16)` does not convert
        self.register_buffer("_bits", table.view(torch.int32), persistent=False)

    def forward(self, t: Tensor, x: Tensor) -> NoiseLevel:
        table = self._bits.view(torch.float32)
        t = t.float().contiguous()
        low = (torch.searchsorted(table[0], t, right=True) - 1).clamp(0, table.shape[1] - 2)
        below, above = table[:, low], table[:, low + 1]
        apart = above[0] - below[0]
        share = torch.where(apart > 0, (t - below[0]) / apart, 0)
        alpha, sigma, of, angle = torch.lerp(below[1:], above[1:], share)
        if self.goes_on:  # alpha and sigma extrapolate linearly, the others do not
            beyond = (share < 0) | (share > 1)
            of = torch.where(beyond, unit(alpha, sigma, self.data_std), of)
            angle = torch.where(beyond, torch.atan2(sigma, alpha * self.data_std), angle)
        view = (-1, *[1] * (x.ndim - 1))
        return NoiseLevel(alpha.view(view), sigma.view(view), of.view(view), angle.view(view))
