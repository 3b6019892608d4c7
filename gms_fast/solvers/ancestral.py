"""Gaussian reverse steps: DDPM (Ho et al. 2020) and SN-DDPM (Bao et al. 2022, Extended Analytic-DPM)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gms_fast.estimate import Estimate
from gms_fast.ops.types import Draws, Fit
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Solver, TimeStep, bounded_last_step, check_clip_pixel
from gms_fast.steps import StepCoefficients

GAUSSIAN = Fit("gaussian")


@dataclass(frozen=True, kw_only=True)
class _Gaussian(Solver):
    clip_pixel: float | None = 2
    reach = 0.75

    def __post_init__(self) -> None:
        check_clip_pixel(self.clip_pixel)


@dataclass(frozen=True, kw_only=True)
class DDPM(_Gaussian):
    """x_s ~ N(A x_t + B E[x_0|x_t], c): the posterior variance c of known x_0 ("small").

    clip_pixel  grey levels of noise that the last step may leave in a picture; None for no bound
    """

    def plan(self, schedule: Schedule, times: Sequence[float]) -> Sequence[Any]:
        """Weights of x_t and E[x_0|x_t]."""
        return [(k.A, k.B) for k in StepCoefficients.along(schedule, times)]

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        k = bounded_last_step(x, step, self.clip_pixel) or step.coefficients
        return estimate.linear((), step.numbers, math.sqrt(min(k.c, k.var_max)), draws)[0], state


@dataclass(frozen=True, kw_only=True)
class SNDDPM(_Gaussian):
    """x_s ~ N(A x_t + B E[x_0|x_t], c + B^2 Var[x_0|x_t]): the optimal Gaussian, from E[eps^2|x_t].

    clip_pixel  grey levels of noise that the last step may leave in a picture; None for no bound
    """

    moments_needed = 2

    def plan(self, schedule: Schedule, times: Sequence[float]) -> Sequence[Any]:
        schedule.check_signal(times[0], type(self).__name__)
        return super().plan(schedule, times)

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        k = bounded_last_step(x, step, self.clip_pixel) or step.coefficients
        draws = draws.given()._replace(u=None)  # one Gaussian picks no component
        return estimate.gms_step(k, GAUSSIAN, draws), state
