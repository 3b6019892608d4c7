"""Noise levels of a schedule by network time, on the device of a model."""

import torch
from torch import Tensor

from gms_fast.schedules import VP, Levels, Schedule

_NODES = 4096  # of a schedule of continuous time


class LevelTable(torch.nn.Module):
    """(alpha, sigma) at network times (B,), float32, shaped (B, 1, ..) like a state, without waiting for the host.

    At the times of a discrete schedule as it has them; elsewhere linear between those, or between 4096 of a continuous
    one. Times beyond its ends have the levels there.
    """

    times: Tensor
    levels: Tensor  # both as the bits of float32, which a cast of the model leaves alone

    def __init__(self, schedule: Schedule) -> None:
        super().__init__()
        times = _nodes(schedule)
        asked, order = schedule.network_time(times).float().sort()
        levels = torch.stack([schedule.alpha(times), schedule.sigma(times)])[:, order].float()
        self.register_buffer("times", asked.view(torch.int32), persistent=False)
        self.register_buffer("levels", levels.view(torch.int32), persistent=False)

    def forward(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        t, times, levels = t.float(), self.times.view(torch.float32), self.levels.view(torch.float32)
        high = torch.searchsorted(times, t).clamp(max=len(times) - 1)
        low = (high - 1).clamp(min=0)
        share = ((t - times[low]) / (times[high] - times[low]).clamp(min=1e-30)).clamp(0, 1)
        alpha, sigma = torch.lerp(levels[:, low], levels[:, high], share).view(2, -1, *[1] * (like.ndim - 1))
        return alpha, sigma


def _nodes(schedule: Schedule) -> Tensor:
    if isinstance(schedule, (VP, Levels)):
        return torch.arange(int(schedule.t_max) + 1, dtype=torch.float64, device="cpu")
    return schedule.grid(_NODES - 1, schedule.spacing)
