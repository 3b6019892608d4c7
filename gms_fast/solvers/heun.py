"""Heun's method for the probability flow: Karras et al., NeurIPS 2022 (arXiv 2206.00364), algorithm 1 without churn."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Multistep
from gms_fast.steps import StepCoefficients


@dataclass(frozen=True, kw_only=True)
class Heun(Multistep):
    """y_s = y_t + (l_s - l_t) (d_t + d_s')/2 with d = (y - m)/l, the slope of y = x/alpha over l = sigma/alpha, where
    m = E[x_0|x] and d_s' is the slope after Euler's step, at y_s' = y_t + (l_s - l_t) d_t.

    In terms of x that is a predictor and a corrector, both linear in the data estimates m:

        x_s' = (sigma_s/sigma_t) x_t + (alpha_s - alpha_t sigma_s/sigma_t) m_t
        x_s  = x_s' + alpha_s (l_t/l_s - 1)/2 (m_s' - m_t)

    Order 2, no options. The network is called twice a step, at x_t and at x_s', so the times that are visited hold s
    twice. It is called once, and x_s = x_s', in a step to no noise (l_s = 0) and in one from no signal (l_t infinite).
    `sample(steps=..)` takes the paper's grid, "karras", or the schedule's own where that has no first or last level.
    """

    order = 2
    spacing = "karras"
    linear = False  # to those who take `plan` alone: without the times that stand twice it is Euler's

    def _own_spacing(self, schedule: Schedule) -> str | float | None:
        finite = bool(schedule.log_snr([schedule.t_max, schedule.t_min]).isfinite().all())
        return super()._own_spacing(schedule) if finite else None

    def _visited(self, schedule: Schedule, times: list[float]) -> list[float]:
        """The times, those twice where a step ends that is corrected; they may already be given so."""
        times = super()._visited(schedule, [t for t, _ in groupby(times)])
        corrected = (schedule.alpha(times)[:-1] > 0) & (schedule.sigma(times)[1:] > 0)
        return [times[0], *(t for t, twice in zip(times[1:], corrected, strict=True) for _ in range(1 + bool(twice)))]

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[list[float], float]]:
        plan: list[tuple[list[float], float]] = []
        before = None
        for (t, s), k in zip(pairwise(times), StepCoefficients.along(schedule, times), strict=True):
            plan.append((_corrector(before) if t == s else _predictor(k), 0.0))
            before = k
        return plan


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
