"""Noised batches at random levels of a schedule."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gms_fast.schedules import Schedule

_HALF = 2.0**-25  # of a step of float32 in [0.5, 1): keeps random numbers off both ends of [0, 1]


class Noised(NamedTuple):
    """x_t = alpha x_0 + sigma eps of a batch, levels (B, 1, ..), with the network's times (B,) and conditions."""

    x_0: Tensor
    eps: Tensor
    alpha: Tensor
    sigma: Tensor
    x_t: Tensor
    time: Tensor
    condition: Mapping[str, Tensor]

    def split(self, rows: int | None) -> "list[Noised]":
        """Parts of at most so many rows, in order; None: the whole."""
        if rows is None or rows >= len(self.x_0):
            return [self]
        condition = {name: value.split(rows) for name, value in self.condition.items()}
        parts = zip(*(value.split(rows) for value in self[:-1]), strict=True)
        return [Noised._make((*part, {n: v[k] for n, v in condition.items()})) for k, part in enumerate(parts)]


def seed_of(*numbers: int) -> int:
    """32 bits of some numbers, since torch's CPU generator takes no more."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def times(schedule: Schedule, n: int, generator: torch.Generator) -> Tensor:
    """n random times: uniform in those of a discrete schedule, else as the schedule's own grid is spaced.

    Levels without noise or without signal, at which there is nothing to learn, are left out.
    """
    whole = schedule.whole_times
    if whole is None:
        return schedule.spaced(torch.rand(n, generator=generator).double() * (1 - 2 * _HALF) + _HALF)
    whole = whole[(schedule.alpha(whole) > 0) & (schedule.sigma(whole) > 0)]
    return whole[torch.randint(len(whole), (n,), generator=generator)]


def noised(
    schedule: Schedule,
    x_0: Tensor,
    condition: Mapping[str, Tensor],
    rows: slice,
    total: int,
    generator: torch.Generator,
    device: torch.device,
) -> Noised:
    """Noised `rows` of a batch of `total`: x_0 and condition are those rows, times and noise are drawn for all."""
    t = times(schedule, total, generator)[rows]
    eps = torch.randn(total, *x_0.shape[1:], generator=generator)[rows]
    alpha, sigma = (f(t).float().view(-1, *[1] * (x_0.ndim - 1)) for f in (schedule.alpha, schedule.sigma))
    x_t = alpha * x_0 + sigma * eps
    return Noised(
        x_0=x_0.to(device),
        eps=eps.to(device),
        alpha=alpha.to(device),
        sigma=sigma.to(device),
        x_t=x_t.to(device),
        time=schedule.network_time(t).float().to(device),
        condition={name: value.to(device) for name, value in condition.items()},
    )
