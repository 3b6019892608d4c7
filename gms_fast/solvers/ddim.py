"""DDIM: Song et al. 2021 (arXiv 2010.02502)."""

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gms_fast import ops
from gms_fast.prediction import Estimate
from gms_fast.solvers.base import Solver, StepContext


@dataclass(frozen=True, kw_only=True)
class DDIM(Solver):
    """x_s = alpha_s m + sqrt(sigma_s^2 - eta^2 c) e + eta sqrt(c) z, m = E[x_0|x_t], e = (x_t - alpha_t m)/sigma_t.

    eta  0: deterministic; 1: the noise of DDPM
    """

    eta: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta must lie in [0, 1]: got {self.eta}")

    def step(self, x: Tensor, estimate: Estimate, context: StepContext, state: Any) -> tuple[Tensor, Any]:
        k = context.coefficients
        std = self.eta * math.sqrt(k.c)
        scale = math.sqrt(k.sigma_s**2 - std**2) / k.sigma_t
        weights = [scale, k.alpha_s - scale * k.alpha_t]  # e follows the clipped m = x_0
        noise = context.noise.arguments(context.index) if std > 0 else {}
        return ops.affine_noise(x, [estimate.x0()], weights, std, **noise), state
