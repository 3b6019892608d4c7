"""Noise schedules: x_t = alpha_t x_0 + sigma_t eps, in float64.

A schedule maps its own times (for discrete variance-preserving schedules: 0 .. T-1) to `alpha`, `sigma` and the
log signal-to-noise ratio, proposes times to visit, and translates a time into what the network was trained with.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

Times = float | Sequence[float] | np.ndarray | Tensor


def _float64(values: Times) -> Tensor:
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


class VP:
    """Discrete variance-preserving schedule: alpha_t^2 = prod_{i<=t} (1 - beta_i), sigma_t^2 = 1 - alpha_t^2.

    betas: (T,), each in (0, 1). Times are 0 .. T-1 (least to most noise); between integers log alpha is linear in t.
    time_shift: added to t before it is scaled to the network's 0..1000 (1 for networks trained on t = 1..T).
    Source: Ho et al. 2020 (arXiv 2006.11239).
    """

    def __init__(self, betas: Times, *, time_shift: int = 0) -> None:
        betas = _float64(betas)
        if betas.ndim != 1 or len(betas) < 2:
            raise ValueError(f"betas must be a sequence of at least two numbers: got shape {tuple(betas.shape)}")
        if not bool(((betas > 0) & (betas < 1)).all()):
            raise ValueError("betas must lie in (0, 1)")
        self.betas = betas
        self.T = len(betas)
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
        t = _float64(t)
        if not bool(((t >= 0) & (t <= self.T - 1)).all()):
            raise ValueError(f"times must lie in [0, {self.T - 1}] for {self!r}: got {t.min():g} .. {t.max():g}")
        low = t.floor().long().clamp(max=self.T - 2)
        table = self._log_alpha
        return torch.lerp(table[low], table[low + 1], t - low)

    def alpha(self, t: Times) -> Tensor:
        """Scale of the signal at times t, any shape, float64."""
        return self.log_alpha(t).exp()

    def sigma(self, t: Times) -> Tensor:
        """Standard deviation of the noise at times t, any shape, float64."""
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def log_snr(self, t: Times) -> Tensor:
        """lambda_t = log(alpha_t / sigma_t), decreasing in t."""
        return self.log_alpha(t) - self.sigma(t).log()

    def angle(self, t: Times) -> Tensor:
        """arctan(sigma_t / alpha_t) in (0, pi/2): the way from data to noise on the unit circle."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def inverse_log_snr(self, lam: Times) -> Tensor:
        """The time t in [0, T-1] with log_snr(t) = lam; values outside the schedule's range give its ends."""
        lam = _float64(lam)
        log_alpha = -0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam)
        table = self._log_alpha.flip(0).numpy()  # increasing, as numpy.interp wants it
        times = np.arange(self.T - 1, -1, -1, dtype=np.float64)
        return torch.from_numpy(np.interp(np.atleast_1d(log_alpha.numpy()), table, times)).reshape(lam.shape)

    def timesteps(self, steps: int, spacing: str = "uniform") -> list[int]:
        """Integer times to visit, noisiest first, ending at 0.

        spacing  "uniform": t_i = max(int(T-1 - (T/K) i), 0), i = 0..K-1, then 0: the released grid.
                 "log-snr": uniform in log(alpha/sigma), rounded, duplicates dropped.
                 "angle": uniform in arctan(sigma/alpha), rounded, duplicates dropped: the noise levels of the cosine
                 schedule at uniform times, on any schedule.
                 a float p > 0: t_i = round((T-1)(1 - (i/K)^p)); p < 1 spends more steps at low noise.
        """
        if steps < 1:
            raise ValueError(f"steps must be at least 1: got {steps}")
        if steps > self.T - 1:
            raise ValueError(f"steps must be at most {self.T - 1} for {self!r}: got {steps}")
        ramp = np.arange(steps + 1) / steps
        if spacing == "uniform":
            times = [max(int(self.T - 1 - self.T / steps * i), 0) for i in range(steps)] + [0]
        elif spacing == "log-snr":
            ends = self.log_snr([self.T - 1.0, 0.0])
            times = self.inverse_log_snr(ends[0] + (ends[1] - ends[0]) * torch.from_numpy(ramp)).round().int().tolist()
        elif spacing == "angle":
            first, last = self.angle([self.T - 1.0, 0.0])
            angles = first + (last - first) * torch.from_numpy(ramp)
            times = self.inverse_log_snr(-angles.tan().log()).round().int().tolist()
        elif isinstance(spacing, int | float) and spacing > 0:
            times = np.rint((self.T - 1) * (1 - ramp ** float(spacing))).astype(int).tolist()
        else:
            raise ValueError(f'spacing must be "uniform", "log-snr", "angle" or a positive exponent: got {spacing!r}')
        return list(dict.fromkeys(times))

    def check_times(self, times: Sequence[float]) -> None:
        """Raise ValueError unless `times` are at least two of this schedule's times, strictly decreasing."""
        if len(times) < 2 or any(a <= b for a, b in pairwise(times)):
            raise ValueError(f"timesteps must be at least two strictly decreasing times: got {_listed(times)}")
        if any(t % 1 for t in times):
            raise ValueError(f"timesteps must be integers for {self!r}: got {_listed(times)}")
        self.log_alpha(times)

    def network_time(self, t: Times) -> Tensor:
        """What a network trained on this schedule takes for time t: (t + time_shift) 1000/T."""
        return (_float64(t) + self.time_shift) * (1000.0 / self.T)

    def from_network_time(self, t: Times) -> Tensor:
        """Inverse of `network_time`; rounding of the network's own precision is undone at integer times."""
        t = _float64(t) * (self.T / 1000.0) - self.time_shift
        nearest = t.round()
        return torch.where((t - nearest).abs() < 1e-3, nearest, t)


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


def _listed(times: Sequence[float]) -> str:
    return "[" + ", ".join(f"{t:g}" for t in times) + "]"


def _count(T: int) -> int:
    if not isinstance(T, int) or T < 2:
        raise ValueError(f"T must be an integer of at least 2: got {T!r}")
    return T


_BY_NAME = {"VP": VP, "VPLinear": VPLinear, "VPCosine": VPCosine}
_ALIASES = {"linear": "VPLinear", "cosine": "VPCosine"}


def names() -> list[str]:
    """The schedules that a name alone describes."""
    return sorted(_ALIASES)


def build(description: str | dict[str, object]) -> VP:
    """A schedule from a name ("linear", "cosine") or from the `config` of one."""
    options = {"name": description} if isinstance(description, str) else dict(description)
    name = options.pop("name", None)
    kind = _BY_NAME.get(_ALIASES.get(str(name), str(name)))
    if kind is None:
        raise ValueError(f"schedule must be one of {', '.join(names())}: got {name!r}")
    return kind(**options)
