"""The loop's plan one step at a time, for hosts that own the loop."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gms_fast import ops, prediction, schedules, solvers
from gms_fast.estimate import Estimate, estimate
from gms_fast.ops.checks import a_tensor
from gms_fast.ops.types import Draws, Given, pair
from gms_fast.plan import Plan, as_times, integer, plan, plan_from
from gms_fast.run import check_moments, check_samples, check_signal, initial
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.types import NoiseMoments, as_range


class Stepper:
    """A solver's run through a schedule, step by step: the bits are those of `gms_fast.sample`.

        stepper = Stepper("er-sde", schedule, steps=10)
        x = stepper.initial((n, 3, 32, 32))
        for i, t in enumerate(stepper.network_times):
            x = stepper.step(i, network(x, x.new_full((n,), t)), x)

    solver       a Solver or its text, as "er-sde:order=2"
    schedule     a Schedule or its name
    steps, timesteps  a number of steps, or times of the schedule, noisiest first; one of the two. A single time is one
                 network call; of times with equal noise the first counts
    prediction   what an output that is one tensor means, as in `sample`
    clip         data range for E[x_0|x_t], or None
    central      whether the network's second and third moments are about e1
    seed, sample_offset, denoise  as in `sample`

    A walk may begin at any index: where one does not follow the last, history starts anew there. Counters of the noise
    then follow the noise level, as in `sample(x_T=..)`; from `initial`, or from the schedule's noisiest time, they
    count the steps. Raises ValueError or TypeError naming the argument.
    """

    def __init__(
        self,
        solver: str | Solver,
        schedule: str | Schedule,
        *,
        steps: int | None = None,
        timesteps: Sequence[float] | None = None,
        prediction: str = "noise",
        clip: tuple[float, float] | None = None,
        central: bool = False,
        seed: ops.Seed = 0,
        sample_offset: int = 0,
        denoise: bool | None = None,
    ) -> None:
        if (steps is None) == (timesteps is None):
            raise ValueError(f"steps or timesteps must be given, one of them: got {steps!r} and {timesteps!r}")
        self.solver, self.schedule = solvers.build(solver), schedules.build(schedule)
        self.prediction, self.central, self.denoise = _known(prediction), bool(central), denoise
        self.clip = None if clip is None else as_range(clip)
        times = None if timesteps is None else _distinct(self.schedule, timesteps)
        said = self.prediction, self.clip, self.central
        self.plan = plan(self.schedule, None, steps or 0, times, self.solver, denoise, said)
        check_signal(self.plan, self.solver.known_steps, self.prediction, lambda: self.schedule)
        self._draws = Draws(seed=ops.as_seed(seed), sample_offset=integer("sample_offset", sample_offset))
        ops.check_sample_offset(self._draws.sample_offset, 1)
        self._drawn = False  # whether the next walk begins with what `initial` drew
        self._walk: _Walk | None = None

    @property
    def timesteps(self) -> list[float]:
        """Times of the schedule where the network is asked, noisiest first; the index of `step` counts them."""
        return [step.t for step in self.plan.asked]

    @property
    def network_times(self) -> list[float]:
        """Times that the network takes there."""
        return [step.network_time for step in self.plan.asked]

    def initial(
        self, shape: Sequence[int], device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """x_T ~ N(0, sigma_T^2) of shape (n, *sample), to begin with at index 0."""
        if not isinstance(shape, Sequence) or not shape:
            raise ValueError(f"shape must be (n, *sample): got {shape!r}")
        check_samples(self._draws, shape[0])
        self._drawn, self._walk = True, None
        return initial(self.plan, self._draws, shape, device, dtype)

    def seeded(self, seed: ops.Seed) -> "Stepper":
        """The same plan for draws of another seed, at the start of a walk."""
        other = copy.copy(self)
        other._draws = self._draws._replace(seed=ops.as_seed(seed))
        other._drawn, other._walk = False, None
        return other

    def by(self, solver: Solver) -> "Stepper":
        """The same times for another solver, which must visit the same."""
        other = copy.copy(self)
        other.solver = solver
        times = [step.t for step in (*self.plan.steps, self.plan.last)]
        said = self.prediction, self.clip, self.central
        other.plan = plan(self.schedule, None, 0, times, solver, self.denoise, said)
        return other

    @torch.no_grad()
    def step(
        self,
        index: int,
        output: Tensor | NoiseMoments | None,
        x: Tensor,
        *,
        noise: Given | Callable[[], Given] = None,
        x0: Tensor | None = None,
    ) -> Tensor:
        """x at the next time, or after the last index the sample.

        index   place in `timesteps`
        output  of the network at x and that time; None will do where the solver needs none (index 0 of a Teleport)
        noise   z or (z, u) in place of the counters' draws, or a function that gives them if the step draws any
        x0      E[x_0|x_t] in place of what the output says of it, for solvers that need no further moments
        """
        found = self._estimate(index, output, x)
        if x0 is not None:
            found = self._corrected(found, x0)
        if self._walk is None or index != self._walk.expected:
            self._walk = self._begin(index, x)
        walk, i = self._walk, index - self._walk.begun
        if i == len(walk.plan.steps):
            x = found.x0()
        else:
            z, u = (noise, None) if callable(noise) else pair(noise)
            draws = walk.draws._replace(step=walk.counters[i], z=z, u=u)
            x, walk.state = walk.solver.step(x, found, walk.plan.steps[i], draws, walk.state)
        walk.expected = index + 1
        return x

    @torch.no_grad()
    def x0(self, index: int, output: Tensor | NoiseMoments | None, x: Tensor) -> Tensor:
        """E[x_0|x_t] at an index, clipped to the data range if there is one."""
        return self._estimate(index, output, x).x0()

    def _estimate(self, index: int, output: Tensor | NoiseMoments | None, x: Tensor) -> Estimate:
        if not 0 <= integer("index", index) < len(self.plan.asked):
            raise ValueError(f"index must lie in [0, {len(self.plan.asked)}): got {index}")
        step = self.plan.asked[index]
        a_tensor("x", x)
        if index < self.solver.known_steps:
            self.solver.check(None, x.shape[1:], self.clip)
            return self.solver.known(x, step, self.clip)
        found = estimate(output, x, step.meaning)
        check_moments(self.solver, found, self.solver.moments_at(step) if step is not self.plan.last else 1)
        return found

    def _corrected(self, found: Estimate, x0: Tensor) -> Estimate:
        if self.solver.moments_needed > 1:
            name = type(self.solver).__name__
            raise ValueError(f"x0 must be None for {name}, which reads moments of the noise: give a clip")
        a_tensor("x0", x0)
        if x0.shape != found.x.shape:
            raise ValueError(f"x0 must be shaped like x, {tuple(found.x.shape)}: got {tuple(x0.shape)}")
        return found._replace(data=x0)

    def _begin(self, index: int, x: Tensor) -> "_Walk":
        """A walk from an index on, without history."""
        check_samples(self._draws, len(x))
        solver, steps = (self.solver if index < self.solver.known_steps else self.solver.onward()), self.plan
        if index > 0:
            steps = plan_from(index, self.plan, self.schedule, solver, self.denoise)
        solver.check(None, x.shape[1:], self.clip)
        counted = index == 0 and (self._drawn or self.plan.whole) and not self.solver.known_steps
        self._drawn = False
        state = solver.start(x, steps.steps) if steps.steps else None
        own = solver.counted_from
        counters = steps.counters(index if own is not None else 0, counted=counted, own=own)
        return _Walk(solver, steps, index, self._draws.on(x.device), counters, state)


@dataclass
class _Walk:
    """A run that began at an index: its solver and the state of it, its own plan, and the index that comes next."""

    solver: Solver
    plan: Plan
    begun: int
    draws: Draws
    counters: list[int]
    state: Any
    expected: int = -1


def _known(form: str) -> str:
    if form not in prediction.names():
        raise ValueError(f"prediction must be one of {', '.join(prediction.names())}: got {form!r}")
    return form


def _distinct(schedule: Schedule, timesteps: Sequence[float]) -> list[float]:
    """The times without those whose noise level is that of the time before."""
    times = as_times(timesteps)
    levels = schedule.log_snr(times).tolist()
    return [t for i, t in enumerate(times) if i == 0 or levels[i] != levels[i - 1]]
