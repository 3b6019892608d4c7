"""Euler's and Heun's methods for the probability flow, with churn.

Source: Karras et al., NeurIPS 2022 (arXiv 2206.00364), algorithm 2.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

from gms_fast.schedules import Schedule
from gms_fast.schedules.discrete import VP
from gms_fast.schedules.levels import Levels
from gms_fast.solvers.base import Multistep
from gms_fast.steps import StepCoefficients

_MOST = math.sqrt(2) - 1  # of gamma, in the paper


@dataclass(frozen=True, kw_only=True)
class _Churning(Multistep):
    """Base class of Euler's and Heun's methods, which can add noise between steps."""

    churn: float = 0.0
    s_min: float = 0.0
    s_max: float = math.inf
    s_noise: float = 1.0
    spacing = "karras"

    def __post_init__(self) -> None:
        for name in ("churn", "s_min", "s_max", "s_noise"):
            value = getattr(self, name)
            known = isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0
            if not known or (math.isinf(value) and name != "s_max"):
                raise ValueError(f"{name} must be a non-negative number: got {value!r}")
        if not self.s_min <= self.s_max:
            raise ValueError(f"s_max must not be below s_min = {self.s_min:g}: got {self.s_max:g}")

    def _own_spacing(self, schedule: Schedule) -> str | float | None:
        finite = bool(schedule.log_snr([schedule.t_max, schedule.t_min]).isfinite().all())
        return super()._own_spacing(schedule) if finite else None

    def asked(self, schedule: Schedule, times: Sequence[float]) -> Sequence[float]:
        """Return the times of the network evaluations, which churn raises at the start of a step.

        The first time is never raised. If a time is repeated, its second occurrence is raised.
        """
        cleaned = self.denoise and float(schedule.sigma(times[-1])) > 0
        steps = len(set(times)) - 1 + cleaned
        if not self.churn or steps < 1:
            return times
        begins = [*(t != s for t, s in pairwise(times)), cleaned]
        later = (self.raised(schedule, t, steps) if begin else t for t, begin in zip(times, begins, strict=True))
        return [times[0], *list(later)[1:]]

    def raised(self, schedule: Schedule, t: float, steps: int) -> float:
        """Return the time of noise level (1 + gamma) sigma/alpha in a run of this many steps.

        It is `t` itself if the noise level of `t` lies outside [s_min, s_max].
        """
        lam, gamma = float(schedule.log_snr(t)), min(self.churn / steps, _MOST)
        if not (math.isfinite(lam) and self.s_min <= math.exp(-lam) <= self.s_max):
            return t
        found = min(float(schedule.inverse_log_snr(lam - math.log1p(gamma))), float(schedule.t_max))
        return max(t, float(round(found)) if isinstance(schedule, (VP, Levels)) else found)

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[list[float], float]]:
        asked = self.asked(schedule, times)
        steps = StepCoefficients.along(schedule, times, asked)
        alpha, sigma = ([float(v) for v in f(asked)] for f in (schedule.alpha, schedule.sigma))
        plan: list[tuple[list[float], float]] = []
        for i, k in enumerate(steps):
            weights = _predictor(k) if times[i] != times[i + 1] else _corrector(steps[i - 1] if i else None)
            raised = asked[i + 1] != times[i + 1]
            kept = alpha[i + 1] / k.alpha_s if raised else 1.0  # factor of the state at the next step's level
            std = self.s_noise * math.sqrt(sigma[i + 1] ** 2 - (kept * k.sigma_s) ** 2) if raised else 0.0
            plan.append(([kept * w for w in weights], std))
        return plan

    def replan(self, schedule: Schedule, times: Sequence[float], numbers: Sequence[Any]) -> Sequence[Any]:
        """Return the same plan, except that a corrector in the first step only adds noise to x.

        No step has ended at the first time of the run, so there is nothing to correct.
        """
        (weights, std), *rest = numbers or [([], 0.0)]
        first = ([weights[0], 0.0], std) if len(weights) > 2 else (weights, std)
        return [first, *rest][: len(numbers)]


@dataclass(frozen=True, kw_only=True)
class Euler(_Churning):
    """First-order solver of the probability flow in sigma/alpha, with optional churn.

    With y = x/alpha, l = sigma/alpha and m = E[x_0|x], the derivative of y with respect to l is d = (y - m)/l. A step
    is

        y_s = y_t + (l_s - l_t) d_t

    Churn adds noise between steps: every step except the first starts at a higher noise level l^ than the level l at
    which the preceding step ended,

        l^ = (1 + gamma) l,    y^ = y + s_noise sqrt(l^^2 - l^2) z

    Here gamma = min(churn/K, sqrt 2 - 1) if s_min <= l <= s_max, and 0 otherwise. K is the number of steps, including
    the step to zero noise.

    Use Euler to reproduce the samplers of EDM and k-diffusion. Without churn it is DDIM on another time grid.
    [`Heun`][gms_fast.solvers.Heun] has order 2 and costs two network evaluations per step. A run of K Euler steps costs
    K + 1 network evaluations, or K if the schedule ends without noise.

    Args:
        churn: Total amount of noise that the steps add, >= 0; called S_churn in the paper. 0 (default) adds none.
        s_min: Lowest noise level sigma/alpha at which noise is added (default 0).
        s_max: Highest noise level sigma/alpha at which noise is added (default infinity).
        s_noise: Standard deviation of the added noise z (default 1).

    Raises:
        ValueError: If an argument is negative or not a number, or if s_max < s_min.

    Note:
        After churn, the network is evaluated at the time that has noise level l^; `Stepper.timesteps` lists these
        times. For discrete schedules such a time is rounded to a whole number, and it never exceeds t_max. If it equals
        the time of l, no noise is added. Unlike in the paper, the noise level of x_T is not raised.

        `sample(steps=..)` uses the time grid "karras" (see `Schedule.grid`), or the schedule's own grid if the first or
        last noise level of the schedule is infinite or zero.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> solver = gms_fast.solvers.Euler(churn=2, s_min=0.05)
        >>> gms_fast.sample(model, 10, solver=solver, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Karras et al. 2022, arXiv 2206.00364.
    """

    order = 1

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return not self.churn


@dataclass(frozen=True, kw_only=True)
class Heun(_Churning):
    """Second-order solver of the probability flow in sigma/alpha, with optional churn.

    With y = x/alpha, l = sigma/alpha and m = E[x_0|x], the derivative of y with respect to l is d = (y - m)/l. A step
    is

        y_s = y_t + (l_s - l_t) (d_t + d_s')/2

    where d_s' is the derivative at y_s' = y_t + (l_s - l_t) d_t, the result of Euler's step. In terms of x, this is a
    predictor and a corrector, which are both linear in the data estimates m:

        x_s' = (sigma_s/sigma_t) x_t + (alpha_s - alpha_t sigma_s/sigma_t) m_t
        x_s  = x_s' + alpha_s (l_t/l_s - 1)/2 (m_s' - m_t)

    Use Heun to reproduce results of EDM, or if you can afford many network evaluations. A step evaluates the network
    twice, at x_t and at x_s'. A step to zero noise (l_s = 0) or from pure noise (l_t infinite) evaluates it once, and
    x_s = x_s'. A run of K steps costs 2 K + 1 evaluations if the schedule ends with noise, and 2 K - 1 if it ends
    without.

    Args:
        churn: Total amount of noise that the steps add, >= 0; called S_churn in the paper. 0 (default) adds none.
            [`Euler`][gms_fast.solvers.Euler] describes churn. With churn, the evaluation at which the next step starts
            uses the noise level to which churn has raised x_s.
        s_min: Lowest noise level sigma/alpha at which noise is added (default 0).
        s_max: Highest noise level sigma/alpha at which noise is added (default infinity).
        s_noise: Standard deviation of the added noise (default 1).

    Raises:
        ValueError: If an argument is negative or not a number, or if s_max < s_min.

    Note:
        A time s at which a step is corrected appears twice in the list of times. `sample(steps=..)` uses the time grid
        of the paper, "karras" (see `Schedule.grid`), or the schedule's own grid if the first or last noise level of the
        schedule is infinite or zero.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> gms_fast.sample(model, 5, solver=gms_fast.solvers.Heun(), n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Karras et al. 2022, arXiv 2206.00364.
    """

    order = 2
    linear = False  # `plan` alone, without repeated times, is Euler's

    def _visited(self, schedule: Schedule, times: list[float]) -> list[float]:
        return super()._visited(schedule, [t for t, _ in groupby(times)])  # given times may already be repeated

    def visits(self, schedule: Schedule, times: list[float]) -> list[float]:
        """Return the times, with each time at which a corrected step ends listed twice."""
        signal = schedule.alpha(times) > 0
        corrected = signal[:-1] & signal[1:] & (schedule.sigma(times)[1:] > 0)
        return [times[0], *(t for t, twice in zip(times[1:], corrected, strict=True) for _ in range(1 + bool(twice)))]


def _predictor(k: StepCoefficients) -> list[float]:
    """Return the weights of x_t and m_t in x_s'."""
    kept = k.sigma_s / k.sigma_t
    return [kept, k.alpha_s - kept * k.alpha_t]


def _corrector(k: StepCoefficients | None) -> list[float]:
    """Return the weights of x_s', m_s' and m_t in x_s.

    With None no step ended here, as in a run that begins here, and x stays.
    """
    if k is None:
        return [1.0, 0.0]
    half = k.alpha_s * (k.sigma_t * k.alpha_s / (k.alpha_t * k.sigma_s) - 1) / 2
    return [1.0, half, -half]
