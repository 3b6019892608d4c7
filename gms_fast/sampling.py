"""The sampling loop. Everything else in the package serves these few lines."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast import ops, schedules, solvers
from gms_fast import prediction as predictions
from gms_fast.schedules import VP
from gms_fast.solvers import NoiseSource, Solver, StepContext
from gms_fast.steps import StepCoefficients
from gms_fast.types import NoiseMoments, as_range

_INITIAL = 2  # stream of the counter-based noise that x_T is drawn from


@torch.no_grad()
def sample(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    steps: int = 10,
    *,
    solver: str | Solver = "gms",
    n: int = 16,
    shape: Sequence[int] | None = None,
    schedule: VP | str | None = None,
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
    """Draw samples from a diffusion model: `steps` steps of a solver, then one call more that removes the last noise.

    model      callable (x, t) -> Tensor or NoiseMoments; x (B, *), t (B,) network times. Its attributes
               `sample_shape`, `schedule`, `prediction` and `moments`, if any, are the defaults here
    steps      K >= 1; the network is called K + 1 times (fewer where the grid of integer times has duplicates)
    solver     a name from `gms_fast.solvers.names()` or a Solver
    n, shape   number of samples and shape of one
    timesteps  times of the schedule to visit, noisiest first, steps + 1 of them; replaces `steps`
    prediction "noise" | "x0" | "v": what a single tensor from the model means
    seed       64-bit integer, or one per sample; sample i depends on it and on i alone
    sample_offset  index of the first sample: batches that continue each other give the samples of one big batch
    x_T        (n, *shape) to start from; drawn from N(0, sigma_T^2) if None
    noise      noise(step) -> z or (z, u) replaces the counter-based draws
    clip       data range for E[x_0|x_t], or None
    device, dtype  of the state (the model's device and float32 unless given)
    callback   callback(step, t, x, x0) with the state at t and E[x_0|x_t], before each step
    Returns (n, *shape). Raises ValueError or TypeError naming the argument before the model is called, and
    ValueError naming the step if the model returns NaN, infinity or too few moments.
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
    times = run.times(steps, timesteps)
    x = run.initial(times[0], n, shape, x_T, device, dtype)
    state = run.solver.start()
    for i, context in enumerate(tqdm(run.contexts(times), disable=not progress, unit="step")):
        moments = run.evaluate(x, i, context.t, context.coefficients)
        if callback is not None:
            callback(i, context.t, x, run.data_estimate(x, moments, context.coefficients))
        x, state = run.solver.step(x, moments, context, state)
    return run.denoise(x, times[-1], len(times) - 1)


@dataclass(frozen=True)
class _Run:
    """The checked arguments of one call of `sample`."""

    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments]
    solver: Solver
    schedule: VP
    prediction: str
    clip: tuple[float, float] | None
    noise: NoiseSource
    central: bool

    @classmethod
    def prepare(cls, model, solver, schedule, form, clip, noise) -> "_Run":
        if not callable(model):
            raise TypeError(f"model must be callable as model(x, t): got {type(model).__name__}")
        if noise.given is not None and not callable(noise.given):
            raise TypeError(f"noise must be callable as noise(step): got {type(noise.given).__name__}")
        schedule = schedule if schedule is not None else getattr(model, "schedule", None)
        if schedule is None:
            raise ValueError("schedule must be given: this model has no attribute `schedule`")
        if isinstance(schedule, str):
            schedule = schedules.build(schedule)
        if not isinstance(schedule, VP):
            raise TypeError(f"schedule must be a schedule or its name: got {schedule!r}")
        form = form or getattr(model, "prediction", "noise")
        if form not in predictions.names():
            raise ValueError(f"prediction must be one of {', '.join(predictions.names())}: got {form!r}")
        clip = None if clip is None else as_range(clip)
        moments = getattr(model, "moments", "raw")
        if moments not in ("raw", "central"):
            raise ValueError(f'model.moments must be "raw" or "central": got {moments!r}')
        return cls(model, solvers.build(solver), schedule, form, clip, noise, moments == "central")

    def times(self, steps: int, timesteps: Sequence[float] | None) -> list[float]:
        if timesteps is None:
            return self.schedule.timesteps(_integer("steps", steps))
        try:
            times = [float(t) for t in timesteps]
        except (TypeError, ValueError):
            raise TypeError(f"timesteps must be a sequence of times: got {timesteps!r}") from None
        self.schedule.check_times(times)
        return times

    def initial(self, t, n, shape, x_T, device, dtype) -> Tensor:
        """x_T: given, or sigma_T times counter-based normals."""
        weight = self._weight()
        if x_T is not None:
            x = _given_state(x_T, shape)
            return self._checked(x.to(device or x.device, dtype or x.dtype))
        device = device or (weight.device if weight is not None else "cpu")
        dtype = dtype or torch.float32
        if _integer("n", n) < 0:
            raise ValueError(f"n must be a non-negative integer: got {n}")
        shape = shape if shape is not None else getattr(self.model, "sample_shape", None)
        if shape is None:
            raise ValueError("shape must be given: this model has no attribute `sample_shape`")
        x = self._checked(_described_state(n, shape, dtype, device))
        draw = {"seed": self.noise.seed, "sample_offset": self.noise.sample_offset, "stream": _INITIAL}
        return float(self.schedule.sigma(t)) * ops.philox_normal(x.shape, **draw, device=device, dtype=dtype)

    def _checked(self, x: Tensor) -> Tensor:
        """x, if seeds and sample indices fit it."""
        seed, offset = self.noise.seed, _integer("sample_offset", self.noise.sample_offset)
        if isinstance(seed, Tensor) and len(seed) != len(x):
            raise ValueError(f"seed must be one integer or one per sample, {len(x)} of them: got {len(seed)}")
        ops.library.check_sample_offset(offset, len(x))
        return x

    def contexts(self, times: list[float]) -> list[StepContext]:
        return [
            StepContext(
                index=i,
                is_last=i == len(times) - 2,
                t=t,
                s=s,
                coefficients=StepCoefficients.between(self.schedule, t, s),
                clip=self.clip,
                central=self.central,
                noise=self.noise,
            )
            for i, (t, s) in enumerate(pairwise(times))
        ]

    def evaluate(self, x: Tensor, index: int, t: float, coefficients: StepCoefficients) -> NoiseMoments:
        """The network's noise moments at (x, t), checked."""
        moments = predictions.noise_moments(self._call(x, t), x, coefficients, self.prediction)
        given = sum(e is not None for e in moments)
        if given < self.solver.moments_needed:
            raise ValueError(
                f"model must return NoiseMoments with {self.solver.moments_needed} moments for "
                f"{type(self.solver).__name__}, but gives {given}: train heads with "
                "gms_fast.training.train_moment_heads, or choose a solver that needs the noise alone, such as ddim"
            )
        for name, e in zip(NoiseMoments._fields, moments, strict=True):
            if e is not None and not bool(torch.isfinite(e).all()):
                raise ValueError(f"model returned NaN or infinity in {name} at step {index} (t = {t:g})")
        return moments

    def _call(self, x: Tensor, t: float) -> Tensor | NoiseMoments:
        time = float(self.schedule.network_time(t))
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        weight = self._weight()
        y = x if weight is None else x.to(weight.dtype)  # a float32 state may have a bfloat16 network
        return self.model(y, torch.full((len(x),), time, dtype=wide, device=x.device))

    def _weight(self) -> Tensor | None:
        """A parameter that tells device and dtype of the network."""
        return next(self.model.parameters(), None) if isinstance(self.model, torch.nn.Module) else None

    def data_estimate(self, x: Tensor, moments: NoiseMoments, k: StepCoefficients) -> Tensor:
        return predictions.data_estimate(x, moments.e1, k.alpha_t, k.sigma_t, self.clip)

    def denoise(self, x: Tensor, t: float, index: int) -> Tensor:
        """E[x_0|x_t] at the last visited time: the K+1st network call."""
        k = StepCoefficients.at(self.schedule, t)
        return self.data_estimate(x, self.evaluate(x, index, t, k), k)


def _integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an integer: got {value!r}")
    return operator.index(value)


def _given_state(x_T: object, shape: Sequence[int] | None) -> Tensor:
    if not isinstance(x_T, Tensor) or not x_T.is_floating_point() or x_T.ndim == 0:
        raise TypeError(f"x_T must be a floating-point tensor (n, *): got {x_T!r}")
    if shape is not None and tuple(x_T.shape[1:]) != tuple(shape):
        raise ValueError(f"x_T must be (n, {', '.join(map(str, shape))}): got {tuple(x_T.shape)}")
    if not bool(torch.isfinite(x_T).all()):
        raise ValueError("x_T must be finite: it holds NaN or infinity")
    return x_T


def _described_state(n: int, shape: object, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The state without its data: torch says whether there is such a tensor before any memory is spent."""
    try:
        torch.device(device)
        return torch.empty((n, *shape), dtype=dtype, device="meta")
    except (TypeError, RuntimeError) as error:
        message = f"n, shape, dtype and device must describe a tensor: got {n}, {shape!r}, {dtype!r}, {device!r}"
        raise ValueError(message) from error
