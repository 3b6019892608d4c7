"""The base of all solvers: a step with explicit state; the loop that calls it stands in `gms_fast/sampling.py`."""

import copy
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gms_fast.constants import Identified
from gms_fast.estimate import Estimate
from gms_fast.ops.types import Draws
from gms_fast.prediction import Meaning
from gms_fast.schedules import Schedule
from gms_fast.steps import StepCoefficients


class TimeStep(NamedTuple):
    """One time of a plan and the step from there to the next: all that is known before the network is called.

    i             place in the plan
    t, s          the time and the next one; t again at the last time, where no step begins
    network_time  time that the network is asked at
    coefficients  of the step from t to s
    meaning       of what the network says at t
    numbers       what the solver's own `plan` says of the step
    is_last       whether the step from here is the last
    late          whether it lies in the last half of the plan
    level         counter of the step's noise where counters follow the noise level
    """

    i: int
    t: float
    s: float
    network_time: float
    coefficients: StepCoefficients
    meaning: Meaning
    numbers: Any
    is_last: bool
    late: bool
    level: int


class Solver(Identified, ABC):
    """One step of a sampler; subclasses are frozen dataclasses with keyword-only fields.

    moments_needed  1 for E[eps|x_t] alone, 2 and 3 for solvers that use the moment heads
    spacing         the time grid that `sample` gives it, as `schedule.timesteps` takes it; None: the schedule's own
    denoise         whether noise that is left at the last time is removed by one more call of the network
    linear          whether the plan of a step is (weights, std) of the state and the last data estimates
    known_steps     number of leading steps that need no network call; `known` supplies their estimate
    rises           whether its times may lead to more noise
    reach           sigma/alpha down to which a `Teleport` had best go for it, in units of the data's `spread`
    counted_from    `step_offset` of its steps, which are then counted wherever a run begins; None: as the loop has it
    """

    moments_needed: int = 1
    spacing: str | float | None = None
    denoise: bool = True
    linear: bool = False
    known_steps: int = 0
    rises: bool = False
    reach: float = 2.3  # docs/quality.md
    counted_from: int | None = None

    @property
    def name(self) -> str:
        """The name in messages."""
        return type(self).__name__

    def times(
        self,
        schedule: Schedule,
        wanted: int | Sequence[float],
        *,
        t_max: float | None = None,
        spacing: str | float | None = None,
    ) -> list[float]:
        """The times to visit, noisiest first: a grid of `wanted` steps, or the `wanted` times, checked.

        t_max, spacing  of the grid, where they are not the schedule's first time and the solver's own spacing
        """
        if isinstance(wanted, int):
            wanted = self._grid(schedule, wanted, self._own_spacing(schedule) if spacing is None else spacing, t_max)
        return self._visited(schedule, list(wanted))

    def _own_spacing(self, schedule: Schedule) -> str | float | None:
        """The solver's grid, unless the schedule has one that was chosen."""
        return None if schedule.chosen else self.spacing

    def _grid(self, schedule: Schedule, steps: int, spacing: str | float | None, t_max: float | None) -> list[float]:
        return schedule.timesteps(steps, spacing, t_max)

    def _visited(self, schedule: Schedule, times: list[float]) -> list[float]:
        """The times that stand for these. Raises ValueError where they are not to be visited."""
        schedule.check_times(times)
        return self.visits(schedule, times)

    def visits(self, schedule: Schedule, times: list[float]) -> list[float]:
        """The times, each as often as the network is asked there."""
        return times

    def plan(self, schedule: Schedule, times: Sequence[float]) -> Sequence[Any]:
        """Numbers that `step` needs of each step beyond its coefficients: plain ones, computed once in float64."""
        return [None] * (len(times) - 1)

    def asked(self, schedule: Schedule, times: Sequence[float]) -> Sequence[float]:
        """The times where the network is asked, for each of those that are visited: later ones where a step adds noise
        behind the time where it ends.
        """
        return times

    def replan(self, schedule: Schedule, times: Sequence[float], numbers: Sequence[Any]) -> Sequence[Any]:
        """`plan` of a run that begins at the first of `times`, without history, where another would have come by.

        numbers  what that one's plan says of these steps
        """
        return self.plan(schedule, times)

    def calls(self, schedule: Schedule, times: Sequence[float]) -> int:
        """Network calls that visiting `times` takes."""
        return len(times) - 1 - self.known_steps + (self.denoise and float(schedule.sigma(times[-1])) > 0)

    def ending(self, denoise: bool) -> "Solver":
        """This solver with such a `denoise`."""
        other = copy.copy(self)
        object.__setattr__(other, "denoise", denoise)
        return other

    def onward(self) -> "Solver":
        """The solver that goes on after the steps without a network."""
        return self

    def moments_at(self, step: TimeStep) -> int:
        """The number of moments that the step reads."""
        return self.moments_needed

    def draws_at(self, step: TimeStep) -> bool:
        """Tell whether the step draws noise."""
        return True

    def check(self, model: Any, shape: Sequence[int], clip: tuple[float, float] | None = None) -> None:
        """Raise ValueError if the solver was made for another model, shape of one sample or data range."""

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> Any:
        """State before the first of the steps; multistep solvers keep their history in it."""
        return None

    def known(self, x: Tensor, step: TimeStep, clip: tuple[float, float] | None) -> Estimate:
        """The estimate that takes the network's place in the first `known_steps` steps."""
        raise NotImplementedError(f"{type(self).__name__} needs the network at every step")

    @abstractmethod
    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        """(x_s, new state) from x_t, the network's estimate there, the draws of the step and the state.

        Must not write to x.
        """


class Multistep(Solver):
    """x_s = w_0 x_t + sum_j w_j m_j + std z of the last data estimates m_0 = E[x_0|x_t], m_1, ..: (weights, std) is the
    plan of a step, and history is all its state.
    """

    order: int
    linear = True

    def draws_at(self, step: TimeStep) -> bool:
        _, std = step.numbers
        return bool(std > 0)

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> tuple[list[int], tuple[Tensor, ...]]:
        """(number of estimates that are kept after each step, those kept)."""
        kept = [0] * len(steps)
        for i in range(len(steps) - 1, 0, -1):
            older = len(steps[i].numbers[0]) - 2  # that the step reads
            kept[i - 1] = max(older, kept[i] - 1, 0)
        return kept, ()

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        (weights, std), (kept, past) = step.numbers, state
        keeps = kept[step.i] > 0
        made = estimate.linear(past[: len(weights) - 2], weights, std, draws, keeps=keeps)
        return made[0], (kept, (made[1], *past)[: kept[step.i]] if keeps else ())


class Extrapolating(Multistep):
    """A multistep solver that extrapolates data estimates from past steps to the next.

    That goes wrong where the next step is much longer in log(alpha/sigma) than those before, as the last one of a grid
    uniform in time is (49 to 0 of 1000 times: 2.85, after 0.74). So for orders above 1 `sample(steps=..)` takes the
    grid "quadratic", unless the schedule has a grid of its own, as EDM has. Explicit `timesteps` stay as they are.
    """

    @property
    def spacing(self) -> str | None:  # type: ignore[override]
        return "quadratic" if self.order > 1 else None

    def _own_spacing(self, schedule: Schedule) -> str | float | None:
        return super()._own_spacing(schedule) if schedule.spacing == "uniform" else None


def check_order(order: object, orders: Sequence[int]) -> None:
    """Raise ValueError unless `order` is one of `orders`."""
    if isinstance(order, bool) or not isinstance(order, int) or order not in orders:
        raise ValueError(f"order must be one of {', '.join(map(str, orders))}: got {order!r}")


def check_clip_pixel(clip_pixel: object) -> None:
    """Raise ValueError unless `clip_pixel` is a number of grey levels or None."""
    if clip_pixel is not None and not (isinstance(clip_pixel, (int, float)) and clip_pixel >= 0):
        raise ValueError(f"clip_pixel must be None or a number that is not negative: got {clip_pixel!r}")


def bounded_last_step(x: Tensor, step: TimeStep, clip_pixel: float | None) -> StepCoefficients | None:
    """The last step's numbers with var_max = (clip_pixel 2/255 sqrt(pi/2))^2, or None where the bound does not apply.

    What the last step draws stays in the picture as noise, so of a picture (B, C, H, W) it may leave a mean absolute
    deviation of `clip_pixel` grey levels, of which [-1, 1] holds 255 (Bao et al. 2022). Other data keeps its law, and
    so does a state that is handed on, whose own level sigma_s/alpha_s is more noise than two grey levels.
    """
    k = step.coefficients
    if not step.is_last or clip_pixel is None or x.ndim < 4 or k.sigma_s > _std_of(2) * k.alpha_s:
        return None
    bounded = replace if torch.compiler.is_compiling() else _replaced  # one object, by which kernels know it
    return bounded(k, var_max=_std_of(clip_pixel) ** 2)


_replaced = functools.lru_cache(256)(replace)


def _std_of(grey_levels: float) -> float:
    """The standard deviation of normals whose mean absolute value is so many of the 255 levels of [-1, 1]."""
    return grey_levels * 2 / 255 * math.sqrt(math.pi / 2)
