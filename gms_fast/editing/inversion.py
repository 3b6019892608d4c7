"""Inversion: a deterministic solver's way in the other direction, from a picture to the x_T that it is drawn from.

Song et al., ICLR 2021 (arXiv 2010.02502), section 4.3, for DDIM.
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
    """The steps of a deterministic solver from the least noise to the most.

    Formulas of the probability flow hold in both directions. `gms_fast.editing.invert` is the way to call it; as a
    solver it serves `gms_fast.graphed` too.

    then  the solver

    Its times are those of the solver in reverse. It begins at x = alpha image at the first one with noise, t, whose
    noise one call more adds that the solver's last call would remove:

        x_t = alpha_t image + sigma_t e(alpha_t image) = 2 x - alpha_t E[x_0|x]
    """

    then: Solver
    denoise = False
    rises = True

    def __post_init__(self) -> None:
        if not isinstance(self.then, _KINDS):
            names = ", ".join(kind.__name__ for kind in _KINDS)
            raise ValueError(f"solver must be one that can be inverted, {names}: got {type(self.then).__name__}")

    def times(
        self,
        schedule: Schedule,
        wanted: int | Sequence[float],
        *,
        t_max: float | None = None,
        spacing: str | float | None = None,
    ) -> list[float]:
        """Those of the solver in reverse, without a time of no noise, the first one twice."""
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
        if not float(schedule.alpha(t)) > 0:
            raise ValueError(
                f"strength must lead to alpha > 0 for {self.then.name}: {schedule!r} has alpha = 0 at t = {t:g}; "
                f"{schedule.later_start}, or take ddim or heun"
            )

    def ending(self, denoise: bool) -> "Inversion":
        return self

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> tuple[tuple[TimeStep, ...], Any]:
        """(steps of the solver, its state)."""
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
    """The x_T from which a deterministic solver draws a picture, by its own steps in the other direction.

        x_T = invert(model, image, steps=50, solver="ddim")
        again = gms_fast.sample(model, 50, solver="ddim", x_T=x_T)  # the picture, up to an error of the solver's order

    image     (n, *) or one of it, such as (C, H, W), floating point in the model's range
    steps     K, with as many network calls as the solver takes on the way back
    solver    "ddim" or "euler", of order 1; "heun", 2, with two calls a step; "dpm-solver++" or "unip", of their order.
              The default loses least (docs/editing.md), but cannot reach a level without signal
    strength  the noise level to stop at, as in `stroke`; 1 is all. From there `editing.timesteps` leads back

    The other arguments are those of `sample`; the way back wants the same `clip`.

    Returns (n, *). Raises ValueError or TypeError naming the argument before the model is called: as `stroke`, and for
    a solver that draws noise or that has no reverse.
    """
    start = begin(model, schedule, solver, strength, steps)
    Inversion(then=start.solver)  # which refuses what has no reverse
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
    """Pictures taken to a start of the way back; run: arguments of `sample`."""
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
    """n pictures on the way from one to another: both inverted, and drawn from points on the great circle between.

        x_T(s) = (sin((1 - s) w) x_T' + sin(s w) x_T'')/sin w,   s = 0 .. 1, w the angle between x_T' and x_T''

    first, second  one picture each, such as (C, H, W)
    condition      its tensors have one row, for all, or two, of which each picture takes that of the nearer end

    The other arguments are those of `invert`. Returns (n, *), the first and last of which are the two pictures as
    inversion gives them back. Raises as `invert` does.
    """
    if integer("n", n) < 2:
        raise ValueError(f"n must be at least 2: got {n}")
    start = begin(model, schedule, solver, strength, steps)
    Inversion(then=start.solver)
    given: dict[str, Any] = {"n": None, "shape": shape, "clip": clip, "device": device, "dtype": dtype}
    ends = {name: pictures(model, x, name=name, **given) for name, x in (("first", first), ("second", second))}
    for name, x in ends.items():
        if len(x) != 1 or x.shape != ends["first"].shape:
            raise ValueError(f"{name} must be one picture, of the size of both: got {tuple(x.shape)}")
    run: dict[str, Any] = {"model": model, "schedule": schedule, "prediction": prediction, "clip": clip}
    run |= {"batch_size": batch_size, "progress": progress}
    shares = torch.linspace(0, 1, n, dtype=torch.float64, device="cpu")
    at_ends = _inverted(start, torch.cat([*ends.values()]), condition=_nearer(condition, shares[[0, -1]]), **run)
    x_T = on_circle(at_ends[0], at_ends[1], shares)
    if not start.times:
        return x_T
    return sample(solver=start.solver, timesteps=start.times, x_T=x_T, condition=_nearer(condition, shares), **run)


def _nearer(condition: Any, shares: Tensor) -> Any:
    """A condition for points on the way: of tensors the one row, or of two that of the nearer end."""
    if isinstance(condition, dict):
        return {name: _nearer(part, shares) for name, part in condition.items()}
    if isinstance(condition, Tensor) and condition.ndim and len(condition) in (1, 2):
        return condition[((shares > 0.5) * (len(condition) - 1)).long().to(condition.device)]
    return condition


def on_circle(first: Tensor, second: Tensor, shares: Tensor) -> Tensor:
    """Points (n, *) on the great circle from one state to another, at shares (n,) of the way."""
    wide = torch.promote_types(first.dtype, torch.float32)
    a, b = first.to(wide), second.to(wide)
    u, v = (x / x.norm().clamp(min=torch.finfo(wide).tiny) for x in (a, b))
    angle = 2 * torch.atan2((u - v).norm(), (u + v).norm())  # exact for small ones, where acos is not
    angle = angle.clamp(1e-4, math.pi - 1e-3)
    s = shares.to(a.device, wide).view(-1, *[1] * a.ndim)
    return ((((1 - s) * angle).sin() * a + (s * angle).sin() * b) / angle.sin()).to(first.dtype)
