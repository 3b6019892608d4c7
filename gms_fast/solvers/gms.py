"""Gaussian Mixture Solvers: Guo et al., NeurIPS 2023 (arXiv 2311.00941)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gms_fast import ops
from gms_fast.ops.checks import COMPONENTS, FITS, MOMENTS, check_choice
from gms_fast.prediction import Estimate
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Solver, StepContext, bounded_last_step, check_clip_pixel, check_signal


@dataclass(frozen=True, kw_only=True)
class GMS(Solver):
    """Draws x_s from a two-component mixture with the first three moments of q(x_s|x_t), element by element.

    fit         "free" | "exact" | "adan" (the released optimiser) | "gaussian", as in `gms_fast.ops.fit_mixture`
    component   "element": one uniform each picks the component; "sample": one that of a whole sample (released).
                None: "element", but "sample" for fit="adan" and where the noise given holds one uniform per sample
    weight      of component a, in (0, 1), not 1/2
    moments     "cumulant" | "released", as in `gms_fast.ops.gms_step`
    iterations, lr, eps   of fit="adan"; eps = 1e-8 N reproduces the released code on N elements a call
    clip_pixel  grey levels of noise that the last step, then Gaussian, may leave in a picture (1 suits the cosine
                schedule); None draws it like every other step

    Needs a model with second and third noise moments. The defaults, the time grid `spacing` among them, are what
    docs/quality.md found best; for fit="adan" they are those of the released code.
    """

    fit: str = "free"
    component: str | None = None
    weight: float = 1 / 3
    moments: str = "cumulant"
    iterations: int = 70
    lr: float = 0.06
    eps: float = 1e-8
    clip_pixel: float | None = 2

    def __post_init__(self) -> None:
        check_choice("fit", self.fit, FITS)
        if self.component is not None:
            check_choice("component", self.component, COMPONENTS)
        check_choice("moments", self.moments, MOMENTS)
        if not 0 < self.weight < 1 or self.weight == 0.5:
            raise ValueError(f"weight must lie in (0, 1) and not be 1/2: got {self.weight}")
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative: got {self.iterations}")
        check_clip_pixel(self.clip_pixel)

    @property
    def spacing(self) -> str | float | None:  # type: ignore[override]
        return "uniform" if self.fit == "adan" else "angle"

    def _component(self, x: Tensor, given: Any) -> str:
        shared = (
            isinstance(given, tuple) and len(given) == 2 and given[1].numel() == len(x) and given[1].shape != x.shape
        )
        return self.component or ("sample" if self.fit == "adan" or shared else "element")

    @property
    def moments_needed(self) -> int:  # type: ignore[override]
        return 2 if self.fit == "gaussian" else 3

    def plan(self, schedule: Schedule, times: Sequence[float]) -> Sequence[Any]:
        check_signal(self, schedule, times)
        return super().plan(schedule, times)

    def step(self, x: Tensor, estimate: Estimate, context: StepContext, state: Any) -> tuple[Tensor, Any]:
        bounded = bounded_last_step(x, context, self.clip_pixel)
        noise = context.noise.arguments(context.index)
        x_s = ops.gms_step(
            x,
            *estimate.moments,
            bounded or context.coefficients,
            component=self._component(x, noise["noise"]),
            fit="gaussian" if bounded else self.fit,
            weight=self.weight,
            moments=self.moments,
            central=context.central,
            clip=context.clip,
            iterations=self.iterations,
            lr=self.lr,
            eps=self.eps,
            **noise,
        )
        return x_s, state
