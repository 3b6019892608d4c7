"""One run of the sampler: checked arguments, initial state, evaluations and checks."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gms_fast import ops, solvers
from gms_fast import prediction as predictions
from gms_fast.assumptions import Description, attribute, describe, missing
from gms_fast.callers import stacklevel
from gms_fast.clipping import note_share, warn_of
from gms_fast.estimate import Estimate, estimate
from gms_fast.finite import BEFORE, FiniteCheck, place_of, recorded
from gms_fast.network import Network, device_of
from gms_fast.ops.types import WRITTEN, Draws
from gms_fast.plan import Plan, as_times, integer, plan
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.solvers.base import TimeStep
from gms_fast.types import NoiseMoments

INITIAL = 2  # stream of the noise generator for x_T

Callback = Callable[[int, float, Tensor, Tensor], Tensor | None]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Checked arguments of one call of `sample`, with its plan and its checks."""

    model: Callable[..., Tensor | NoiseMoments]
    network: Network
    solver: Solver
    said: Description
    walk: Plan
    callback: Callback | None
    finite: FiniteCheck

    @classmethod
    def prepare(
        cls,
        model: Callable[..., Tensor | NoiseMoments],
        *,
        solver: str | Solver,
        steps: int,
        timesteps: Sequence[float] | None,
        schedule: Schedule | str | None,
        prediction: str | None,
        clip: tuple[float, float] | str | None,
        denoise: bool | None,
        condition: dict[str, Any] | None,
        batch_size: int | None,
        callback: Callback | None,
    ) -> "Run":
        said = describe(model, schedule, prediction, clip)
        check_callable("callback", callback, "callback(step, t, x, x0)")
        if condition is not None and not isinstance(condition, dict):
            raise TypeError(
                f"condition must be a dict of keyword arguments for the model: got {type(condition).__name__}"
            )
        if batch_size is not None and integer("batch_size", batch_size) < 1:
            raise ValueError(f"batch_size must be at least 1, or None: got {batch_size}")
        wanted = steps if timesteps is None else len(as_times(timesteps)) - 1
        solver = solvers.build(solver, origin=origin_of(model), steps=wanted)
        meaning = said.prediction, said.clip, said.central
        walk = plan(said.schedule, said.own, steps, timesteps, solver, denoise, meaning)
        check_signal(walk, solver.known_steps, said.prediction, said.built)
        if walk.foreign:
            warnings.warn(walk.foreign, stacklevel=stacklevel())
        check_trained(solver, model)
        return cls(
            model=model,
            network=Network(model, batch_size=batch_size, condition=condition, apart=True),
            solver=solver,
            said=said,
            walk=walk,
            callback=callback,
            finite=FiniteCheck(partial(explained, walk)),
        )

    def initial(
        self,
        draws: Draws,
        n: int,
        shape: Sequence[int] | None,
        x_T: Tensor | None,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> Tensor:
        """Return x_T: a copy of the given one, or sigma_T times generated normals."""
        if x_T is not None:
            x = _given_state(x_T, shape)
            x = x.detach().to(device or x.device, dtype or x.dtype, copy=True)
            check_samples(draws, len(x))
            self.finite.begin(x)
            self.finite.see(x, BEFORE)
            return x
        device = device or device_of(self.model) or torch.get_default_device()
        dtype = dtype or torch.float32
        if integer("n", n) < 0:
            raise ValueError(f"n must be a non-negative integer: got {n}")
        shape = shape if shape is not None else attribute(self.model, "sample_shape")
        if shape is None:
            raise ValueError(missing(self.model, "sample_shape", "shape"))
        described = _described_state(n, shape, dtype, device)
        check_samples(draws, n)
        x = initial(self.walk, draws, described.shape, device, dtype)
        self.finite.begin(x)
        return x

    def times(self, x: Tensor) -> Sequence[float | Tensor]:
        """Return the network time of each index of the plan, as rows (n,) of one tensor.

        They are numbers under torch.compile and in CUDA graphs, which cannot copy from the host.
        """
        times = [step.network_time for step in (*self.walk.steps, self.walk.last)]
        if recorded(x):
            return times
        wide = torch.promote_types(x.dtype, torch.float32)
        table = torch.tensor(times, dtype=wide, device="cpu").to(x.device, non_blocking=True)
        return table[:, None].expand(len(times), len(x)).contiguous().unbind()

    def evaluate(self, x: Tensor, step: TimeStep, time: float | Tensor) -> Estimate:
        """Return the network's estimate at x, checked."""
        if step.i < self.solver.known_steps:
            return self.solver.known(x, step, self.said.clip)
        alone = step is self.walk.last or self.solver.moments_at(step) == 1
        if step.i == self.solver.known_steps and self.walk.steps:  # the first call checks what all later ones need
            alone = self.solver.moments_needed == 1
        found = estimate(self.network(x, time, first=alone), x, step.meaning, self.finite, step.i)
        check_moments(self.solver, found, 1 if alone and self.network.has_first else self.solver.moments_needed)
        self.finite.of_moments = found.of_moments
        if self.said.clip_assumed and step.late:
            note_share(found, self.finite)
        return found

    def report(self, step: TimeStep, x: Tensor, estimate: Estimate) -> tuple[Tensor, bool]:
        """Call the callback, if there is one; return the state and whether the run ends."""
        if self.callback is None:
            return x, False
        shown, x_0 = x.clone(), estimate.x0()
        self.finite.look()
        before = None if torch.compiler.is_compiling() or shown.is_inference() else shown._version
        try:
            returned = self.callback(step.i, step.t, shown, x_0)
        except StopIteration:
            return x, True
        if before is not None and shown._version != before:
            raise ValueError("callback modified x in place, which has no effect: return the new state instead")
        if not isinstance(returned, Tensor):
            return x, False
        if returned.shape != x.shape:
            raise ValueError(f"callback must return a tensor like x, {tuple(x.shape)}: got {tuple(returned.shape)}")
        return returned.detach().to(x.device, x.dtype, copy=returned is not shown), False

    def finished(self, x: Tensor) -> Tensor:
        """Report the checks and return the result."""
        if self.finite.made is not x and (watch := self.finite.watch(len(self.walk.steps))) is not None:
            self.finite.see(x, watch.code + WRITTEN)
        warn_of(self.finite.report())
        return x


def explained(walk: Plan, code: int, of_moments: bool) -> str:
    """Return the error message for NaN or infinity with a code of `FiniteCheck`."""
    if code == BEFORE:
        return "x_T must be finite: it holds NaN or infinity"
    place, which = place_of(code)
    step = (*walk.steps, walk.last)[place]
    if which < WRITTEN:
        name = ("e1" if of_moments or step.meaning.form == "noise" else "its output", "e2", "e3")[which]
        return f"model returned NaN or infinity in {name} at step {step.i} (t = {step.t:g})"
    if place >= len(walk.steps) - 1:
        return "samples must be finite: the last step produced NaN or infinity"
    return (
        f"state must be finite: step {step.i} (t = {step.t:g}) produced NaN or infinity of the model's output, "
        "or the callback before it did"
    )


def initial(
    plan: Plan, draws: Draws, shape: Sequence[int], device: torch.device | str | None, dtype: torch.dtype | None
) -> Tensor:
    """Draw x_T ~ N(0, sigma_T^2), (n, *sample), from the counter-based generator."""
    first = (*plan.steps, plan.last)[0].coefficients
    z = ops.philox_normal(
        shape, seed=draws.seed, sample_offset=draws.sample_offset, stream=INITIAL, device=device, dtype=dtype
    )
    return first.sigma_t * z


def check_signal(plan: Plan, known_steps: int, form: str, schedule: Callable[[], Schedule]) -> None:
    """Raise ValueError if the first output of the network contains no information about x_0.

    schedule: callable that returns the schedule, for the message.
    """
    first = (*plan.steps, plan.last)[min(known_steps, len(plan.steps))]
    if first.coefficients.alpha_t == 0 and form not in predictions.WITHOUT_SIGNAL:
        forms = ", ".join(predictions.WITHOUT_SIGNAL)
        raise ValueError(
            f"prediction must be one of {forms} where timesteps start at alpha = 0, here t = {first.t:g}: "
            f"got {form!r}, which does not determine x_0 there. Otherwise timesteps must start where alpha > 0 "
            f"({schedule().later_start})"
        )


def check_samples(draws: Draws, n: int) -> None:
    """Raise ValueError unless seeds and sample indices fit n samples."""
    seed = draws.seed
    if isinstance(seed, Tensor) and seed.ndim == 1 and len(seed) != n:
        raise ValueError(f"seed must be one integer or one per sample, {n} of them: got {len(seed)}")
    ops.check_sample_offset(draws.sample_offset, n)


def check_moments(solver: Solver, estimate: Estimate, needed: int) -> None:
    """Raise ValueError if the network returns fewer moments than the solver needs at a step."""
    if needed > 1 and (given := estimate.given) < needed:
        raise ValueError(
            f"model must return NoiseMoments with {solver.moments_needed} moments for {solver.name}, but "
            f"returns {given}: train heads with gms_fast.training.train_moment_heads, or choose a solver "
            "that needs only the predicted noise, such as ddim, er-sde or gms:covariance=FILE,switch=0"
        )


def check_trained(solver: Solver, model: object) -> None:
    """Warn if the solver needs moments and the model's heads for them were never trained."""
    if solver.moments_needed == 1 or torch.compiler.is_compiling() or not attribute(model, "untrained", False):
        return
    message = (
        f"the model's moment heads are untrained, so {solver.name} draws wrong samples: train them with "
        "gms_fast.training.train_moment_heads, load trained ones, or use a solver that needs only the noise, such as "
        "er-sde"
    )
    warnings.warn(message, stacklevel=stacklevel())


def origin_of(model: object) -> str | None:
    """Return the name or folder that the model comes from, if it has one."""
    origin = attribute(model, "origin")
    return origin if isinstance(origin, str) else None


def check_noise(noise: object, step_offset: object) -> None:
    """Raise TypeError or ValueError for an invalid `noise` or `step_offset`."""
    check_callable("noise", noise, "noise(step)")
    if not 0 <= integer("step_offset", step_offset) < 1 << 29:
        raise ValueError(f"step_offset must lie in [0, 2^29): got {step_offset}")


def check_callable(name: str, call: object, wanted: str) -> None:
    """Raise TypeError unless the argument is callable or None."""
    if call is not None and not callable(call):
        raise TypeError(f"{name} must be callable as {wanted}: got {type(call).__name__}")


def _given_state(x_T: object, shape: Sequence[int] | None) -> Tensor:
    if not isinstance(x_T, Tensor) or not x_T.is_floating_point() or x_T.ndim == 0:
        raise TypeError(f"x_T must be a floating-point tensor (n, *): got {x_T!r}")
    if shape is not None and tuple(x_T.shape[1:]) != tuple(shape):
        raise ValueError(f"x_T must be (n, {', '.join(map(str, shape))}): got {tuple(x_T.shape)}")
    return x_T


def _described_state(n: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Return the state without data: torch checks it before any memory is allocated."""
    try:
        torch.device(device)
        return torch.empty((n, *shape), dtype=dtype, device="meta")
    except (TypeError, RuntimeError) as error:
        message = f"n, shape, dtype and device must describe a tensor: got {n}, {shape!r}, {dtype!r}, {device!r}"
        raise ValueError(message) from error
