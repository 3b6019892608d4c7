"""Gaussian reverse steps: DDPM (Ho et al. 2020) and SN-DDPM (Bao et al. 2022, Extended Analytic-DPM)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gms_fast.ops import fused
from gms_fast.ops.types import Draws, Fit
from gms_fast.prediction import Estimate
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Solver, TimeStep, bounded_last_step, check_clip_pixel
from gms_fast.types import NoiseMoments

GAUSSIAN = Fit("gaussian")


def _gaussian_step(
    x: Tensor, estimate: Estimate, moments: NoiseMoments, step: TimeStep, draws: Draws, clip_pixel: float | None
) -> Tensor:
    """x_s ~ N(A x_t + B m, c + B^2 v), with v = 0 where the moments hold no e2; bounded in the last step."""
    k = bounded_last_step(x, step, clip_pixel) or step.coefficients
    draws = draws.given()._replace(u=None)  # one Gaussian picks no component
    return fused.gms_step(x, *moments, k, GAUSSIAN, draws, central=estimate.central, clip=estimate.clip)


@dataclass(frozen=True, kw_only=True)
class _Gaussian(Solver):
    clip_pixel: float | None = 2

    def __post_init__(self) -> None:
        check_clip_pixel(self.clip_pixel)


@dataclass(frozen=True, kw_only=True)
class DDPM(_Gaussian):
    """x_s ~ N(A x_t + B E[x_0|x_t], c): the posterior variance c of known x_0 ("small").

    clip_pixel  grey levels of noise that the last step may leave in a picture; None for no bound
    """

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        k = step.coefficients
        if k.alpha_t == 0:  # no noise moment tells x_0 there
            return fused.affine_noise(x, [estimate.x0()], [k.A, k.B], math.sqrt(k.c), draws), state
        e1 = NoiseMoments(estimate.moments.e1)
        return _gaussian_step(x, estimate, e1, step, draws, self.clip_pixel), state


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
        e1, e2, _ = estimate.moments
        return _gaussian_step(x, estimate, NoiseMoments(e1, e2), step, draws, self.clip_pixel), state
