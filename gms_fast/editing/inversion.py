"""Inversion: a deterministic solver run backwards, from an image to its x_T.

Song et al. 2021, arXiv 2010.02502, section 4.3, describe this for DDIM.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from gms_fast.assumptions import UNSAID
from gms_fast.editing.start import Start, Strength, begin, pictures
from gms_fast.estimate import Estimate
from gms_fast.ops.types import Draws
from gms_fast.plan import integer
from gms_fast.sampling import sample
from gms_fast.schedules import Schedule
from gms_fast.solvers import DDIM, DPMSolverPP, Euler, Heun, Solver, UniP
from gms_fast.solvers.base import TimeStep
from gms_fast.types import NoiseMoments

_KINDS = (DDIM, Euler, Heun, DPMSolverPP, UniP)


@dataclass(frozen=True, eq=False, kw_only=True)
class Inversion(Solver):
    """Reversed deterministic solver, whose steps run from low noise to high noise.

    The formulas of the probability flow hold in both directions. To invert images, use
    [`invert`][gms_fast.editing.invert]. Because this class is a solver, it also works with
    [`graphed`][gms_fast.graphed].

    The times are those of `then` in reverse order. The run starts from x = alpha_t image, where t is the time with the
    lowest noise above zero. Here one additional network evaluation adds the noise that the last evaluation of `then`
    would remove:

        x_t = alpha_t image + sigma_t e1(alpha_t image) = 2 x - alpha_t E[x_0|x]

    Args:
        then: The solver to reverse: DDIM, Euler, Heun, DPMSolverPP or UniP, with settings that draw no noise.

    Raises:
        ValueError: If `then` cannot be inverted. `times` and `plan` also raise ValueError if `then` draws noise, or if
            it uses log(alpha/sigma) and alpha is 0 at some time.

    Examples:
        >>> from gms_fast.solvers import DDIM
        >>> inverse = gms_fast.editing.Inversion(then=DDIM())
        >>> model = gms_fast.load("digits")
        >>> times = inverse.times(model.schedule, 5)
        >>> times[0] < times[-1]
        True

    References:
        Song et al. 2021, arXiv 2010.02502.
    """

    then: Solver
    denoise = False
    rises = True

    def __post_init__(self) -> None:
        if not isinstance(self.then, _KINDS):
            names = ", ".join(kind.__name__ for kind in _KINDS)
            raise ValueError(f"solver must be invertible, one of {names}: got {type(self.then).__name__}")

    def times(
        self,
        schedule: Schedule,
        wanted: int | Sequence[float],
        *,
        t_max: float | None = None,
        spacing: str | float | None = None,
    ) -> list[float]:
        """Return the solver's times that have noise, in reverse order, with the first one repeated.

        Args:
            schedule: Noise schedule.
            wanted: Number of steps, or the times themselves.
            t_max: Noisiest time of the grid. Default: the noisiest time of the schedule.
            spacing: Spacing of the grid, as in `Schedule.timesteps`. Default: the spacing of the solver.

        Returns:
            List of times, lowest noise first.

        Raises:
            ValueError: If the solver draws noise.
        """
        times = self.then.times(schedule, wanted, t_max=t_max, spacing=spacing)
        if any(std > 0 for _, std in self.then.plan(schedule, times)):
            raise ValueError(f"solver must be deterministic to be inverted: {self.then} draws noise")
        rising = [t for t, _ in groupby(reversed(times)) if float(schedule.sigma(t)) > 0]
        return [rising[0], *self.then.visits(schedule, rising)]

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[Any]:
        if not isinstance(self.then, (DDIM, Euler, Heun)):
            self._check_signal(schedule, times[-1])
        return [((2.0, -float(schedule.alpha(times[0]))), 0.0), *self.then.plan(schedule, times[1:])]

    def _check_signal(self, schedule: Schedule, t: float) -> None:
        """Raise ValueError if the last time t has alpha = 0, which the solver cannot reach."""
        if not float(schedule.alpha(t)) > 0:
            raise ValueError(
                f"strength must lead to alpha > 0 for {self.then.name}: {schedule!r} has alpha = 0 at t = {t:g}; "
                f"{schedule.later_start}, or use ddim or heun"
            )

    def ending(self, denoise: bool) -> "Inversion":
        return self

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> tuple[tuple[TimeStep, ...], Any]:
        """Return the steps of the solver and its state."""
        own = tuple(step._replace(i=step.i - 1) for step in steps[1:])
        return own, self.then.start(x, own)

    def draws_at(self, step: TimeStep) -> bool:
        return False

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        steps, own = state
        if step.i == 0:
            weights, std = step.numbers
            return estimate.linear((), weights, std, draws)[0], state
        x, own = self.then.step(x, estimate, steps[step.i - 1], draws, own)
        return x, (steps, own)


@torch.no_grad()
def invert(
    model: Callable[..., Tensor | NoiseMoments],
    image: Tensor,
    *,
    steps: int = 50,
    solver: str | Solver = "dpm-solver++",
    strength: Strength = 1.0,
    shape: Sequence[int] | None = None,
    schedule: Schedule | str | None = None,
    prediction: str | None = None,
    clip: tuple[float, float] | str | None = UNSAID,
    condition: dict[str, Any] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    callback: Callable[[int, float, Tensor, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Find the noise x_T from which a deterministic solver draws an image.

    The solver takes its steps backwards, from x_0 to the noisiest time. If you sample from the result with the same
    solver, you get the image back, up to the error of the solver.

    Args:
        model: Callable `(x, t)`, as in [`sample`][gms_fast.sample].
        image: Images (n, C, H, W), or one image (C, H, W), floating point, in the model's data range.
        steps: Number of steps K >= 1. The inversion costs as many network evaluations as sampling with the same solver.
        solver: A `Solver` or a solver string: "ddim" or "euler" (order 1), "heun" (order 2, two evaluations per step),
            or "dpm-solver++" or "unip" (adjustable order). The default has the smallest error (docs/editing.md), but it
            cannot reach a noise level with alpha = 0.
        strength: Noise level at which to stop, as in [`stroke`][gms_fast.editing.stroke]; 1 is the noisiest. To sample
            from a state at a lower strength, use the times that [`timesteps`][gms_fast.editing.timesteps] returns.
        shape: Shape of one sample. Default: the model's `sample_shape`.
        schedule: As in [`sample`][gms_fast.sample].
        prediction: As in [`sample`][gms_fast.sample].
        clip: As in [`sample`][gms_fast.sample]. Use the same value when you sample from the result.
        condition: As in [`sample`][gms_fast.sample].
        batch_size: As in [`sample`][gms_fast.sample].
        device: Device of the state. Default: the model's device.
        dtype: Data type of the state. Default: the data type of the image.
        progress: As in [`sample`][gms_fast.sample].
        callback: As in [`sample`][gms_fast.sample].

    Returns:
        x_T, or the state at the noise level of `strength`, a tensor (n, C, H, W).

    Raises:
        ValueError: If `solver` draws noise or cannot be inverted, and in all cases in which it is raised by
            [`stroke`][gms_fast.editing.stroke]. All arguments are checked before the model is called.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> image = gms_fast.sample(model, 5, n=2)
        >>> x_T = gms_fast.editing.invert(model, image, steps=20)
        >>> again = gms_fast.sample(model, 20, solver="dpm-solver++", x_T=x_T)
        >>> bool((again - image).abs().mean() < 0.1)
        True

    References:
        Song et al. 2021, arXiv 2010.02502.
    """
    start = begin(model, schedule, solver, strength, steps)
    Inversion(then=start.solver)  # raises for solvers that cannot be inverted
    x = pictures(model, image, n=None, shape=shape, clip=clip, device=device, dtype=dtype)
    return _inverted(
        start,
        x,
        model=model,
        schedule=schedule,
        prediction=prediction,
        clip=clip,
        condition=condition,
        batch_size=batch_size,
        progress=progress,
        callback=callback,
    )


def _inverted(start: Start, x: Tensor, **run: Any) -> Tensor:
    """Invert images with the solver of a start; `run` holds further arguments of `sample`."""
    if start.sigma == 0:
        return x.clone()
    inverse = Inversion(then=start.solver)
    return sample(solver=inverse, timesteps=start.times, x_T=start.least * x, **run)


@torch.no_grad()
def interpolate(
    model: Callable[..., Tensor | NoiseMoments],
    first: Tensor,
    second: Tensor,
    *,
    n: int = 7,
    steps: int = 50,
    solver: str | Solver = "dpm-solver++",
    strength: Strength = 1.0,
    shape: Sequence[int] | None = None,
    schedule: Schedule | str | None = None,
    prediction: str | None = None,
    clip: tuple[float, float] | str | None = UNSAID,
    condition: dict[str, Any] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
) -> Tensor:
    """Interpolate between two images along the great circle between their noise tensors x_T.

    Inverting both images gives the noise tensors x_T' and x_T'', with an angle w between them. The solver then draws n
    samples from points on the great circle between these tensors, with s from 0 to 1:

        x_T(s) = (sin((1 - s) w) x_T' + sin(s w) x_T'')/sin w

    Args:
        model: Callable `(x, t)`, as in [`sample`][gms_fast.sample].
        first: One image, for example (C, H, W), in the model's data range.
        second: One image of the same size.
        n: Number of results >= 2, including the reconstructions of both images.
        steps: Number of steps K >= 1 of the solver, in each direction.
        solver: A deterministic solver, as in [`invert`][gms_fast.editing.invert].
        strength: Noise level at which to interpolate, as in [`invert`][gms_fast.editing.invert].
        shape: Shape of one sample. Default: the model's `sample_shape`.
        schedule: As in [`sample`][gms_fast.sample].
        prediction: As in [`sample`][gms_fast.sample].
        clip: As in [`sample`][gms_fast.sample].
        condition: Keyword arguments for the network. Tensors have one row for all results, or one row for each of the
            two images. In the second case, each result uses the row of the image that it is closer to.
        batch_size: As in [`sample`][gms_fast.sample].
        device: Device of the state. Default: the model's device.
        dtype: Data type of the state. Default: the data type of the image.
        progress: As in [`sample`][gms_fast.sample].

    Returns:
        Tensor (n, C, H, W). The first and the last result are reconstructions of the two images.

    Raises:
        ValueError: If `n` < 2 or the images differ in size, and in all cases in which it is raised by
            [`invert`][gms_fast.editing.invert].
        TypeError: If an argument has the wrong type.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> first, second = gms_fast.sample(model, 5, n=2)
        >>> gms_fast.editing.interpolate(model, first, second, n=5, steps=10).shape
        torch.Size([5, 1, 8, 8])

    References:
        Song et al. 2021, arXiv 2010.02502, section 5.3.
    """
    if integer("n", n) < 2:
        raise ValueError(f"n must be at least 2: got {n}")
    start = begin(model, schedule, solver, strength, steps)
    Inversion(then=start.solver)
    given: dict[str, Any] = {"n": None, "shape": shape, "clip": clip, "device": device, "dtype": dtype}
    ends = {name: pictures(model, x, name=name, **given) for name, x in (("first", first), ("second", second))}
    for name, x in ends.items():
        if len(x) != 1 or x.shape != ends["first"].shape:
            raise ValueError(f"{name} must be one image, of the same size as the other: got {tuple(x.shape)}")
    run: dict[str, Any] = {"model": model, "schedule": schedule, "prediction": prediction, "clip": clip}
    run |= {"batch_size": batch_size, "progress": progress}
    shares = torch.linspace(0, 1, n, dtype=torch.float64, device="cpu")
    at_ends = _inverted(start, torch.cat([*ends.values()]), condition=_nearer(condition, shares[[0, -1]]), **run)
    x_T = on_circle(at_ends[0], at_ends[1], shares)
    if not start.times:
        return x_T
    return sample(solver=start.solver, timesteps=start.times, x_T=x_T, condition=_nearer(condition, shares), **run)


def _nearer(condition: Any, shares: Tensor) -> Any:
    """Expand a condition to the points of the path: one row, or that of the nearer end."""
    if isinstance(condition, dict):
        return {name: _nearer(part, shares) for name, part in condition.items()}
    if isinstance(condition, Tensor) and condition.ndim and len(condition) in (1, 2):
        return condition[((shares > 0.5) * (len(condition) - 1)).long().to(condition.device)]
    return condition


def on_circle(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Points (n, *) on the great circle between two states, at shares (n,) of the path."""
    wide = torch.promote_types(first.dtype, torch.float32)
    a, b = first.to(wide), second.to(wide)
    u, v = (x / x.norm().clamp(min=torch.finfo(wide).tiny) for x in (a, b))
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())  # exact for small angles, unlike acos
    angle = angle.clamp(1e-4, math.pi - 1e-3)
    s = shares.to(a.device, wide).view(-1, *[1] * a.ndim)
    return ((((1 - s) * angle).sin() * a + (s * angle).sin() * b) / angle.sin()).to(first.dtype)
