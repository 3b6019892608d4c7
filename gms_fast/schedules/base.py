"""The base of all schedules: x_t = alpha_t x_0 + sigma_t eps, its log signal-to-noise ratio, and grids of times."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from gms_fast.constants import Identified

MOST_TIMES = 1_000_000  # of a discrete schedule, which keeps numbers for each
Times = float | Sequence[float] | np.ndarray | Tensor


def as_float64(values: Times) -> Tensor:
    """`values` as a float64 tensor on the CPU."""
    values = values.cpu() if isinstance(values, Tensor) else values  # first: devices may be without float64
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


class Schedule(Identified, ABC):
    """Noise levels over time, in float64. alpha(t) and sigma(t) alone serve `sample` with explicit `timesteps`.

    t_max, t_min  the noisiest time and the last one with noise, between which the grids lie
    spacing       the grid of `timesteps` unless a solver or the user names another
    rho           exponent of "karras"
    chosen        whether that grid was asked for, so that solvers keep it
    """

    t_max: float
    t_min: float
    spacing: str | float = "uniform"
    rho: float = 7.0
    chosen: bool = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def config(self) -> dict[str, object]:
        """The arguments with which `gms_fast.schedules.build` makes this schedule again."""
        raise NotImplementedError(f"{type(self).__name__} has no config")

    @property
    def described(self) -> object:
        """The config, or the text of a schedule that has none: by it runs and files know the schedule."""
        try:
            return self.config
        except NotImplementedError:
            return repr(self)

    @abstractmethod
    def alpha(self, t: Times) -> Tensor:
        """Scale of the signal at times t, any shape, float64."""

    @abstractmethod
    def sigma(self, t: Times) -> Tensor:
        """Standard deviation of the noise at times t, any shape, float64."""

    def log_snr(self, t: Times) -> Tensor:
        """lambda_t = log(alpha_t / sigma_t), decreasing in t."""
        return self.alpha(t).log() - self.sigma(t).log()

    def inverse_log_snr(self, lam: Times) -> Tensor:
        """The time with log_snr(t) = lam."""
        raise NotImplementedError(f"{type(self).__name__} cannot find the time of a noise level: give timesteps")

    def angle(self, t: Times) -> Tensor:
        """arctan(sigma_t / alpha_t) in [0, pi/2]: the way from data to noise on the unit circle."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def network_time(self, t: Times) -> Tensor:
        """The number that a network trained on this schedule takes for time t."""
        return as_float64(t)

    def from_network_time(self, t: Times) -> Tensor:
        """Inverse of `network_time`."""
        return as_float64(t)

    def asked_like(self, other: "Schedule | None") -> "Schedule":
        """This schedule, asking the network at times as `other` does, where this one does not say."""
        return self

    @property
    def later_start(self) -> str:
        """Advice for a first time without signal."""
        return "start at a later time"

    def check_signal(self, t: float, solver: str) -> None:
        """Raise ValueError where alpha(t) = 0: noise moments tell nothing of x_0 there. solver: who needs them."""
        if not float(self.alpha(t)) > 0:
            raise ValueError(
                f"timesteps must start where alpha > 0 for {solver}: {self!r} has alpha = 0 at t = {t:g}; "
                f"{self.later_start}"
            )

    def clock(self, t: Times) -> Tensor:
        """Continuous time, 0 at the data: what "quadratic" spacing is quadratic in."""
        return as_float64(t)

    def from_clock(self, t: Times) -> Tensor:
        """Inverse of `clock`."""
        return as_float64(t)

    @property
    def whole_times(self) -> Tensor | None:
        """All times of a schedule that has finitely many, ascending, float64; None for one of continuous time."""
        return None

    def spaced(self, ramp: Tensor) -> Tensor:
        """Times at shares `ramp` in [0, 1] of the way from t_max to t_min, as the schedule's own grid has them."""
        return self._spaced(as_float64([self.t_max, self.t_min]), as_float64(ramp), self.spacing)

    def share(self, t: Times) -> Tensor:
        """Shares in [0, 1] of the way from t_min to t_max: t = spaced(1 - share)."""
        t = as_float64(t)
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(53):  # halvings, until a double tells no more
            middle = (low + high) / 2
            later = self.spaced(1 - middle) > t
            low, high = torch.where(later, low, middle), torch.where(later, middle, high)
        return torch.where(t >= self.t_max, 1.0, low)

    def timesteps(self, steps: int, spacing: str | float | None = None, t_max: float | None = None) -> list[float]:
        """Times to visit, noisiest first, steps + 1 of them, from `t_max` on if that is given.

        spacing  as in `grid`, this schedule's own if None
        """
        return self.grid(steps, self.spacing if spacing is None else spacing, t_max).tolist()

    def grid(self, steps: int, spacing: str | float, t_max: float | None = None, t_min: float | None = None) -> Tensor:
        """steps + 1 times from t_max to t_min, not rounded.

        spacing  "uniform" in time, "quadratic": in its square root, "log-snr": in log(alpha/sigma),
                 "karras": in (sigma/alpha)^(1/rho) (Karras et al. 2022), "angle": in arctan(sigma/alpha),
                 a number p > 0: t_min + (t_max - t_min) (1 - (i/K)^p), so that p < 1 spends more steps at low noise
        """
        check_steps(steps)
        ends = as_float64([self.t_max if t_max is None else t_max, self.t_min if t_min is None else t_min])
        times = self._spaced(ends, torch.arange(steps + 1, dtype=torch.float64, device="cpu") / steps, spacing)
        times[[0, -1]] = ends
        return times

    def _spaced(self, ends: Tensor, ramp: Tensor, spacing: str | float) -> Tensor:
        if spacing == "uniform":
            return between(ends, ramp)
        if spacing == "quadratic":
            return self.from_clock(between(self.clock(ends).sqrt(), ramp) ** 2)
        if spacing == "angle":
            return self.inverse_log_snr(-between(self.angle(ends), ramp).tan().log())
        if spacing == "karras":
            level = between((-self._finite_log_snr(ends, spacing) / self.rho).exp(), ramp)
            return self.inverse_log_snr(-self.rho * level.log())
        if spacing == "log-snr":
            return self.inverse_log_snr(between(self._finite_log_snr(ends, spacing), ramp))
        if isinstance(spacing, (int, float)) and not isinstance(spacing, bool) and spacing > 0:
            return between(ends, ramp ** float(spacing))
        raise ValueError(
            'spacing must be "uniform", "quadratic", "log-snr", "karras", "angle" or a positive exponent: '
            f"got {spacing!r}"
        )

    def _finite_log_snr(self, ends: Tensor, spacing: str) -> Tensor:
        lam = self.log_snr(ends)
        if not bool(lam.isfinite().all()):
            got = " .. ".join(f"{v:g}" for v in lam.tolist())
            raise ValueError(f"spacing {spacing!r} needs finite log(alpha/sigma) at both ends: got {got}")
        return lam

    def agrees(self, other: "Schedule", times: Times) -> bool:
        """Tell whether another schedule has the same noise levels and network times at these times."""
        if other is self:
            return True
        try:
            return all(
                torch.allclose(getattr(self, name)(times), getattr(other, name)(times), rtol=1e-9)
                for name in ("alpha", "sigma", "network_time")
            )
        except ValueError:  # not times of that schedule
            return False

    def check_times(self, times: Sequence[float]) -> None:
        """Raise ValueError unless `times` are times of this schedule, at least one, strictly decreasing."""
        if not times or any(not a > b for a, b in pairwise(times)):
            raise ValueError(f"timesteps must be one or more strictly decreasing times: got {listed(times)}")
        self.sigma(times)  # which knows its range


class VariancePreserving(Schedule):
    """alpha_t^2 + sigma_t^2 = 1, by log alpha."""

    @abstractmethod
    def log_alpha(self, t: Times) -> Tensor:
        """log alpha_t, any shape, float64."""

    def alpha(self, t: Times) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Times) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def log_snr(self, t: Times) -> Tensor:
        return self.log_alpha(t) - self.sigma(t).log()


def log_alpha_of(lam: Tensor) -> Tensor:
    """log alpha of a variance-preserving schedule where log(alpha/sigma) = lam."""
    return -0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam)


def between(ends: Tensor, ramp: Tensor) -> Tensor:
    """The numbers at `ramp` in [0, 1] of the way from the first of two ends to the last."""
    first, last = ends.unbind()
    return torch.lerp(first, last, ramp)


def check_range(t: Tensor, first: float, last: float, name: str) -> Tensor:
    """t in [first, last], where float32 may have rounded it out of there; ValueError for what lies farther outside."""
    slack = max(abs(first), abs(last)) * 2.0**-23
    if not bool(((t >= first - slack) & (t <= last + slack)).all()):
        got = f"{float(t.min()):g} .. {float(t.max()):g}"
        raise ValueError(f"times must lie in [{first:g}, {last:g}] for {name}: got {got}")
    return t.clamp(first, last)


def check_steps(steps: int) -> None:
    """Raise ValueError unless there is at least one step."""
    if steps < 1:
        raise ValueError(f"steps must be at least 1: got {steps}")


def distinct(times: Sequence[float]) -> list[float]:
    """Times that fall by at least 1, as near to those given as may be, to 0; there must be room for all."""
    found = [times[0]]
    for left, t in zip(range(len(times) - 2, -1, -1), times[1:], strict=True):
        found.append(min(max(t, left), found[-1] - 1))
    return found


def listed(times: Sequence[float]) -> str:
    return "[" + ", ".join(f"{t:g}" for t in times) + "]"
