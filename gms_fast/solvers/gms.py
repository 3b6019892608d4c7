"""Gaussian Mixture Solvers: Guo et al., NeurIPS 2023 (arXiv 2311.00941)."""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gms_fast.estimate import Estimate
from gms_fast.ops import fused
from gms_fast.ops.checks import COMPONENTS, FITS, MOMENTS, check_choice
from gms_fast.ops.types import DEFAULT, Draws, Fit
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Solver, TimeStep, bounded_last_step, check_clip_pixel
from gms_fast.steps import StepCoefficients
from gms_fast.tables import Gaussian


@dataclass(frozen=True, kw_only=True)
class GMS(Solver):
    """Draws x_s from a two-component mixture with the first three moments of q(x_s|x_t), element by element.

    fit         "free" | "exact" | "adan" (the released optimiser) | "gaussian", as in `gms_fast.ops.fit_mixture`
    component   "element": one uniform each picks the component; "sample": one that of a whole sample (released).
                None: "element", but "sample" for fit="adan" and where the noise given holds one uniform per sample
    weight      of component a, in (0, 1), not 1/2
    moments     "cumulant" | "released", as in `gms_fast.ops.gms_step`
    covariance  Gaussian statistics of the data. While sigma_t/alpha_t > `switch`, x_s = A x_t + B E[x_0|x_t] plus noise
                with the covariance that x_s has given x_t where x_0 is that Gaussian (`Gaussian.step_noise`), elements
                together; afterwards the mixture, element by element. The network gives all moments at the first step
    switch      sigma_t/alpha_t, default 0.75 `covariance.spread`; with 0 every step is drawn so, from a network of any
                kind, without moment heads, at a loss of precision
    iterations, lr, eps   of fit="adan"; eps = 1e-8 N reproduces the released code on N elements a call
    clip_pixel  grey levels of noise that the last step, then Gaussian, may leave in a picture (1 suits the cosine
                schedule); None draws it like every other step

    Needs a model with second and third noise moments. The defaults, the time grid `spacing` among them, are what
    docs/quality.md found best; for fit="adan" they are those of the released code.
    """

    fit: str = "free"
    component: str | None = None
    weight: float = DEFAULT.weight
    moments: str = "cumulant"
    covariance: Gaussian | None = None
    switch: float | None = None
    iterations: int = DEFAULT.iterations
    lr: float = DEFAULT.lr
    eps: float = DEFAULT.eps
    clip_pixel: float | None = 2
    reach = 0.75

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
        if self.covariance is not None and not isinstance(self.covariance, Gaussian):
            got = type(self.covariance).__name__
            raise TypeError(f"covariance must be Gaussian, as from gms_fast.statistics.gaussian: got {got}")
        if self.covariance is None and self.switch is not None:
            raise ValueError(f"switch must not be given without covariance: got {self.switch!r}")
        number = isinstance(self.switch, (int, float)) and not isinstance(self.switch, bool)
        if self.switch is not None and not (number and 0 <= self.switch < math.inf):
            raise ValueError(f"switch must be a level sigma/alpha, not negative: got {self.switch!r}")

    @property
    def spacing(self) -> str | float | None:  # type: ignore[override]
        return "uniform" if self.fit == "adan" else "angle"

    @property
    def moments_needed(self) -> int:  # type: ignore[override]
        if self.level == 0:
            return 1
        return 2 if self.fit == "gaussian" else 3

    @property
    def level(self) -> float:
        """sigma/alpha down to which elements are drawn together."""
        if self.covariance is None:
            return math.inf
        return self.reach * self.covariance.spread if self.switch is None else self.switch

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[bool]:
        """Of each step, whether its elements are drawn together."""
        if len(times) < 2:
            return []
        together = [math.exp(-float(lam)) > self.level for lam in schedule.log_snr(times[:-1])]
        if not together[0]:
            schedule.check_signal(times[0], type(self).__name__)
        return together

    def moments_at(self, step: TimeStep) -> int:
        return 1 if self.covariance is not None and step.numbers else self.moments_needed

    def check(self, model: Any, shape: Sequence[int], clip: tuple[float, float] | None = None) -> None:
        if self.covariance is not None:
            self.covariance.check(shape=shape, clip=clip, name="covariance")

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> None:
        together = [step.numbers for step in steps]
        if self.covariance is None or self.level == 0 or torch.compiler.is_compiling():
            return
        if all(together) or not any(together):
            first, last = (step.coefficients.ratio for step in (steps[0], steps[-1]))
            kind = "together: switch=0 says so, and needs no heads" if all(together) else "by itself"
            warnings.warn(
                f"switch = {self.level:g} never happens on steps of sigma/alpha from {first:.3g} to {last:.3g}: "
                f"all draw every element {kind}",
                stacklevel=5,  # whoever called `sample`
            )

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        bounded = bounded_last_step(x, step, self.clip_pixel)
        k, (z, u) = bounded or step.coefficients, draws.noise()
        if self.covariance is not None and step.numbers:
            return _together(self.covariance, x, estimate, k, draws, z), state
        fit = Fit("gaussian" if bounded else self.fit, self.weight, self.iterations, self.lr, self.eps)
        draws = draws._replace(component=self._component(x, u), z=z, u=u)
        return estimate.gms_step(k, fit, draws, self.moments), state

    def _component(self, x: Tensor, u: Tensor | None) -> str:
        shared = u is not None and u.numel() == len(x) and u.shape != x.shape
        return self.component or ("sample" if self.fit == "adan" or shared else "element")


def _together(
    covariance: Gaussian, x: Tensor, estimate: Estimate, k: StepCoefficients, draws: Draws, z: Tensor | None
) -> Tensor:
    """x_s = A x_t + B E[x_0|x_t] + (c + B^2 v)^(1/2) z, v the covariance of x_0 given x_t."""
    if z is None:
        z = fused.philox(
            True, x.shape, draws._replace(z=None, u=None), 0, torch.promote_types(x.dtype, torch.float32), x.device
        )
    if z.shape != x.shape:
        raise ValueError(f"noise z must match the output: got {tuple(z.shape)}, want {tuple(x.shape)}")
    return estimate.linear((), _weights(k.A, k.B), 1.0, Draws(z=covariance.step_noise(z, k)))[0]


@functools.lru_cache(1024)
def _weights(A: float, B: float) -> tuple[float, float]:
    """One object for each: kernels know it by that."""
    return A, B
