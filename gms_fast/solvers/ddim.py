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
    """First-order solver of the probability flow, with optional noise.

    x_s = alpha_s m + sqrt(sigma_s^2 - eta^2 c) e + eta sqrt(c) z, where m = E[x_0|x_t], e = (x_t - alpha_t m)/sigma_t,
    z is standard normal, and c is defined in eq. 1 of docs/notation.md.

    Use DDIM as a baseline that every library has, for inversion, or if steps must not depend on earlier steps. A run of
    K steps costs K + 1 network evaluations, or K if the schedule ends without noise.

    Args:
        eta: Amount of noise, in [0, 1]. With 0 (default) the solver is deterministic; with 1 it adds as much noise as
            DDPM.
        clipped_noise: If True (default), e is computed from the estimate m after clipping to the data range. If False,
            e is the network's own noise estimate, as in diffusers' DDIMScheduler with use_clipped_model_output=False.
            Without a data range, the two are the same.

    Raises:
        ValueError: If `eta` lies outside [0, 1].

    Examples:
        >>> model = gms_fast.load("digits")
        >>> gms_fast.sample(model, 5, solver=gms_fast.solvers.DDIM(eta=0.5), n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Song et al. 2021, arXiv 2010.02502.
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
        """Return the weights of each step: of x_t and m, or of e and m without `clipped_noise`."""
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
