"""DDIM: Song et al. 2021 (arXiv 2010.02502)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Multistep
from gms_fast.steps import StepCoefficients


@dataclass(frozen=True, kw_only=True)
class DDIM(Multistep):
    """x_s = alpha_s m + sqrt(sigma_s^2 - eta^2 c) e + eta sqrt(c) z, m = E[x_0|x_t], e = (x_t - alpha_t m)/sigma_t.

    eta  0: deterministic; 1: the noise of DDPM
    """

    eta: float = 0.0
    order = 1

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]: got {self.eta}")

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[list[float], float]]:
        return [self._step(k) for k in StepCoefficients.along(schedule, times)]

    def _step(self, k: StepCoefficients) -> tuple[list[float], float]:
        std = self.eta * math.sqrt(k.c)
        scale = math.sqrt(k.sigma_s**2 - std**2) / k.sigma_t
        return [scale, k.alpha_s - scale * k.alpha_t], std  # e follows the clipped m
