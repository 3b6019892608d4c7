"""Discrete variance-preserving schedules, of times 0 .. T-1."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gms_fast.schedules.base import (
    Times,
    VariancePreserving,
    as_float64,
    check_range,
    check_steps,
    listed,
    log_alpha_of,
)


class VP(VariancePreserving):
    """Discrete variance-preserving schedule: alpha_t^2 = prod_{i<=t} (1 - beta_i), sigma_t^2 = 1 - alpha_t^2.

    betas: (T,), each in (0, 1). Times are 0 .. T-1 (least to most noise); between integers log alpha is linear in t.
    time_shift: added to t before it is scaled to the network's 0..1000 (1 for networks trained on t = 1..T).
    Source: Ho et al. 2020 (arXiv 2006.11239).
    """

    def __init__(self, betas: Times, *, time_shift: int = 0) -> None:
        betas = as_float64(betas)
        if betas.ndim != 1 or len(betas) < 2:
            raise ValueError(f"betas must be a sequence of at least two numbers: got shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must lie in (0, 1)")
        self.betas = betas
        self.T = len(betas)
        self.t_max, self.t_min = float(self.T - 1), 0.0
        self.time_shift = time_shift
        self._log_alpha = 0.5 * torch.log1p(-betas).cumsum(0)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(T={self.T})"

    @property
    def config(self) -> dict[str, object]:
        """What `gms_fast.schedules.build` needs to make this schedule again."""
        return {"name": "VP", "betas": self.betas.tolist(), "time_shift": self.time_shift}

    def log_alpha(self, t: Times) -> Tensor:
        """log alpha_t for times in [0, T-1], any shape."""
        t = check_range(as_float64(t), 0, self.T - 1, repr(self))
        low = t.floor().long().clamp(max=self.T - 2)
        table = self._log_alpha
        return torch.lerp(table[low], table[low + 1], t - low)

    def inverse_log_snr(self, lam: Times) -> Tensor:
        """The time t in [0, T-1] with log_snr(t) = lam; values outside the schedule's range give its ends."""
        lam = as_float64(lam)
        log_alpha = log_alpha_of(lam)
        table = self._log_alpha.flip(0).numpy()  # increasing, as numpy.interp wants it
        times = np.arange(self.T - 1, -1, -1, dtype=np.float64)
        return torch.from_numpy(np.interp(np.atleast_1d(log_alpha.numpy()), table, times)).reshape(lam.shape)

    def timesteps(self, steps: int, spacing: str | float | None = None, t_max: float | None = None) -> list[int]:
        """Integer times to visit, noisiest first, ending at 0; from `t_max` on, rounded, if that is given.

        spacing  "uniform": t_i = max(int(T-1 - (T/K) i), 0), i = 0..K-1, then 0: the released grid.
                 Every other, and that from `t_max` on, as in `grid`, rounded, duplicates dropped.
        """
        check_steps(steps)
        if steps > self.T - 1:
            raise ValueError(f"steps must be at most {self.T - 1} for {self!r}: got {steps}")
        spacing = self.spacing if spacing is None else spacing
        if spacing == "uniform" and t_max is None:
            times = [max(int(self.T - 1 - self.T / steps * i), 0) for i in range(steps)] + [0]
        else:
            times = self.grid(steps, spacing, t_max).round().int().tolist()
        return list(dict.fromkeys(times))

    def check_times(self, times: Sequence[float]) -> None:
        if any(t % 1 for t in times):
            raise ValueError(f"timesteps must be integers for {self!r}: got {listed(times)}")
        super().check_times(times)

    def network_time(self, t: Times) -> Tensor:
        """What a network trained on this schedule takes for time t: (t + time_shift) 1000/T."""
        return (as_float64(t) + self.time_shift) * (1000.0 / self.T)

    def from_network_time(self, t: Times) -> Tensor:
        """Inverse of `network_time`; rounding of the network's own precision is undone at integer times."""
        t = as_float64(t) * (self.T / 1000.0) - self.time_shift
        nearest = t.round()
        return torch.where((t - nearest).abs() < 1e-3, t + (nearest - t).detach(), t)  # rounded, but its slope kept

    def clock(self, t: Times) -> Tensor:
        """(t + 1)/T: time t of T lies at the end of its interval."""
        return (as_float64(t) + 1) / self.T

    def from_clock(self, t: Times) -> Tensor:
        return as_float64(t) * self.T - 1


class VPLinear(VP):
    """betas linear from beta_1 to beta_T (Ho et al. 2020)."""

    def __init__(self, T: int = 1000, beta_1: float = 1e-4, beta_T: float = 0.02, *, time_shift: int = 0) -> None:
        super().__init__(np.linspace(beta_1, beta_T, _count(T)), time_shift=time_shift)
        self._config = {"T": T, "beta_1": beta_1, "beta_T": beta_T, "time_shift": time_shift}

    @property
    def config(self) -> dict[str, object]:
        return {"name": "VPLinear", **self._config}


class VPCosine(VP):
    """beta_i = min(1 - g((i+1)/T)/g(i/T), 0.999) with g(u) = cos^2((u + 0.008)/1.008 pi/2) (Nichol & Dhariwal 2021)."""

    def __init__(self, T: int = 1000, *, time_shift: int = 0) -> None:
        _count(T)
        g = [math.cos((i / T + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(T + 1)]
        super().__init__([min(1 - g[i + 1] / g[i], 0.999) for i in range(T)], time_shift=time_shift)
        self._config = {"T": T, "time_shift": time_shift}

    @property
    def config(self) -> dict[str, object]:
        return {"name": "VPCosine", **self._config}


def _count(T: int) -> int:
    if not isinstance(T, int) or T < 2:
        raise ValueError(f"T must be an integer of at least 2: got {T!r}")
    return T
