"""Discrete variance-preserving schedules with times 0 .. T-1."""

import copy
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gms_fast.schedules.base import (
    MOST_TIMES,
    Schedule,
    Times,
    VariancePreserving,
    as_float64,
    check_range,
    check_steps,
    distinct,
    listed,
    log_alpha_of,
)
from gms_fast.storage.schema import Flag, Integer, Optional, Real, argument


class VP(VariancePreserving):
    """Discrete variance-preserving schedule with times 0 .. T-1.

        alpha_t^2 = prod_{i<=t} (1 - beta_i),   sigma_t^2 = 1 - alpha_t^2

    Times run from 0 (least noise) to T-1 (most noise). Between integers, log alpha_t is interpolated linearly. With
    zero terminal SNR, alpha_t itself is interpolated linearly in the last interval.

    Args:
        betas: Values beta_i (T,), each in (0, 1). The last one may be 1, which leaves no signal at t = T-1 (zero
            terminal SNR).
        time_shift: Number that is added to t in the network time, such as 1 for networks trained on t = 1..T.
        rescale_time: Whether the network time is 1000 (t + time_shift)/T instead of t + time_shift. If None, the
            setting of the model's own schedule is used, or False if that is not known.

    Raises:
        ValueError: If `betas` has the wrong shape or values out of range.

    Examples:
        >>> schedule = gms_fast.schedules.VP([0.1, 0.2, 0.3, 1.0])
        >>> schedule.alpha([0, 1, 2, 3])
        tensor([0.9487, 0.8485, 0.7099, 0.0000], dtype=torch.float64)

    References:
        Ho et al. 2020, arXiv 2006.11239.
    """

    def __init__(self, betas: Times, *, time_shift: int = 0, rescale_time: bool | None = None) -> None:
        betas = as_float64(betas)
        if betas.ndim != 1 or not 2 <= len(betas) <= MOST_TIMES:
            raise ValueError(
                f"betas must be a sequence of at least two numbers, {MOST_TIMES} at most: "
                f"got shape {tuple(betas.shape)}"
            )
        if not bool(((betas > 0) & (betas < 1)).all()) and not _zero_terminal_snr(betas):
            got = f"{float(betas.min()):g} .. {float(betas.max()):g}"
            raise ValueError(f"betas must lie in (0, 1), the last one in (0, 1]: got {got}")
        time_shift = argument("time_shift", time_shift, Real(-MOST_TIMES, MOST_TIMES))
        rescale_time = argument("rescale_time", rescale_time, Optional(Flag()))
        self.betas = betas
        self.T = len(betas)
        self.t_max, self.t_min = float(self.T - 1), 0.0
        self.time_shift, self.rescale_time = time_shift, rescale_time
        self._log_alpha = 0.5 * torch.log1p(-betas).cumsum(0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(T={self.T})"

    @property
    def config(self) -> dict[str, object]:
        """Name and arguments from which `build` recreates the schedule."""
        return {"name": "VP", "betas": self.betas.tolist(), **self._times_config}

    @property
    def _times_config(self) -> dict[str, object]:
        same = self.T == 1000 and self.rescale_time is not False  # files older than `rescale_time` omit it
        return {"time_shift": self.time_shift, **({} if same else {"rescale_time": bool(self.rescale_time)})}

    @property
    def whole_times(self) -> Tensor:
        return torch.arange(self.T, dtype=torch.float64, device="cpu")

    def asked_like(self, other: Schedule | None) -> Schedule:
        said = other.rescale_time if isinstance(other, VP) else None
        if self.rescale_time is not None or said is None:
            return self
        asked = copy.copy(self)
        asked.rescale_time = said
        return asked

    def log_alpha(self, t: Times) -> Tensor:
        """Return log alpha_t at times t of any shape, in [0, T-1]."""
        t = check_range(as_float64(t), 0, self.T - 1, repr(self))
        low = t.floor().long().clamp(max=self.T - 2)
        table = self._log_alpha
        if table[-1].isfinite():
            return torch.lerp(table[low], table[low + 1], t - low)
        high = torch.where(low + 1 == self.T - 1, table[low] + (1 - (t - low)).log(), table[low + 1])
        return torch.where(low + 1 == self.T - 1, high, torch.lerp(table[low], high, t - low))

    def inverse_log_snr(self, lam: Times) -> Tensor:
        """Return the time t in [0, T-1] at which log_snr(t) = lam.

        Values of `lam` outside the schedule's range are mapped to the nearer end of the range.
        """
        lam = as_float64(lam)
        log_alpha = log_alpha_of(lam)
        finite = self.T if self._log_alpha[-1].isfinite() else self.T - 1
        table = self._log_alpha[:finite].flip(0).numpy()  # increasing, as numpy.interp requires
        times = np.arange(finite - 1, -1, -1, dtype=np.float64)
        found = torch.from_numpy(np.interp(np.atleast_1d(log_alpha.numpy()), table, times)).reshape(lam.shape)
        beyond = self.T - 1 - (log_alpha - float(table[0])).exp()  # where alpha itself is linear
        return torch.where(log_alpha < float(table[0]), beyond, found) if finite < self.T else found

    def timesteps(self, steps: int, spacing: str | float | None = None, t_max: float | None = None) -> list[float]:
        """Return the integer times of a run, noisiest first, ending at 0.

        If rounding would repeat a time, the nearest unused time is taken instead, so no step is lost. With T steps, the
        result is all T times, as in plain DDPM.

        Args:
            steps: Number of steps K in [1, T].
            spacing: "uniform" without `t_max` gives the time grid of the released GMS code: max(int(T-1 - (T/K) i), 0)
                for i = 0..K-1, then 0. Any other spacing gives the times of [`grid`][gms_fast.schedules.Schedule.grid],
                rounded. Defaults to the schedule's `spacing`.
            t_max: First time, rounded. Defaults to T-1.

        Returns:
            List of K + 1 integer times, or of all T times if K = T. If there are fewer than K integer times below
                `t_max`, the list is shorter and a warning is issued.

        Raises:
            ValueError: If `steps` < 1 or `steps` > T.
        """
        check_steps(steps)
        if steps > self.T:
            raise ValueError(f"steps must be at most {self.T} for {self!r}: got {steps}")
        spacing = self.spacing if spacing is None else spacing
        if steps == self.T and t_max is None:
            return list(range(self.T - 1, -1, -1))
        if spacing == "uniform" and t_max is None:
            times = [max(int(self.T - 1 - self.T / steps * i), 0) for i in range(steps)] + [0]
        else:
            times = self.grid(steps, spacing, t_max).round().int().tolist()
        if times[0] < steps:
            warnings.warn(
                f"taking {times[0]} steps instead of {steps}: {self!r} has no more integer times below t = {times[0]}",
                stacklevel=3,
            )
            times = [*times[: times[0]], 0]
        return distinct(times)

    def check_times(self, times: Sequence[float]) -> None:
        if any(t % 1 for t in times):
            raise ValueError(f"timesteps must be integers for {self!r}: got {listed(times)}")
        super().check_times(times)

    @property
    def _scale(self) -> float:
        return 1000.0 / self.T if self.rescale_time else 1.0

    def network_time(self, t: Times) -> Tensor:
        """Return the network time t + time_shift, multiplied by 1000/T if `rescale_time` is True."""
        return (as_float64(t) + self.time_shift) * self._scale

    def from_network_time(self, t: Times) -> Tensor:
        """Return the time whose network time is t. This is the inverse of `network_time`.

        A result within 10^-3 of an integer is rounded to it, which undoes the rounding of network times.
        """
        t = as_float64(t) / self._scale - self.time_shift
        nearest = t.round()
        return torch.where((t - nearest).abs() < 1e-3, t + (nearest - t).detach(), t)  # rounds, keeps the derivative

    def clock(self, t: Times) -> Tensor:
        """Return (t + 1)/T: discrete time t is the end of its interval in continuous time."""
        return (as_float64(t) + 1) / self.T

    def from_clock(self, t: Times) -> Tensor:
        return as_float64(t) * self.T - 1


class VPLinear(VP):
    """Discrete schedule whose betas increase linearly from beta_1 to beta_T.

    Args:
        T: Number of times, >= 2.
        beta_1: First beta.
        beta_T: Last beta.
        time_shift: See [`VP`][gms_fast.schedules.VP].
        rescale_time: See [`VP`][gms_fast.schedules.VP].

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> schedule = gms_fast.schedules.VPLinear()
        >>> schedule.timesteps(4)
        [999, 749, 499, 249, 0]
        >>> schedule.alpha([0, 500, 999])
        tensor([0.9999, 0.2789, 0.0064], dtype=torch.float64)

    References:
        Ho et al. 2020, arXiv 2006.11239.
    """

    def __init__(
        self,
        T: int = 1000,
        beta_1: float = 1e-4,
        beta_T: float = 0.02,
        *,
        time_shift: int = 0,
        rescale_time: bool | None = None,
    ) -> None:
        T = _count(T)
        beta_1, beta_T = argument("beta_1", beta_1, Real()), argument("beta_T", beta_T, Real())
        betas = np.linspace(beta_1, beta_T, T)
        super().__init__(betas, time_shift=time_shift, rescale_time=rescale_time)
        self._config = {"T": T, "beta_1": beta_1, "beta_T": beta_T}

    @property
    def config(self) -> dict[str, object]:
        return {"name": "VPLinear", **self._config, **self._times_config}


class VPCosine(VP):
    """Discrete cosine schedule.

    The betas are beta_i = min(1 - g((i+1)/T)/g(i/T), 0.999) with g(u) = cos^2((u + 0.008)/1.008 pi/2).

    Args:
        T: Number of times, >= 2.
        time_shift: See [`VP`][gms_fast.schedules.VP].
        rescale_time: See [`VP`][gms_fast.schedules.VP].

    Raises:
        ValueError: If `T` is out of range.

    Examples:
        >>> schedule = gms_fast.schedules.VPCosine(T=4000, rescale_time=True)
        >>> schedule.timesteps(4)
        [3999, 2999, 1999, 999, 0]
        >>> schedule.network_time(3999)
        tensor(999.7500, dtype=torch.float64)

    References:
        Nichol & Dhariwal 2021, arXiv 2102.09672.
    """

    def __init__(self, T: int = 1000, *, time_shift: int = 0, rescale_time: bool | None = None) -> None:
        T = _count(T)
        g = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
        betas = [min(1 - g[i + 1] / g[i], 0.999) for i in range(T)]
        super().__init__(betas, time_shift=time_shift, rescale_time=rescale_time)

    @property
    def config(self) -> dict[str, object]:
        return {"name": "VPCosine", "T": self.T, **self._times_config}


def _count(T: int) -> int:
    return argument("T", T, Integer(2, MOST_TIMES))


def _zero_terminal_snr(betas: Tensor) -> bool:
    return bool(((betas[:-1] > 0) & (betas[:-1] < 1)).all()) and float(betas[-1]) == 1
