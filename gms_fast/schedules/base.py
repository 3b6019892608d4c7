"""Base class of all schedules: noise levels, log(alpha_t/sigma_t) and time grids."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from gms_fast.constants import Identified
from gms_fast.schedules import formulas
from gms_fast.schedules.formulas import Times as Times
from gms_fast.schedules.formulas import as_float64 as as_float64

MOST_TIMES = 1_000_000  # limit for discrete schedules, which store numbers for each time


class Schedule(Identified, ABC):
    """Base class of noise schedules: x_t = alpha_t x_0 + sigma_t eps, in float64.

    A subclass must define `alpha` and `sigma`, which are enough for `sample` with explicit `timesteps`. Time grids
    also need `t_max` and `t_min`, and the spacings "log-snr", "karras" and "angle" need `inverse_log_snr`. You can
    write these methods as plain formulas. They receive times as a float64 tensor, or one number at a time if the
    formula does not accept tensors.

    Attributes:
        t_max: Noisiest time, where time grids start.
        t_min: Least noisy time, where time grids end.
        spacing: Default spacing of `timesteps`. A solver or the caller may choose a different one.
        rho: Exponent of the "karras" spacing.
        chosen: Whether the user chose the spacing. If True, solvers do not change it.

    Examples:
        >>> class Square(gms_fast.schedules.Schedule):
        ...     t_max, t_min = 1.0, 0.0
        ...     def sigma(self, t):
        ...         return t**2
        ...     def alpha(self, t):
        ...         return 1 - self.sigma(t)
        >>> Square().timesteps(4)
        [1.0, 0.75, 0.5, 0.25, 0.0]
        >>> gms_fast.sample(lambda x, t: x, 4, solver="ddim", schedule=Square(), prediction="flow", shape=(3,)).shape
        torch.Size([16, 3])
    """

    t_max: float
    t_min: float
    spacing: str | float = "uniform"
    rho: float = 7.0
    chosen: bool = False

    def __init_subclass__(cls, **keywords: object) -> None:
        super().__init_subclass__(**keywords)
        if not cls.__module__.startswith("gms_fast."):
            formulas.convert(cls)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @property
    def config(self) -> dict[str, object]:
        """Name and arguments from which `build` recreates the schedule."""
        raise NotImplementedError(f"{type(self).__name__} has no config: define the property to store the schedule")

    @property
    def described(self) -> object:
        """Config of the schedule, or its string representation if it has no config.

        Stored runs and files use it to compare schedules.
        """
        try:
            return self.config
        except NotImplementedError:
            return repr(self)

    @abstractmethod
    def alpha(self, t: Times) -> Tensor:
        """Return the signal scale alpha_t at times t of any shape, in float64."""

    @abstractmethod
    def sigma(self, t: Times) -> Tensor:
        """Return the noise standard deviation sigma_t at times t of any shape, in float64."""

    def log_snr(self, t: Times) -> Tensor:
        """Return lambda_t = log(alpha_t/sigma_t), which decreases as t increases."""
        return self.alpha(t).log() - self.sigma(t).log()

    def inverse_log_snr(self, lam: Times) -> Tensor:
        """Return the time t at which log_snr(t) = lam."""
        raise NotImplementedError(
            f"{type(self).__name__} cannot find the time of a noise level: define inverse_log_snr, or give timesteps"
        )

    def angle(self, t: Times) -> Tensor:
        """Return arctan(sigma_t/alpha_t) in [0, pi/2], which increases with the noise."""
        return torch.atan2(self.sigma(t), self.alpha(t))

    def levels_at(self, times: Sequence[float]) -> list[tuple[float, float]]:
        """Return (alpha_t, sigma_t) of each time.

        Args:
            times: Times, noisiest first.

        Returns:
            List of pairs.

        Raises:
            ValueError: If alpha or sigma is negative or not finite, or if both are 0.
        """
        found = list(zip(self.alpha(times).tolist(), self.sigma(times).tolist(), strict=True))
        for t, (alpha, sigma) in zip(times, found, strict=True):
            for name, level in (("alpha", alpha), ("sigma", sigma)):
                if not 0 <= level < math.inf:
                    what = f"{type(self).__name__}.{name}"
                    raise ValueError(f"{what} must be finite and not negative: got {level:g} at t = {t:g}")
            if alpha == sigma == 0:
                what = f"{type(self).__name__}.alpha and .sigma"
                raise ValueError(f"{what} must not be 0 at the same time: got 0 and 0 at t = {t:g}")
        return found

    def check_noise_at(self, t: float) -> None:
        """Raise ValueError if there is no noise at a time where a step begins.

        Args:
            t: Time where a step begins.
        """
        [(_, sigma)] = self.levels_at([t])
        if sigma == 0:
            what = f"{type(self).__name__}.sigma"
            raise ValueError(f"{what} must be above 0 at every time where a step begins: got 0 at t = {t:g}")

    def network_time(self, t: Times) -> Tensor:
        """Return the time value to pass to a network trained on this schedule, for time t."""
        return as_float64(t)

    def from_network_time(self, t: Times) -> Tensor:
        """Return the time whose network time is t. This is the inverse of `network_time`."""
        return as_float64(t)

    def asked_like(self, other: "Schedule | None") -> "Schedule":
        """Return this schedule with the network times of `other`, unless this schedule sets its own."""
        return self

    @property
    def later_start(self) -> str:
        """Advice for the error message if a run would start at a time without signal."""
        return "start at a less noisy time"

    def check_signal(self, t: float, solver: str, instead: str = "") -> None:
        """Raise ValueError if alpha(t) = 0.

        At such a time, noise moments contain no information about x_0.

        Args:
            t: First time of a run.
            solver: Name of the solver that needs noise moments, for the message.
            instead: Alternative to suggest in the message.
        """
        if not float(self.alpha(t)) > 0:
            raise ValueError(
                f"timesteps must start where alpha > 0 for {solver}: {self!r} has alpha = 0 at t = {t:g}; "
                f"{self.later_start}{instead}"
            )

    def clock(self, t: Times) -> Tensor:
        """Return continuous time, with 0 at the data; "quadratic" grids use its square root."""
        return as_float64(t)

    def from_clock(self, t: Times) -> Tensor:
        """Return the time at which `clock` has the value t. This is the inverse of `clock`."""
        return as_float64(t)

    @property
    def whole_times(self) -> Tensor | None:
        """All times of a discrete schedule, ascending, in float64. None if it is continuous."""
        return None

    def spaced(self, ramp: Tensor) -> Tensor:
        """Return times on the schedule's own grid.

        Args:
            ramp: Positions on the grid, as fractions in [0, 1] of the way from t_max to t_min.
        """
        return self._spaced(as_float64([self.t_max, self.t_min]), as_float64(ramp), self.spacing)

    def share(self, t: Times) -> Tensor:
        """Return the position of t on the schedule's grid, as a fraction in [0, 1].

        It is 0 at t_min and 1 at t_max, so t = spaced(1 - share).
        """
        t = as_float64(t)
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(53):  # bisection down to the precision of a double
            middle = (low + high) / 2
            later = self.spaced(1 - middle) > t
            low, high = torch.where(later, low, middle), torch.where(later, middle, high)
        return torch.where(t >= self.t_max, 1.0, low)

    def timesteps(self, steps: int, spacing: str | float | None = None, t_max: float | None = None) -> list[float]:
        """Return the times of a run, noisiest first.

        Args:
            steps: Number of steps K >= 1.
            spacing: Spacing of the times, as in [`grid`][gms_fast.schedules.Schedule.grid]. Defaults to the schedule's
                `spacing`.
            t_max: First time. Defaults to the schedule's noisiest time.

        Returns:
            List of K + 1 times.
        """
        return self.grid(steps, self.spacing if spacing is None else spacing, t_max).tolist()

    def grid(self, steps: int, spacing: str | float, t_max: float | None = None, t_min: float | None = None) -> Tensor:
        """Return K + 1 times from t_max to t_min, without rounding.

        Args:
            steps: Number of steps K >= 1.
            spacing: Quantity in which the times are equally spaced: time ("uniform"), the square root of time
                ("quadratic"), log(alpha/sigma) ("log-snr"), (sigma/alpha)^(1/rho) ("karras", Karras et al. 2022) or
                arctan(sigma/alpha) ("angle"). A number p > 0 gives the times t_min + (t_max - t_min) (1 - (i/K)^p), so
                p < 1 places more steps at low noise.
            t_max: First time. Defaults to the schedule's `t_max`.
            t_min: Last time. Defaults to the schedule's `t_min`.

        Raises:
            ValueError: If `steps` < 1, if `spacing` is unknown, or if `spacing` needs log(alpha/sigma) and it is
                infinite at the first or last time.
        """
        check_steps(steps)
        ends = as_float64([self.t_max if t_max is None else t_max, self.t_min if t_min is None else t_min])
        self.check_noise_at(float(ends[0]))
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
        """Return True if another schedule has the same levels and network times at these times."""
        if other is self:
            return True
        try:
            return all(
                torch.allclose(getattr(self, name)(times), getattr(other, name)(times), rtol=1e-9)
                for name in ("alpha", "sigma", "network_time")
            )
        except ValueError:  # the other schedule does not have these times
            return False

    def check_times(self, times: Sequence[float]) -> None:
        """Raise ValueError unless `times` are one or more strictly decreasing times of the schedule."""
        if not times or any(not a > b for a, b in pairwise(times)):
            raise ValueError(f"timesteps must be one or more strictly decreasing times: got {listed(times)}")
        self.sigma(times)  # checks the range


class VariancePreserving(Schedule):
    """Schedule with alpha_t^2 + sigma_t^2 = 1, defined by log alpha_t."""

    @abstractmethod
    def log_alpha(self, t: Times) -> Tensor:
        """Return log alpha_t at times t of any shape, float64."""

    def alpha(self, t: Times) -> Tensor:
        return self.log_alpha(t).exp()

    def sigma(self, t: Times) -> Tensor:
        return (-torch.expm1(2 * self.log_alpha(t))).sqrt()

    def log_snr(self, t: Times) -> Tensor:
        return self.log_alpha(t) - self.sigma(t).log()


def log_alpha_of(lam: Tensor) -> Tensor:
    """Return log alpha of a variance-preserving schedule where log(alpha/sigma) = lam."""
    return -0.5 * torch.logaddexp(torch.zeros_like(lam), -2 * lam)


def between(ends: Tensor, ramp: Tensor) -> Tensor:
    """Interpolate linearly between two ends, at fractions `ramp` in [0, 1]."""
    first, last = ends.unbind()
    return torch.lerp(first, last, ramp)


def check_range(t: Tensor, first: float, last: float, name: str) -> Tensor:
    """Return t clamped to [first, last]; raise ValueError for times outside.

    Times that float32 rounding moved out of the range are accepted.
    """
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
    """Return whole times that fall by at least 1 down to 0, close to the given ones.

    Each is as near to the given one as possible. There must be enough whole times for all.
    """
    found = [times[0]]
    for left, t in zip(range(len(times) - 2, -1, -1), times[1:], strict=True):
        found.append(min(max(t, left), found[-1] - 1))
    return found


def listed(times: Sequence[float]) -> str:
    return "[" + ", ".join(f"{t:g}" for t in times) + "]"
