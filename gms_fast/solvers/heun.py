"""Euler's and Heun's methods for the probability flow, with churn: Karras et al., NeurIPS 2022 (arXiv 2206.00364),
algorithm 2.
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
                raise ValueError(f"{name} must be a number that is not negative: got {value!r}")
        if not self.s_min <= self.s_max:
            raise ValueError(f"s_max must not be below s_min = {self.s_min:g}: got {self.s_max:g}")

    def _own_spacing(self, schedule: Schedule) -> str | float | None:
        finite = bool(schedule.log_snr([schedule.t_max, schedule.t_min]).isfinite().all())
        return super()._own_spacing(schedule) if finite else None

    def asked(self, schedule: Schedule, times: Sequence[float]) -> Sequence[float]:
        """The times, those later by churn where a step begins, but for the first; of a pair the second."""
        cleaned = self.denoise and float(schedule.sigma(times[-1])) > 0
        steps = len(set(times)) - 1 + cleaned
        if not self.churn or steps < 1:
            return times
        begins = [*(t != s for t, s in pairwise(times)), cleaned]
        later = (self.raised(schedule, t, steps) if begin else t for t, begin in zip(times, begins, strict=True))
        return [times[0], *list(later)[1:]]

    def raised(self, schedule: Schedule, t: float, steps: int) -> float:
        """The time of (1 + gamma) sigma/alpha in a run of so many steps, if that of t lies in [s_min, s_max]."""
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
            kept = alpha[i + 1] / k.alpha_s if raised else 1.0  # of the state, to the level where the next step begins
            std = self.s_noise * math.sqrt(sigma[i + 1] ** 2 - (kept * k.sigma_s) ** 2) if raised else 0.0
            plan.append(([kept * w for w in weights], std))
        return plan

    def replan(self, schedule: Schedule, times: Sequence[float], numbers: Sequence[Any]) -> Sequence[Any]:
        """The same steps, but for a first one that corrects: no step ended there, and x stays but for its noise."""
        (weights, std), *rest = numbers or [([], 0.0)]
        first = ([weights[0], 0.0], std) if len(weights) > 2 else (weights, std)
        return [first, *rest][: len(numbers)]


@dataclass(frozen=True, kw_only=True)
class Euler(_Churning):
    """y_s = y_t + (l_s - l_t) d_t with d = (y - m)/l, the slope of y = x/alpha over l = sigma/alpha, and m = E[x_0|x].

    With churn every step but the first is taken from a noisier level than where the last one ended:

        l^ = (1 + gamma) l,    y^ = y + s_noise sqrt(l^^2 - l^2) z

    with gamma = min(churn/K, sqrt 2 - 1) where s_min <= l <= s_max and 0 elsewhere, K being the number of steps, with
    that to no noise. The network is asked at the time of l^ (`inverse_log_snr`), of discrete schedules the nearest
    whole one, and no later than t_max; `Stepper.timesteps` shows these. Where that is the time of l itself, no noise is
    added. The first level, at which a run begins, is that of x_T and stays: the paper's loop would raise it too.

    churn         S_churn, how much noise all steps add together; 0: none, and DDIM
    s_min, s_max  the levels sigma/alpha between which they do
    s_noise       standard deviation of z
    """

    order = 1

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return not self.churn


@dataclass(frozen=True, kw_only=True)
class Heun(_Churning):
    """y_s = y_t + (l_s - l_t) (d_t + d_s')/2 with d = (y - m)/l, the slope of y = x/alpha over l = sigma/alpha, where
    m = E[x_0|x] and d_s' is the slope after Euler's step, at y_s' = y_t + (l_s - l_t) d_t.

    In terms of x that is a predictor and a corrector, both linear in the data estimates m:

        x_s' = (sigma_s/sigma_t) x_t + (alpha_s - alpha_t sigma_s/sigma_t) m_t
        x_s  = x_s' + alpha_s (l_t/l_s - 1)/2 (m_s' - m_t)

    Order 2. The network is called twice a step, at x_t and at x_s', so the times that are visited hold s
    twice. It is called once, and x_s = x_s', in a step to no noise (l_s = 0) and in one from no signal (l_t infinite).
    `sample(steps=..)` takes the paper's grid, "karras", or the schedule's own where that has no first or last level.

    churn, s_min, s_max, s_noise  as in `Euler`; the second call at s is then made at the level that x_s was raised to
    """

    order = 2
    linear = False  # to those who take `plan` alone: without the times that stand twice it is Euler's

    def _visited(self, schedule: Schedule, times: list[float]) -> list[float]:
        return super()._visited(schedule, [t for t, _ in groupby(times)])  # they may already be given twice

    def visits(self, schedule: Schedule, times: list[float]) -> list[float]:
        """The times, those twice where a step ends that is corrected."""
        signal = schedule.alpha(times) > 0
        corrected = signal[:-1] & signal[1:] & (schedule.sigma(times)[1:] > 0)
        return [times[0], *(t for t, twice in zip(times[1:], corrected, strict=True) for _ in range(1 + bool(twice)))]


def _predictor(k: StepCoefficients) -> list[float]:
    """Weights of x_t and m_t in x_s'."""
    kept = k.sigma_s / k.sigma_t
    return [kept, k.alpha_s - kept * k.alpha_t]


def _corrector(k: StepCoefficients | None) -> list[float]:
    """Weights of x_s', m_s' and m_t in x_s; None: no step ended here, as in a run that begins here, and x stays."""
    if k is None:
        return [1.0, 0.0]
    half = k.alpha_s * (k.sigma_t * k.alpha_s / (k.alpha_t * k.sigma_s) - 1) / 2
    return [1.0, half, -half]
