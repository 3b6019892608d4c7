"""Gaussian reverse steps: DDPM (Ho et al. 2020) and SN-DDPM (Bao et al. 2022)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gms_fast.estimate import Estimate
from gms_fast.ops.types import Draws, Fit
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import WITHOUT_MOMENTS, Solver, TimeStep, bounded_last_step, check_clip_pixel
from gms_fast.steps import StepCoefficients

GAUSSIAN = Fit("gaussian")


@dataclass(frozen=True, kw_only=True)
class _Gaussian(Solver):
    """Base of the solvers that draw each element of x_s from one Gaussian."""

    clip_pixel: float | None = 2
    reach = 0.75

    def __post_init__(self) -> None:
        check_clip_pixel(self.clip_pixel)


@dataclass(frozen=True, kw_only=True)
class DDPM(_Gaussian):
    """Ancestral sampler whose noise has the variance of q(x_s|x_t, x_0).

    x_s ~ N(A x_t + B E[x_0|x_t], c), where A, B and c are defined in eq. 1 of docs/notation.md. In diffusers, this
    choice of the variance is called "fixed_small".

    Use DDPM if the network has no moment heads and you want noise in every step; the time grid with `spacing=0.5` suits
    it best. In the measurements of docs/quality.md, it has the highest precision and the lowest recall of all solvers.
    A run of K steps costs K + 1 network evaluations, because the last evaluation removes the remaining noise, or K if
    the schedule ends without noise.

    Args:
        clip_pixel: Upper bound on the mean absolute value of the noise that the last step adds to an image, in grey
            levels; the range [-1, 1] spans 255 of them. A number >= 0 (default 2), or None for no bound. The bound does
            not apply to data other than images.

    Raises:
        ValueError: If `clip_pixel` is negative or not a number.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> solver = gms_fast.solvers.DDPM(clip_pixel=1)
        >>> gms_fast.sample(model, 5, solver=solver, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Ho et al. 2020, arXiv 2006.11239.
    """

    def plan(self, schedule: Schedule, times: Sequence[float]) -> Sequence[Any]:
        """Return the weights of x_t and E[x_0|x_t] for every step."""
        return [(k.A, k.B) for k in StepCoefficients.along(schedule, times)]

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        k = bounded_last_step(x, step, self.clip_pixel) or step.coefficients
        return estimate.linear((), step.numbers, math.sqrt(min(k.c, k.var_max)), draws)[0], state


@dataclass(frozen=True, kw_only=True)
class SNDDPM(_Gaussian):
    """Ancestral sampler with the optimal variance of a Gaussian step, from E[eps^2|x_t].

    x_s ~ N(A x_t + B E[x_0|x_t], c + B^2 Var[x_0|x_t]), where A, B and c are defined in eq. 1 of docs/notation.md. The
    variance of each element of x_0 follows from the second noise moment of that element.

    Use SN-DDPM with a network that has a second-moment head. With 20 or more steps and `spacing="angle"`, it is as good
    as [`GMS`][gms_fast.solvers.GMS] on images. A run of K steps costs K + 1 network evaluations, or K if the schedule
    ends without noise.

    Args:
        clip_pixel: Upper bound on the mean absolute value of the noise that the last step adds to an image, in grey
            levels; the range [-1, 1] spans 255 of them. A number >= 0 (default 2), or None for no bound. The bound does
            not apply to data other than images.

    Raises:
        ValueError: If `clip_pixel` is negative or not a number.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> times = model.schedule.timesteps(20, spacing="angle")
        >>> gms_fast.sample(model, solver=gms_fast.solvers.SNDDPM(), timesteps=times, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Bao et al. 2022, arXiv 2206.07309.
    """

    moments_needed = 2

    def plan(self, schedule: Schedule, times: Sequence[float]) -> Sequence[Any]:
        schedule.check_signal(times[0], type(self).__name__, WITHOUT_MOMENTS)
        return super().plan(schedule, times)

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        k = bounded_last_step(x, step, self.clip_pixel) or step.coefficients
        draws = draws.given()._replace(u=None)  # one Gaussian picks no component
        return estimate.gms_step(k, GAUSSIAN, draws), state
