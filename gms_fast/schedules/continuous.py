"""Continuous-time schedules: the VP SDE, EDM (variance exploding) and flow matching."""

import math

import torch
from torch import Tensor

from gms_fast.schedules.base import (
    Schedule,
    Times,
    VariancePreserving,
    as_float64,
    between,
    check_range,
    check_steps,
    log_alpha_of,
)
from gms_fast.storage.schema import Optional, Real, argument


class _ContinuousVP(VariancePreserving):
    """Variance-preserving schedule in continuous time, from 0 (data) to t_max."""

    t_min = 1e-3

    def _checked(self, t: Times) -> Tensor:
        return check_range(as_float64(t), 0.0, self.t_max, repr(self))

    def network_time(self, t: Times) -> Tensor:
        """Return 999 t, the network time of score-based SDE networks."""
        return as_float64(t) * 999.0

    def from_network_time(self, t: Times) -> Tensor:
        return as_float64(t) / 999.0


class VPContinuous(_ContinuousVP):
    """Variance-preserving (VP) SDE with a linear beta(t), for t in [0, 1].

        log alpha_t = -(beta_1 - beta_0) t^2/4 - beta_0 t/2,   sigma_t^2 = 1 - alpha_t^2

    Time grids end at t = 10^-3. The network time is 999 t.

    Args:
        beta_0: Value of beta at t = 0, > 0.
        beta_1: Value of beta at t = 1, > beta_0.

    Raises:
        ValueError: Unless 0 < beta_0 < beta_1.

    Examples:
        >>> schedule = gms_fast.schedules.VPContinuous()
        >>> schedule.timesteps(4)
        [1.0, 0.75025, 0.5005, 0.25075, 0.001]

    References:
        Song et al. 2021, arXiv 2011.13456.
    """

    t_max = 1.0

    def __init__(self, beta_0: float = 0.1, beta_1: float = 20.0) -> None:
        beta_0, beta_1 = argument("beta_0", beta_0, Real()), argument("beta_1", beta_1, Real())
        if not 0 < beta_0 < beta_1:
            raise ValueError(f"beta_0, beta_1 must have 0 < beta_0 < beta_1: got {beta_0}, {beta_1}")
        self.beta_0, self.beta_1 = float(beta_0), float(beta_1)

    def __repr__(self) -> str:
        return f"VPContinuous(beta_0={self.beta_0:g}, beta_1={self.beta_1:g})"

    @property
    def config(self) -> dict[str, object]:
        return {"name": "VPContinuous", "beta_0": self.beta_0, "beta_1": self.beta_1}

    def log_alpha(self, t: Times) -> Tensor:
        t = self._checked(t)
        return -0.25 * t * t * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0

    def inverse_log_snr(self, lam: Times) -> Tensor:
        """Return the time t that solves log alpha_t = -log(1 + exp(-2 lam))/2.

        The quadratic equation is solved in a form that avoids cancellation.
        """
        lam = as_float64(lam)
        q = -4 * (self.beta_1 - self.beta_0) * log_alpha_of(lam)
        t = q / ((self.beta_1 - self.beta_0) * ((self.beta_0**2 + q).sqrt() + self.beta_0))
        return t.clamp(0.0, self.t_max)


class VPContinuousCosine(_ContinuousVP):
    """Variance-preserving cosine schedule in continuous time, for t in [0, 0.9946].

        alpha_t = cos((t + a)/(1 + a) pi/2) / cos(a/(1 + a) pi/2),   a = 0.008,   sigma_t^2 = 1 - alpha_t^2

    Time grids end at t = 10^-3. The network time is 999 t.

    Examples:
        >>> gms_fast.schedules.VPContinuousCosine().alpha([0.0, 0.5])
        tensor([1.0000, 0.7027], dtype=torch.float64)

    References:
        Nichol & Dhariwal 2021, arXiv 2102.09672.
    """

    t_max = 0.9946
    _a = 0.008

    @property
    def config(self) -> dict[str, object]:
        return {"name": "VPContinuousCosine"}

    def _cos(self, t: Tensor | float) -> Tensor:
        return (((as_float64(t) + self._a) / (1 + self._a)) * (math.pi / 2)).cos()

    def log_alpha(self, t: Times) -> Tensor:
        return self._cos(self._checked(t)).log() - self._cos(0.0).log()

    def inverse_log_snr(self, lam: Times) -> Tensor:
        lam = as_float64(lam)
        alpha = log_alpha_of(lam).exp()
        t = (2 * (1 + self._a) / math.pi) * (alpha * self._cos(0.0)).acos() - self._a
        return t.clamp(0.0, self.t_max)


class EDM(Schedule):
    """EDM schedule: alpha = 1, sigma(t) = t, so time is the standard deviation of the noise.

    A grid of K steps consists of K noise levels from sigma_max to sigma_min, followed by 0. The default spacing is
    "karras".

    Args:
        sigma_min: Lowest nonzero noise level of a grid, > 0.
        sigma_max: Highest noise level of a grid, > sigma_min.
        rho: Exponent of the "karras" spacing, > 0.

    Raises:
        ValueError: Unless 0 < sigma_min < sigma_max and rho > 0.

    Examples:
        >>> [round(t, 3) for t in gms_fast.schedules.EDM().timesteps(3)]
        [80.0, 2.515, 0.002, 0.0]

    References:
        Karras et al. 2022, arXiv 2206.00364.
    """

    spacing = "karras"

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> None:
        sigma_min, sigma_max = argument("sigma_min", sigma_min, Real()), argument("sigma_max", sigma_max, Real())
        rho = argument("rho", rho, Real())
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"sigma_min, sigma_max must have 0 < sigma_min < sigma_max: got {sigma_min}, {sigma_max}")
        if not rho > 0:
            raise ValueError(f"rho must be positive: got {rho}")
        self.t_min, self.t_max, self.rho = float(sigma_min), float(sigma_max), float(rho)

    def __repr__(self) -> str:
        return f"EDM(sigma_min={self.t_min:g}, sigma_max={self.t_max:g}, rho={self.rho:g})"

    @property
    def config(self) -> dict[str, object]:
        return {"name": "EDM", "sigma_min": self.t_min, "sigma_max": self.t_max, "rho": self.rho}

    def alpha(self, t: Times) -> Tensor:
        return torch.ones_like(as_float64(t))

    def sigma(self, t: Times) -> Tensor:
        return check_range(as_float64(t), 0.0, self.t_max, repr(self))

    def inverse_log_snr(self, lam: Times) -> Tensor:
        return (-as_float64(lam)).exp().clamp(max=self.t_max)

    def timesteps(self, steps: int, spacing: str | float | None = None, t_max: float | None = None) -> list[float]:
        check_steps(steps)
        if steps == 1:
            return [self.t_max if t_max is None else t_max, 0.0]
        return [*super().timesteps(steps - 1, spacing, t_max), 0.0]


class Flow(Schedule):
    """Linear flow matching: alpha = 1 - t, sigma = t, for t in [0, 1].

    Args:
        t_max: First time of a grid. At t = 1 the state contains no signal, so solvers that divide by alpha and
            grids that are uniform in log(alpha/sigma) need t_max < 1.
        t_min: Last time of a grid, with 0 <= t_min < t_max <= 1.
        shift: Shift s > 0 of the "uniform" spacing. It moves each of the equally spaced times t to s t/(1 + (s - 1) t)
            (Esser et al. 2024, arXiv 2403.03206). With 1, the times are not shifted.
        time_scale: Network time per unit of t, > 0, for example 1000 for diffusers' transformers. Defaults to the
            time scale of the model's own schedule, or to 1 if that is not known.

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> gms_fast.schedules.Flow().timesteps(4)
        [1.0, 0.75, 0.5, 0.25, 0.0]
        >>> [round(t, 3) for t in gms_fast.schedules.Flow(shift=3).timesteps(4)]  # more steps at high noise
        [1.0, 0.9, 0.75, 0.5, 0.0]

    References:
        Lipman et al. 2023, arXiv 2210.02747.
    """

    def __init__(
        self, t_max: float = 1.0, t_min: float = 0.0, *, shift: float = 1.0, time_scale: float | None = None
    ) -> None:
        t_max, t_min = argument("t_max", t_max, Real()), argument("t_min", t_min, Real())
        shift, time_scale = argument("shift", shift, Real()), argument("time_scale", time_scale, Optional(Real()))
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"t_max, t_min must have 0 <= t_min < t_max <= 1: got {t_max}, {t_min}")
        if not shift > 0:
            raise ValueError(f"shift must be positive: got {shift}")
        if time_scale is not None and not time_scale > 0:
            raise ValueError(f"time_scale must be positive, or None: got {time_scale}")
        self.t_max, self.t_min = float(t_max), float(t_min)
        self.shift, self.time_scale = float(shift), time_scale
        self.chosen = self.shift != 1

    def __repr__(self) -> str:
        shift = "" if self.shift == 1 else f", shift={self.shift:g}"
        return f"Flow(t_max={self.t_max:g}, t_min={self.t_min:g}{shift})"

    @property
    def later_start(self) -> str:
        return "start at a less noisy time, as with Flow(t_max=0.999)"

    @property
    def config(self) -> dict[str, object]:
        ends = {"t_max": self.t_max, "t_min": self.t_min}
        return {"name": "Flow", **ends, "shift": self.shift, "time_scale": self.time_scale}

    def asked_like(self, other: Schedule | None) -> Schedule:
        said = other.time_scale if isinstance(other, Flow) else None
        if self.time_scale is not None or said is None:
            return self
        return Flow(self.t_max, self.t_min, shift=self.shift, time_scale=said)

    def alpha(self, t: Times) -> Tensor:
        return 1 - self.sigma(t)

    def sigma(self, t: Times) -> Tensor:
        return check_range(as_float64(t), 0.0, 1.0, repr(self))

    def inverse_log_snr(self, lam: Times) -> Tensor:
        return torch.sigmoid(-as_float64(lam))

    def network_time(self, t: Times) -> Tensor:
        return as_float64(t) * (self.time_scale or 1.0)

    def from_network_time(self, t: Times) -> Tensor:
        return as_float64(t) / (self.time_scale or 1.0)

    def _spaced(self, ends: Tensor, ramp: Tensor, spacing: str | float) -> Tensor:
        if spacing != "uniform" or self.shift == 1:
            return super()._spaced(ends, ramp, spacing)
        even = between(_shifted(ends, 1 / self.shift), ramp)
        return _shifted(even, self.shift)


def _shifted(t: Tensor, shift: float) -> Tensor:
    return shift * t / (1 + (shift - 1) * t)
