"""What a solver is: a step with explicit state; the loop that calls it stands in `gms_fast/sampling.py`."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gms_fast import ops
from gms_fast.steps import StepCoefficients
from gms_fast.types import NoiseMoments


@dataclass(frozen=True, kw_only=True)
class NoiseSource:
    """Where the draws of step i come from: counters of (seed, sample, step, element), or a callable noise(step)."""

    seed: ops.Seed = 0
    sample_offset: int = 0
    given: Callable[[int], Any] | None = None

    def arguments(self, index: int) -> dict[str, Any]:
        """The keywords that tell an op which noise to use in step `index`."""
        noise = None if self.given is None else self.given(index)
        return {"seed": self.seed, "sample_offset": self.sample_offset, "step_index": index, "noise": noise}


@dataclass(frozen=True, kw_only=True)
class StepContext:
    """All a solver may know about a step: its place in the loop, its numbers, the data range and its noise."""

    index: int
    is_last: bool
    t: float
    s: float
    coefficients: StepCoefficients
    clip: tuple[float, float] | None
    central: bool
    noise: NoiseSource


class Solver(ABC):
    """One step of a sampler; subclasses are frozen dataclasses with keyword-only fields.

    moments_needed  1 for E[eps|x_t] alone, 2 and 3 for solvers that use the moment heads
    spacing         the time grid that `sample` gives it, as `schedule.timesteps` takes it
    """

    moments_needed: int = 1
    spacing: str | float = "uniform"

    def start(self) -> Any:
        """State before the first step; multistep solvers keep their history in it."""
        return None

    @abstractmethod
    def step(self, x: Tensor, moments: NoiseMoments, context: StepContext, state: Any) -> tuple[Tensor, Any]:
        """(x_s, new state) from x_t, the noise moments there and the state. Must not write to x."""


def check_clip_pixel(clip_pixel: object) -> None:
    """Raise ValueError unless `clip_pixel` is a number of grey levels or None."""
    if clip_pixel is not None and not (isinstance(clip_pixel, int | float) and clip_pixel >= 0):
        raise ValueError(f"clip_pixel must be None or a number that is not negative: got {clip_pixel!r}")


def bounded_last_step(x: Tensor, context: StepContext, clip_pixel: float | None) -> StepCoefficients | None:
    """The last step's numbers with var_max = (clip_pixel 2/255 sqrt(pi/2))^2, or None where the bound does not apply.

    What the last step draws stays in the picture as noise, so of a picture (B, C, H, W) it may leave a mean absolute
    deviation of `clip_pixel` grey levels, of which [-1, 1] holds 255 (Bao et al. 2022). Other data keeps its law.
    """
    if not context.is_last or clip_pixel is None or x.ndim < 4:
        return None
    return replace(context.coefficients, var_max=(clip_pixel * 2 / 255) ** 2 * math.pi / 2)
