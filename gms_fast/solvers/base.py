"""Base classes of the solvers: one step with explicit state, called by the sampling loop."""

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

WITHOUT_MOMENTS = '. A network without moment heads needs another solver in any case, such as solver="er-sde"'


class TimeStep(NamedTuple):
    """Numbers of one step that are known before the network is called.

    A run has one TimeStep for each of its times, noisiest first. No step starts at the last time.

    Attributes:
        i: Index of the time in the plan, counted from 0 at the noisiest time.
        t: Time of the schedule at which the step starts.
        s: Time at which the step ends. At the last time, where no step starts, `s` equals `t`.
        network_time: Time that is passed to the network.
        coefficients: [`StepCoefficients`][gms_fast.StepCoefficients] of the step from `t` to `s`.
        meaning: `gms_fast.prediction.Meaning` of the network's output at `t`: what it predicts, and at which noise
            level.
        numbers: The solver's own numbers for this step, as returned by `Solver.plan`.
        is_last: True for the last step.
        late: True for steps in the last half of the plan.
        level: Counter of the step's noise in runs that number their noise by noise level (see `step_offset` of
            [`sample`][gms_fast.sample]).

    Examples:
        >>> stepper = gms_fast.Stepper("ddim", "linear", steps=5)
        >>> step = stepper.plan.steps[0]
        >>> step.i, step.t, step.is_last
        (0, 999, False)
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
    """Base class of all solvers. A solver takes steps from x_t to a less noisy x_s.

    To write a solver, define a frozen dataclass with keyword-only fields, and implement `step`. If a step needs numbers
    beyond its [`StepCoefficients`][gms_fast.StepCoefficients], return them from `plan`. The class attributes below
    describe the solver to the sampling loop.

    Attributes:
        moments_needed: Number of noise moments that a step uses. 1 (default) stands for E[eps|x_t] alone; 2 and 3
            require a network with moment heads.
        spacing: Time grid of `sample(steps=..)`, as in `Schedule.timesteps`. None uses the schedule's own grid.
        denoise: True (default) if one more network evaluation should remove the noise that remains at the last time.
        linear: True if `plan` returns (weights, std) for each step, where the weights belong to the state and the last
            data estimates (default False).
        known_steps: Number of leading steps that need no network evaluation, because `known` supplies their estimate
            (default 0).
        rises: True if a run may also step to more noise (default False).
        reach: Default noise level sigma/alpha at which a [`Teleport`][gms_fast.solvers.Teleport] to this solver ends,
            in units of `spread`, the largest standard deviation of the data in any direction (default 2.3; see
            docs/quality.md for the measurements).
        counted_from: Number that the noise generator gives to the first step of a run, regardless of the time at which
            the run starts. With None (default), the sampling loop chooses the number.

    Examples:
        >>> solver = gms_fast.solvers.build("er-sde:order=2")
        >>> isinstance(solver, gms_fast.Solver)
        True
        >>> solver.times(gms_fast.schedules.build("linear"), 3)
        [999, 665, 332, 0]
    """

    moments_needed: int = 1
    spacing: str | float | None = None
    denoise: bool = True
    linear: bool = False
    known_steps: int = 0
    rises: bool = False
    reach: float = 2.3  # measured in docs/quality.md
    counted_from: int | None = None

    @property
    def name(self) -> str:
        """Name of the solver, used in messages."""
        return type(self).__name__

    def times(
        self,
        schedule: Schedule,
        wanted: int | Sequence[float],
        *,
        t_max: float | None = None,
        spacing: str | float | None = None,
    ) -> list[float]:
        """Return the times of a run, noisiest first.

        Args:
            schedule: Noise schedule of the run.
            wanted: Number of steps K >= 1, or a list of times of the schedule, which is checked.
            t_max: First time of the grid. None (default) uses the schedule's first time.
            spacing: Spacing of the grid, as in `Schedule.grid`. None (default) uses the solver's own.

        Returns:
            List of times. A time at which the network is evaluated more than once is repeated.

        Raises:
            ValueError: If the solver cannot use these times.
        """
        if isinstance(wanted, int):
            wanted = self._grid(schedule, wanted, self._own_spacing(schedule) if spacing is None else spacing, t_max)
        return self._visited(schedule, list(wanted))

    def _own_spacing(self, schedule: Schedule) -> str | float | None:
        """Return the solver's spacing, or None if the user chose one for the schedule."""
        return None if schedule.chosen else self.spacing

    def _grid(self, schedule: Schedule, steps: int, spacing: str | float | None, t_max: float | None) -> list[float]:
        return schedule.timesteps(steps, spacing, t_max)

    def _visited(self, schedule: Schedule, times: list[float]) -> list[float]:
        """Check explicit times and return the times of the run. Raises ValueError."""
        schedule.check_times(times)
        return self.visits(schedule, times)

    def visits(self, schedule: Schedule, times: list[float]) -> list[float]:
        """Return the times, each listed once per network evaluation at that time."""
        return times

    def plan(self, schedule: Schedule, times: Sequence[float]) -> Sequence[Any]:
        """Return the numbers that `step` needs in addition to the step's coefficients.

        The numbers are plain Python numbers, computed once per run in float64.

        Args:
            schedule: Noise schedule of the run.
            times: Times of the run, noisiest first.

        Returns:
            Sequence with one entry for each of the len(times) - 1 steps.
        """
        return [None] * (len(times) - 1)

    def asked(self, schedule: Schedule, times: Sequence[float]) -> Sequence[float]:
        """Return the time of the network evaluation for each time of the run.

        The two differ if a step adds noise to its result, as churn does. The network is then evaluated at the noisier
        time.

        Args:
            schedule: Noise schedule of the run.
            times: Times of the run, noisiest first.

        Returns:
            Sequence of len(times) times.
        """
        return times

    def replan(self, schedule: Schedule, times: Sequence[float], numbers: Sequence[Any]) -> Sequence[Any]:
        """Return the plan of a run that resumes at the first of `times` without earlier estimates.

        Args:
            schedule: Noise schedule of the run.
            times: Remaining times, noisiest first.
            numbers: Plan of these steps in the complete run.

        Returns:
            Sequence with one entry for each step, as in `plan`.
        """
        return self.plan(schedule, times)

    def calls(self, schedule: Schedule, times: Sequence[float]) -> int:
        """Return the number of network evaluations (NFE) of a run.

        Args:
            schedule: Noise schedule of the run.
            times: Times of the run, noisiest first.

        Returns:
            Number of evaluations.
        """
        return len(times) - 1 - self.known_steps + (self.denoise and float(schedule.sigma(times[-1])) > 0)

    def ending(self, denoise: bool) -> "Solver":
        """Return a copy of this solver with the given value of `denoise`."""
        other = copy.copy(self)
        object.__setattr__(other, "denoise", denoise)
        return other

    def onward(self) -> "Solver":
        """Return the solver that takes over after the leading steps, which need no network."""
        return self

    def moments_at(self, step: TimeStep) -> int:
        """Return the number of noise moments that this step uses."""
        return self.moments_needed

    def draws_at(self, step: TimeStep) -> bool:
        """Return True if this step draws noise."""
        return True

    def check(self, model: Any, shape: Sequence[int], clip: tuple[float, float] | None = None) -> None:
        """Check that the solver fits a model, a sample shape and a data range.

        Args:
            model: Denoising network.
            shape: Shape of one sample.
            clip: Data range (lo, hi), or None (default).

        Raises:
            ValueError: If the solver uses statistics or a table that belong to another network, shape or data range.
        """

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> Any:
        """Return the solver's state before the first step, such as an empty history of estimates.

        Args:
            x: State x_T (B, *).
            steps: Steps of the run.

        Returns:
            Object that is passed to the first `step`.
        """
        return None

    def known(self, x: Tensor, step: TimeStep, clip: tuple[float, float] | None) -> Estimate:
        """Return the estimate that replaces the network's in the first `known_steps` steps.

        Args:
            x: State x_t (B, *).
            step: Numbers of the step.
            clip: Data range (lo, hi), or None.

        Returns:
            `gms_fast.estimate.Estimate` at x_t.
        """
        raise NotImplementedError(f"{type(self).__name__} needs the network at every step")

    @abstractmethod
    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        """Take one step from x_t to x_s.

        Args:
            x: State x_t (B, *), which must not be modified.
            estimate: Network's estimate at x_t. `estimate.x0()` is E[x_0|x_t].
            step: Numbers of the step.
            draws: Source of the step's noise: a seed with counters, or given tensors.
            state: Object that the preceding `step` returned, or that `start` returned.

        Returns:
            (x_s, new state of the solver).
        """


class Multistep(Solver):
    """Base class of the solvers whose step is a weighted sum of the state and data estimates.

    x_s = w_0 x_t + sum_j w_{j+1} m_j + std z, where m_0 = E[x_0|x_t] and m_1, m_2, .. are the estimates of earlier
    steps. `plan` returns (weights, std) for each step. The state of the solver is the history of estimates.
    """

    order: int
    linear = True

    def draws_at(self, step: TimeStep) -> bool:
        _, std = step.numbers
        return bool(std > 0)

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> tuple[list[int], tuple[Tensor, ...]]:
        """Return (number of estimates to keep after each step, estimates kept so far)."""
        kept = [0] * len(steps)
        for i in range(len(steps) - 1, 0, -1):
            older = len(steps[i].numbers[0]) - 2  # number that the step reads
            kept[i - 1] = max(older, kept[i] - 1, 0)
        return kept, ()

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        (weights, std), (kept, past) = step.numbers, state
        keeps = kept[step.i] > 0
        made = estimate.linear(past[: len(weights) - 2], weights, std, draws, keeps=keeps)
        return made[0], (kept, (made[1], *past)[: kept[step.i]] if keeps else ())


class Extrapolating(Multistep):
    """Base class of the multistep solvers that extrapolate data estimates to the next step.

    Extrapolation fails if the next step is much longer in log(alpha/sigma) than the steps before it. The last step of a
    grid that is uniform in time is such a step: from time 49 to time 0 of 1000 it has length 2.85, but the step before
    it has length 0.74. For orders above 1, `sample(steps=..)` therefore uses the grid "quadratic", unless the schedule
    has its own grid, as EDM does. Explicit `timesteps` are never changed.
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
        raise ValueError(f"clip_pixel must be a non-negative number or None: got {clip_pixel!r}")


def bounded_last_step(x: Tensor, step: TimeStep, clip_pixel: float | None) -> StepCoefficients | None:
    """Return the last step's coefficients with bounded variance, or None if no bound applies.

    The noise of the last step stays visible in the sample. For images (B, C, H, W), its mean absolute deviation is
    therefore limited to `clip_pixel` grey levels (the range [-1, 1] spans 255 of them, Bao et al. 2022): var_max =
    (clip_pixel 2/255 sqrt(pi/2))^2.

    The bound does not apply to other data. It does not apply either if another run continues from the state, because
    the noise level sigma_s/alpha_s at its end then exceeds two grey levels.
    """
    k = step.coefficients
    if not step.is_last or clip_pixel is None or x.ndim < 4 or k.sigma_s > _std_of(2) * k.alpha_s:
        return None
    bounded = replace if torch.compiler.is_compiling() else _replaced  # one object: kernels find steps by identity
    return bounded(k, var_max=_std_of(clip_pixel) ** 2)


_replaced = functools.lru_cache(256)(replace)


def _std_of(grey_levels: float) -> float:
    """Return the standard deviation of normals whose mean absolute value is `grey_levels`."""
    return grey_levels * 2 / 255 * math.sqrt(math.pi / 2)
