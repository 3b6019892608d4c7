"""The sampling loop. Everything else in the package serves these few lines."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast import constants, network, ops, schedules, solvers
from gms_fast import prediction as predictions
from gms_fast.finite import FiniteCheck
from gms_fast.schedules import Schedule
from gms_fast.solvers import NoiseSource, Solver, StepContext
from gms_fast.steps import StepCoefficients
from gms_fast.types import NoiseMoments, as_range

INITIAL = 2  # stream of the counter-based noise that x_T is drawn from


@torch.no_grad()
def sample(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    steps: int = 10,
    *,
    solver: str | Solver = "gms",
    n: int = 16,
    shape: Sequence[int] | None = None,
    schedule: Schedule | str | None = None,
    timesteps: Sequence[float] | None = None,
    prediction: str | None = None,
    seed: ops.Seed = 0,
    sample_offset: int = 0,
    x_T: Tensor | None = None,
    noise: Callable[[int], Any] | None = None,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    callback: Callable[[int, float, Tensor, Tensor], None] | None = None,
) -> Tensor:
    """Draw samples from a diffusion model: `steps` steps of a solver, then one call more that removes noise still left.

    model      callable (x, t) -> Tensor or NoiseMoments; x (B, *), t (B,) network times. Its attributes
               `sample_shape`, `schedule`, `prediction` and `moments`, if any, are the defaults here
    steps      K >= 1; the network is called K + 1 times (fewer where the grid of integer times has duplicates), K times
               where the schedule ends without noise and by solvers with `denoise = False` (er-sde, DPMSolverV3)
    solver     a name from `gms_fast.solvers.names()` or a Solver
    n, shape   number of samples and shape of one
    timesteps  times of the schedule to visit, noisiest first, steps + 1 of them; replaces `steps`
    prediction "noise" | "x0" | "v" | "flow" (eps - x_0) | "edm" (the raw network F of Karras et al. 2022, with the
               scaling of its inputs in the model): what a single tensor from the model means
    seed       64-bit integer, or one per sample; sample i depends on it and on i alone. An int64 tensor on the state's
               device is read there when noise is drawn: a CUDA graph of the loop takes the values of each replay
    sample_offset  index of the first sample: batches that continue each other give the samples of one big batch
    x_T        (n, *shape) to start from; drawn from N(0, sigma_T^2) if None
    noise      noise(step) -> z or (z, u) replaces the counter-based draws
    clip       data range for E[x_0|x_t], or None
    device, dtype  of the state (the model's device and float32 unless given)
    progress   whether to show a progress bar on stderr
    callback   callback(step, t, x, x0) with the state at t and E[x_0|x_t], before each step
    Returns (n, *shape). Raises ValueError or TypeError naming the argument before the model is called, and
    ValueError naming the step if the model returns NaN, infinity or too few moments.

    The loop never waits for a GPU: NaN and infinity there, in x_T too, are reported after the last step. It compiles
    into one graph with `torch.compile(..., fullgraph=True)`, without `progress` and with a callback that can be traced,
    and can be captured in a CUDA graph. Then NaN and infinity are not reported and go through to their samples.
    """
    if callback is not None and not callable(callback):
        raise TypeError(f"callback must be callable as callback(step, t, x, x0): got {type(callback).__name__}")
    run = _Run.prepare(
        model,
        solver,
        schedule,
        prediction,
        clip,
        NoiseSource(seed=ops.as_seed(seed), sample_offset=sample_offset, given=noise),
    )
    visits = _visits(run.schedule, steps, timesteps, run.solver)
    first = visits[run.solver.free]  # where the network is called
    if first.coefficients.alpha_t == 0 and run.prediction not in predictions.WITHOUT_SIGNAL:
        forms = ", ".join(predictions.WITHOUT_SIGNAL)
        raise ValueError(
            f"prediction must be one of {forms} where timesteps start at alpha = 0, as at t = {first.t:g}: "
            f"got {run.prediction!r}, which tells nothing of x_0 there"
        )
    x = run.initial(visits[0], n, shape, x_T, device, dtype)
    run.solver.check(model, x.shape[1:])
    contexts = run.contexts(visits, x.device)
    state = run.solver.start(x, contexts)
    pairs = list(zip(visits[:-1], contexts, strict=True))  # the last visit starts no step
    for visit, context in tqdm(pairs, unit="step") if progress else pairs:
        known = visit.index < run.solver.free
        estimate = run.solver.known(x, context) if known else run.evaluate(x, visit)
        if callback is not None:
            callback(visit.index, visit.t, x, estimate.x0())
        x, state = run.solver.step(x, estimate, context, state)
    if run.solver.denoise and visits[-1].coefficients.sigma_t > 0:
        x = run.evaluate(x, visits[-1]).x0()  # the K+1st call
    run.finite.see(x, "samples must be finite: the last step made NaN or infinity")
    run.finite.report()
    return x


class _Visit(NamedTuple):
    """One call of the network: its place in the loop, its time, and the numbers of the step from there."""

    index: int
    t: float
    network_time: float
    coefficients: StepCoefficients
    plan: Any


def _visits(schedule: Schedule | str, steps: int, timesteps: Sequence[float] | None, solver: Solver) -> list[_Visit]:
    """All calls of the network: at `timesteps` or after as many steps, the last to remove what noise is left."""
    wanted = _integer("steps", steps) if timesteps is None else _times(timesteps)
    if torch.compiler.is_compiling():
        plan = _constant_plan(constants.pack(schedule), wanted, constants.pack(solver))
    else:
        plan = _plan(schedule, wanted, solver)
    return [
        _Visit(i, t, time, StepCoefficients(**dict(numbers)), own) for i, (t, time, numbers, own) in enumerate(plan)
    ]


def _plan(schedule: Schedule | str, wanted: int | list[float], solver: Solver) -> list[tuple]:
    """(time, network time, step coefficients as pairs of name and number, the solver's own numbers) of each visit."""
    schedule = schedules.build(schedule)
    times = solver.times(schedule, wanted)
    steps = [StepCoefficients.between(schedule, t, s) for t, s in pairwise(times)]
    steps.append(StepCoefficients.at(schedule, times[-1]))
    own = [*solver.plan(schedule, times), None]
    numbers = [tuple(vars(k).items()) for k in steps]
    return [(t, float(schedule.network_time(t)), *n) for t, *n in zip(times, numbers, own, strict=True)]


@constants.function
def _constant_plan(schedule: Any, wanted: int | list[float], solver: Any) -> list[tuple]:
    """`_plan` of a packed schedule and solver."""
    return _plan(constants.unpack(schedule), wanted, constants.unpack(solver))


@dataclass(frozen=True)
class _Run:
    """The checked arguments of one call of `sample`, and what it watches."""

    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments]
    solver: Solver
    schedule: Schedule | str
    prediction: str
    clip: tuple[float, float] | None
    noise: NoiseSource
    central: bool
    finite: FiniteCheck

    @classmethod
    def prepare(cls, model, solver, schedule, form, clip, noise) -> "_Run":
        schedule, form = network.described(model, schedule, form)
        if noise.given is not None and not callable(noise.given):
            raise TypeError(f"noise must be callable as noise(step): got {type(noise.given).__name__}")
        clip = None if clip is None else as_range(clip)
        moments = getattr(model, "moments", "raw")
        if moments not in ("raw", "central"):
            raise ValueError(f'model.moments must be "raw" or "central": got {moments!r}')
        return cls(model, solvers.build(solver), schedule, form, clip, noise, moments == "central", FiniteCheck())

    def initial(self, visit, n, shape, x_T, device, dtype) -> Tensor:
        """x_T: given, or sigma_T times counter-based normals."""
        weight = network.weight_of(self.model)
        if x_T is not None:
            x = _given_state(x_T, shape)
            self.finite.see(x, "x_T must be finite: it holds NaN or infinity")
            return self._checked(x.to(device or x.device, dtype or x.dtype))
        device = device or (weight.device if weight is not None else "cpu")
        dtype = dtype or torch.float32
        if _integer("n", n) < 0:
            raise ValueError(f"n must be a non-negative integer: got {n}")
        shape = shape if shape is not None else getattr(self.model, "sample_shape", None)
        if shape is None:
            raise ValueError("shape must be given: this model has no attribute `sample_shape`")
        x = self._checked(_described_state(n, shape, dtype, device))
        draw = {"seed": self.noise.seed, "sample_offset": self.noise.sample_offset, "stream": INITIAL}
        return visit.coefficients.sigma_t * ops.philox_normal(x.shape, **draw, device=device, dtype=dtype)

    def _checked(self, x: Tensor) -> Tensor:
        """x, if seeds and sample indices fit it."""
        seed, offset = self.noise.seed, _integer("sample_offset", self.noise.sample_offset)
        if isinstance(seed, Tensor) and seed.ndim == 1 and len(seed) != len(x):
            raise ValueError(f"seed must be one integer or one per sample, {len(x)} of them: got {len(seed)}")
        ops.check_sample_offset(offset, len(x))
        return x

    def contexts(self, visits: list[_Visit], device: torch.device) -> list[StepContext]:
        """What the solver knows about each step, its seeds on the state's device."""
        seed = self.noise.seed
        noise = replace(self.noise, seed=seed.to(device)) if isinstance(seed, Tensor) else self.noise
        return [
            StepContext(
                index=visit.index,
                is_last=visit.index == len(visits) - 2,
                t=visit.t,
                s=following.t,
                coefficients=visit.coefficients,
                clip=self.clip,
                central=self.central,
                noise=noise,
                plan=visit.plan,
            )
            for visit, following in pairwise(visits)
        ]

    def evaluate(self, x: Tensor, visit: _Visit) -> predictions.Estimate:
        """What the network says at x, checked."""
        output = self._call(x, visit.network_time)
        estimate = predictions.estimate(output, x, visit.coefficients, self.prediction, self.clip)
        if isinstance(output, Tensor):
            said = {"e1" if self.prediction == "noise" else "its output": output}
        else:
            said = {name: e for name, e in zip(NoiseMoments._fields, output, strict=True) if e is not None}
        if len(said) < self.solver.moments_needed:
            raise ValueError(
                f"model must return NoiseMoments with {self.solver.moments_needed} moments for "
                f"{type(self.solver).__name__}, but gives {len(said)}: train heads with "
                "gms_fast.training.train_moment_heads, or choose a solver that needs the noise alone, such as ddim"
            )
        for name, tensor in said.items():
            self.finite.see(tensor, f"model returned NaN or infinity in {name} at step {visit.index} (t = {visit.t:g})")
        return estimate

    def _call(self, x: Tensor, time: float) -> Tensor | NoiseMoments:
        wide = torch.promote_types(x.dtype, torch.float32)
        return network.call(self.model, x, torch.full((len(x),), time, dtype=wide, device=x.device))


def _integer(name: str, value: object) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer: got {value!r}") from None


def _times(timesteps: Sequence[float]) -> list[float]:
    try:
        return [float(t) for t in timesteps]
    except (TypeError, ValueError):
        raise TypeError(f"timesteps must be a sequence of times: got {timesteps!r}") from None


def _given_state(x_T: object, shape: Sequence[int] | None) -> Tensor:
    if not isinstance(x_T, Tensor) or not x_T.is_floating_point() or x_T.ndim == 0:
        raise TypeError(f"x_T must be a floating-point tensor (n, *): got {x_T!r}")
    if shape is not None and tuple(x_T.shape[1:]) != tuple(shape):
        raise ValueError(f"x_T must be (n, {', '.join(map(str, shape))}): got {tuple(x_T.shape)}")
    return x_T


def _described_state(n: int, shape: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The state without its data: torch says whether there is such a tensor before any memory is spent."""
    try:
        torch.device(device)
        return torch.empty((n, *shape), dtype=dtype, device="meta")
    except (TypeError, RuntimeError) as error:
        message = f"n, shape, dtype and device must describe a tensor: got {n}, {shape!r}, {dtype!r}, {device!r}"
        raise ValueError(message) from error
