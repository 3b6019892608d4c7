"""DDIM: Song et al. 2021 (arXiv 2010.02502)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gms_fast.estimate import Estimate
from gms_fast.ops.types import Draws
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Multistep, TimeStep
from gms_fast.steps import StepCoefficients


@dataclass(frozen=True, kw_only=True)
class DDIM(Multistep):
    """x_s = alpha_s m + sqrt(sigma_s^2 - eta^2 c) e + eta sqrt(c) z, m = E[x_0|x_t], e = (x_t - alpha_t m)/sigma_t.

    eta            0: deterministic; 1: the noise of DDPM
    clipped_noise  whether e follows an m that was clipped to the data range. False: e is the network's own, as in
                   diffusers' DDIMScheduler without use_clipped_model_output; without a data range both are the same
    """

    eta: float = 0.0
    clipped_noise: bool = True
    order = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]: got {self.eta}")

    @property
    def linear(self) -> bool:  # type: ignore[override]
        return self.clipped_noise  # else e is a third term

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[list[float], float]]:
        """Weights of x_t and m; without `clipped_noise` those of e and m."""
        return [self._step(k) for k in StepCoefficients.along(schedule, times)]

    def _step(self, k: StepCoefficients) -> tuple[list[float], float]:
        std = self.eta * math.sqrt(k.c)
        scale = math.sqrt(k.sigma_s**2 - std**2) / k.sigma_t
        if not self.clipped_noise:
            return [scale * k.sigma_t, k.alpha_s], std
        return [scale, k.alpha_s - scale * k.alpha_t], std

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        if self.clipped_noise:
            return super().step(x, estimate, step, draws, state)
        (of_noise, of_data), std = step.numbers
        outputs, (p, *factors) = estimate.noise()
        weights = (of_noise * p, of_data, *(of_noise * q for q in factors))
        return estimate.linear(outputs, weights, std, draws)[0], state
