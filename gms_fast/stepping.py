"""Run a solver one step at a time, for code that has its own sampling loop."""

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
    """Solver that advances one step per call, for use in your own sampling loop.

    You evaluate the network, and the stepper turns each output into the next state. A run that starts with
    [`initial`][gms_fast.Stepper.initial] gives the same samples as [`sample`][gms_fast.sample], bit for bit if the
    network outputs are the same. The example below allows for rounding differences, because a separate call of the
    network may round differently.

    A run may start at any index. If an index does not follow the previous one, the solver restarts without its history.

    The noise generator is indexed by step in a run that starts with `initial` or at the schedule's noisiest time. In
    other runs it is indexed by noise level, as in `sample(x_T=...)`.

    Args:
        solver: Solver or solver string, such as "er-sde:order=2".
        schedule: Schedule or its name.
        steps: Number of steps K >= 1. Give either `steps` or `timesteps`, not both.
        timesteps: Times of the schedule, noisiest first. If there is only one time, the network is evaluated once. If
            consecutive times have the same noise level, only the first is used.
        prediction: What a single output tensor represents, as in [`sample`][gms_fast.sample].
        clip: Data range (lo, hi) to which E[x_0|x_t] is clipped, or None for no clipping.
        central: Whether the network's second and third moments are central moments, that is, about e1. If False, they
            are raw moments.
        seed: See [`sample`][gms_fast.sample].
        sample_offset: See [`sample`][gms_fast.sample].
        denoise: See [`sample`][gms_fast.sample].

    Raises:
        ValueError: If an argument is out of range; the message begins with its name.
        TypeError: If an argument has the wrong type; the message begins with its name.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> stepper = gms_fast.Stepper("er-sde", model.schedule, steps=5, clip=(-1, 1))
        >>> x = stepper.initial((2, 1, 8, 8))
        >>> with torch.no_grad():
        ...     for i, t in enumerate(stepper.network_times):
        ...         x = stepper.step(i, model(x, x.new_full((2,), t)).e1, x)
        >>> torch.allclose(x, gms_fast.sample(model, 5, solver="er-sde", n=2), atol=1e-4)
        True
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
            raise ValueError(f"either steps or timesteps must be given, not both: got {steps!r} and {timesteps!r}")
        self.solver, self.schedule = solvers.build(solver), schedules.build(schedule)
        self.prediction, self.central, self.denoise = _known(prediction), bool(central), denoise
        self.clip = None if clip is None else as_range(clip)
        times = None if timesteps is None else _distinct(self.schedule, timesteps)
        said = self.prediction, self.clip, self.central
        self.plan = plan(self.schedule, None, steps or 0, times, self.solver, denoise, said)
        check_signal(self.plan, self.solver.known_steps, self.prediction, lambda: self.schedule)
        self._draws = Draws(seed=ops.as_seed(seed), sample_offset=integer("sample_offset", sample_offset))
        ops.check_sample_offset(self._draws.sample_offset, 1)
        self._drawn = False  # whether the next run begins with a state from `initial`
        self._walk: _Walk | None = None

    @property
    def timesteps(self) -> list[float]:
        """Times of the network evaluations, noisiest first. `step` takes an index into this list."""
        return [step.t for step in self.plan.asked]

    @property
    def network_times(self) -> list[float]:
        """Times to pass to the network, one for each entry of `timesteps`."""
        return [step.network_time for step in self.plan.asked]

    def initial(
        self, shape: Sequence[int], device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Tensor:
        """Draw x_T ~ N(0, sigma_T^2), the state at index 0.

        Args:
            shape: Shape (n, *sample).
            device: Device of the state. Defaults to torch's default device.
            dtype: Floating-point dtype of the state. Defaults to float32.

        Returns:
            The state, a tensor (n, *sample).

        Raises:
            ValueError: If `shape` is empty, or if `seed` contains one seed per sample, but not n of them.
        """
        if not isinstance(shape, Sequence) or not shape:
            raise ValueError(f"shape must be (n, *sample): got {shape!r}")
        check_samples(self._draws, shape[0])
        self._drawn, self._walk = True, None
        return initial(self.plan, self._draws, shape, device, dtype)

    def seeded(self, seed: ops.Seed) -> "Stepper":
        """Return a copy of this stepper with another seed, ready for its first step.

        Args:
            seed: See [`sample`][gms_fast.sample].
        """
        other = copy.copy(self)
        other._draws = self._draws._replace(seed=ops.as_seed(seed))
        other._drawn, other._walk = False, None
        return other

    def by(self, solver: Solver) -> "Stepper":
        """Return a copy of this stepper with another solver and the same times.

        Args:
            solver: Solver that evaluates the network at the same times.
        """
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
        """Return the state at the next time, or the sample if `index` is the last one.

        Args:
            index: Index into `timesteps`.
            output: Network output for x at this time. It may be None if the solver needs no network evaluation, which
                is the case at index 0 of a `Teleport`.
            x: State (n, *sample) at this time.
            noise: Normal numbers z, or a pair (z, u) with uniform numbers u, to use instead of the built-in noise
                generator. It may also be a callable that returns them, which is called only if the step draws noise.
            x0: E[x_0|x_t] to use instead of the value computed from `output`. Allowed only for solvers that need no
                second or third moments.

        Returns:
            Tensor shaped like x.

        Raises:
            ValueError: If `index` is out of range, if shapes differ, or if the output has too few moments.
            TypeError: If an argument has the wrong type.
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
        """Return E[x_0|x_t] at an index, clipped if the stepper has a `clip`.

        Args:
            index: See [`step`][gms_fast.Stepper.step].
            output: See [`step`][gms_fast.Stepper.step].
            x: See [`step`][gms_fast.Stepper.step].
        """
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
            raise ValueError(f"x0 must be None for {name}, which uses noise moments: bound the data with clip instead")
        a_tensor("x0", x0)
        if x0.shape != found.x.shape:
            raise ValueError(f"x0 must be shaped like x, {tuple(found.x.shape)}: got {tuple(x0.shape)}")
        return found._replace(data=x0)

    def _begin(self, index: int, x: Tensor) -> "_Walk":
        """Begin a run at an index, without history."""
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
    """A run that began at an index.

    Args:
        solver: Solver of the run.
        plan: Plan from that index on.
        begun: Index where the run began.
        draws: Seeds and sample indices.
        counters: Noise counter of each step.
        state: The solver's history.
        expected: Index that continues the run.
    """

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
    """Return the times without those whose noise level equals that of the time before."""
    times = as_times(timesteps)
    levels = schedule.log_snr(times).tolist()
    return [t for i, t in enumerate(times) if i == 0 or levels[i] != levels[i - 1]]
