"""Noised batches at random levels of a schedule."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gms_fast.schedules import Schedule

_LOG_NORMAL = (-1.2, 1.2)  # mean and standard deviation of log(sigma/alpha) in EDM's training
_HALF = 2.0**-25  # of a step of float32 in [0.5, 1): keeps random numbers off both ends of [0, 1]


class Noised(NamedTuple):
    """A noised batch x_t = alpha x_0 + sigma eps, with its times and conditions.

    alpha and sigma are (B, 1, ..), `time` (B,) holds network times, and conditions have B rows.
    """

    x_0: Tensor
    eps: Tensor
    alpha: Tensor
    sigma: Tensor
    x_t: Tensor
    time: Tensor
    condition: Mapping[str, Tensor]

    def split(self, rows: int | None) -> "list[Noised]":
        """Split the batch into parts of at most `rows` rows, in order; None keeps it whole."""
        if rows is None or rows >= len(self.x_0):
            return [self]
        condition = {name: value.split(rows) for name, value in self.condition.items()}
        parts = zip(*(value.split(rows) for value in self[:-1]), strict=True)
        return [Noised._make((*part, {n: v[k] for n, v in condition.items()})) for k, part in enumerate(parts)]


def seed_of(*numbers: int) -> int:
    """Hash numbers to a 32-bit seed, the most that torch's CPU generator takes."""
    return int(np.random.SeedSequence(list(numbers)).generate_state(1)[0])


def times(schedule: Schedule, n: int, generator: torch.Generator) -> Tensor:
    """Draw n random times for training.

    They are uniform over the times of a discrete schedule, else spaced as the schedule's own grid is. Levels without
    noise or without signal have nothing to teach and are left out.
    """
    whole = _telling(schedule)
    if whole is None:
        return schedule.spaced(torch.rand(n, generator=generator).double() * (1 - 2 * _HALF) + _HALF)
    return whole[torch.randint(len(whole), (n,), generator=generator)]


def _telling(schedule: Schedule) -> Tensor | None:
    """Return the times of a discrete schedule with signal and noise; None for a continuous one."""
    whole = schedule.whole_times
    return None if whole is None else whole[(schedule.alpha(whole) > 0) & (schedule.sigma(whole) > 0)]


def log_normal_times(schedule: Schedule, n: int, generator: torch.Generator) -> Tensor:
    """Draw n random times with log(sigma/alpha) ~ N(-1.2, 1.2^2), as EDM does.

    Levels outside the schedule move to its nearest level. Source: Karras et al. 2022, arXiv 2206.00364, table 1.
    """
    mean, std = _LOG_NORMAL
    ends = schedule.log_snr([schedule.t_max, schedule.t_min]).tolist()
    level = -(mean + std * torch.randn(n, generator=generator).double())
    t = schedule.inverse_log_snr(level.clamp(*ends))
    whole = _telling(schedule)
    return t if whole is None else t.round().clamp(float(whole.min()), float(whole.max()))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device.

    A copy from the host to a GPU does not wait for work that the GPU still has to do.
    """
    if device.type != "cuda" or not tensor.is_cpu:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def noised(
    schedule: Schedule,
    x_0: Tensor,
    condition: Mapping[str, Tensor],
    rows: slice,
    total: int,
    generator: torch.Generator,
    device: torch.device,
    drawn: Callable[[Schedule, int, torch.Generator], Tensor] = times,
) -> Noised:
    """Noise the given `rows` of a batch of `total` rows.

    `x_0` and `condition` hold those rows alone. Times and noise are drawn for all `total` rows, so that the result does
    not depend on how ranks share the batch.
    """
    t = drawn(schedule, total, generator)[rows]
    eps = sent(torch.randn(total, *x_0.shape[1:], generator=generator)[rows], device)
    levels = (f(t).float().view(-1, *[1] * (x_0.ndim - 1)) for f in (schedule.alpha, schedule.sigma))
    alpha, sigma = (sent(level, device) for level in levels)
    x_0 = sent(x_0, device)
    return Noised(
        x_0=x_0,
        eps=eps,
        alpha=alpha,
        sigma=sigma,
        x_t=alpha * x_0 + sigma * eps,
        time=sent(schedule.network_time(t).float(), device),
        condition={name: sent(value, device) for name, value in condition.items()},
    )
