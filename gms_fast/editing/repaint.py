"""RePaint (arXiv 2201.09865): known pixels are reset to the noise level after each step."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gms_fast.estimate import Estimate
from gms_fast.ops import fused
from gms_fast.ops.types import Draws
from gms_fast.schedules import Schedule
from gms_fast.solvers import GGDM
from gms_fast.solvers.base import Solver, TimeStep

COUNTED_FROM = 1 << 28  # step_offset that keeps the noise of edits apart from the noise that drew the image
_KNOWN, _BACK = 1 << 26, 1 << 27  # added to a step's counter: noise of known pixels, noise of the return
_COUNTERS = 1 << 32


class Back(NamedTuple):
    """Return to a higher noise level: x_t = scale x_s + std z."""

    scale: float
    std: float


class Arrival(NamedTuple):
    """Noise level where a step ends, and the known elements there.

    Elements with mask < share become alpha image + sigma z. `share` is the strength (`Schedule.share`) of the noise
    level where the step began. `back` is the return to that level, if there is one.
    """

    alpha: float
    sigma: float
    share: float
    back: Back | None


class Call(NamedTuple):
    """Network evaluation of an inpainting run.

    Args:
        number: Index of the solver's own evaluation; None for the final one, which removes the remaining noise.
        numbers: The solver's plan for this step.
        anew: True if the solver starts here without history.
        arrival: Noise level where the step ends; None in the middle of a step with two evaluations.
    """

    number: int | None
    numbers: Any
    anew: bool
    arrival: Arrival | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Inpainting(Solver):
    """Solver that takes another solver's steps and resets the known pixels after each step.

    At the end of a step, the known pixels are set to alpha_s image + sigma_s z with new noise z. After the last step
    they are set to the image. To inpaint images, use [`inpaint`][gms_fast.editing.inpaint]. Because this class is a
    solver, it also works with [`graphed`][gms_fast.graphed] and [`Stepper`][gms_fast.Stepper].

    With `resample` > 1, every step starts without history, because earlier estimates do not belong to the trajectory of
    the new state. Multistep solvers then take steps of order 1.

    Args:
        image: Known data (n, *), shaped like the state, floating point.
        mask: Tensor (n, 1, H, W), (1, 1, H, W) or shaped like the image, floating point: 0 known, 1 redrawn. A value m
            in between is the strength for this element. The element stays known until the run reaches the noise level
            of strength m (`Schedule.share`), rounded down to a noise level of the run.
        then: The solver that takes the steps.
        resample: Number of passes r >= 1 over each step. After each pass but the last, the state returns to the start
            of the step, x_t = (alpha_t/alpha_s) x_s + noise. More passes make the unknown pixels fit the known ones
            better. They cost r times the network evaluations.

    Raises:
        ValueError: If `then` skips network evaluations or goes from less noise to more, if `resample` < 1, or if
            `resample` > 1 with GGDM.
        TypeError: If `image` or `mask` is not a floating-point tensor (raised by `check`).

    Examples:
        >>> from gms_fast.solvers import DPMSolverPP
        >>> model = gms_fast.load("digits")
        >>> image, mask = torch.zeros(2, 1, 8, 8), torch.ones(1, 1, 8, 8)
        >>> mask[..., :4] = 0
        >>> solver = gms_fast.editing.Inpainting(image=image, mask=mask, then=DPMSolverPP())
        >>> x = gms_fast.sample(model, 5, n=2, solver=solver)
        >>> torch.equal(x[..., :4], image[..., :4])
        True

    References:
        Lugmayr et al. 2022, arXiv 2201.09865.
    """

    image: Tensor
    mask: Tensor
    then: Solver
    resample: int = 1
    denoise = False  # the last call is one of the steps
    rises = True
    counted_from = COUNTED_FROM
    unplanned = ("image", "mask")

    def __post_init__(self) -> None:
        if not isinstance(self.then, Solver) or self.then.rises or self.then.known_steps:
            raise ValueError(f"solver must call the network at every step: got {type(self.then).__name__}")
        if self.resample != 1 and isinstance(self.then, GGDM):
            raise ValueError(f"resample must be 1 for GGDM, whose table has one pass: got {self.resample!r}")
        if isinstance(self.resample, bool) or not isinstance(self.resample, int) or self.resample < 1:
            raise ValueError(f"resample must be an integer of at least 1: got {self.resample!r}")

    @property
    def name(self) -> str:
        return self.then.name

    @property
    def moments_needed(self) -> int:  # type: ignore[override]
        return self.then.moments_needed

    def ending(self, denoise: bool) -> "Inpainting":
        return replace(self, then=self.then.ending(denoise))

    def times(
        self,
        schedule: Schedule,
        wanted: int | Sequence[float],
        *,
        t_max: float | None = None,
        spacing: str | float | None = None,
    ) -> list[float]:
        """Return the solver's times, each listed once per network evaluation at that time.

        Args:
            schedule: Noise schedule.
            wanted: Number of steps, or the times themselves.
            t_max: Noisiest time of the grid. Default: the noisiest time of the schedule.
            spacing: Spacing of the grid, as in `Schedule.timesteps`. Default: the spacing of the solver.

        Returns:
            List of times, noisiest first.
        """
        times = self.then.times(schedule, wanted, t_max=t_max, spacing=spacing)
        asked = [t for unit in _units(times) for t in unit * self.resample]
        return [*asked, *times[-1:] * (1 + self._cleans(schedule, times))]

    def _cleans(self, schedule: Schedule, times: Sequence[float]) -> bool:
        """Test if the last network evaluation removes remaining noise."""
        return float(schedule.sigma(times[-1])) > 0 and (self.then.denoise or len(set(times)) == 1)

    def _own(self, schedule: Schedule, times: Sequence[float]) -> list[float]:
        """Recover the solver's own times from the repeated `times`."""
        return _once(list(times[:-1] if self._cleans(schedule, times) else times), self.resample)

    def asked(self, schedule: Schedule, times: Sequence[float]) -> Sequence[float]:
        own = self._own(schedule, times)
        asked = self.then.asked(schedule, own)
        visited = [asked[place.number] for place in _places(own, self.resample)]
        return [*visited, *[asked[-1]] * (len(times) - len(visited))]

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[Call]:
        own = self._own(schedule, times)
        numbers, levels = self._numbers(schedule, own), _Levels.along(schedule, own, self.then.asked(schedule, own))
        places = list(_places(own, self.resample))
        calls = [
            Call(
                place.number,
                numbers[place.number],
                place.first and self.resample > 1,
                levels.arrival(place) if place.ends else None,
            )
            for place in places
        ]
        if self._cleans(schedule, times):
            return [*calls, Call(None, None, False, Arrival(1.0, 0.0, _LEAST, None))]
        *others, last = calls  # the last one ends at the image itself, without noise
        return [*others, last._replace(arrival=Arrival(1.0, 0.0, levels.known(places[-1].begun), None))]

    def _numbers(self, schedule: Schedule, own: list[float]) -> list[Any]:
        """Plan of the solver; with `resample` > 1 every step is planned without history."""
        numbers, begun = list(self.then.plan(schedule, own)), 0
        for unit in _units(own) if self.resample > 1 else ():
            end = begun + len(unit)
            numbers[begun:end] = self.then.replan(schedule, own[begun : end + 1], numbers[begun:end])
            begun = end
        return numbers

    def replan(self, schedule: Schedule, times: Sequence[float], numbers: Sequence[Any]) -> list[Call]:
        own = {
            call.number: (t, call.numbers) for t, call in zip(times, numbers, strict=False) if call.number is not None
        }
        again = [each for _, each in own.values()]
        if self.resample == 1 and own:
            again = list(self.then.replan(schedule, [*(t for t, _ in own.values()), times[-1]], again))
        place = {number: i for i, number in enumerate(own)}
        return [
            call if call.number is None else call._replace(number=place[call.number], numbers=again[place[call.number]])
            for call in numbers
        ]

    def moments_at(self, step: TimeStep) -> int:
        call: Call = step.numbers
        return 1 if call.number is None else self.then.moments_at(step._replace(numbers=call.numbers))

    def check(self, model: Any, shape: Sequence[int], clip: tuple[float, float] | None = None) -> None:
        for name, tensor in (("image", self.image), ("mask", self.mask)):
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
                raise TypeError(f"{name} must be a floating-point tensor: got {tensor!r}")
        if tuple(self.image.shape[1:]) != tuple(shape):
            raise ValueError(f"image must be (n, *{tuple(shape)}) like the state: got {tuple(self.image.shape)}")
        if not broadcasts(self.mask.shape, self.image.shape):
            got = tuple(self.mask.shape)
            raise ValueError(f"mask must broadcast to the image, {tuple(self.image.shape)}: got {got}")
        self.then.check(model, shape, clip)

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> tuple[list[TimeStep], Any, Any]:
        """Return the steps of `then`, its state for later repetitions, and its current state."""
        if len(self.image) != len(x):
            raise ValueError(f"image must hold {len(x)} images, one for each sample: got {len(self.image)}")
        own = {step.numbers.number: step for step in steps if step.numbers.number is not None}  # last pass
        walk = [
            step._replace(i=i, numbers=step.numbers.numbers, is_last=i == len(own) - 1)
            for i, step in enumerate(own.values())
        ]
        state = self.then.start(x, walk) if walk else None
        return walk, state, state

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        call, (walk, begun, own) = step.numbers, state
        if call.number is None:
            x = estimate.x0()
        else:
            own = begun if call.anew else own
            x, own = self.then.step(x, estimate, walk[call.number], draws, own)
        if call.arrival is not None:
            x = self._arrived(x, call.arrival, draws)
        return x, (walk, begun, own)

    def _arrived(self, x: Tensor, to: Arrival, draws: Draws) -> Tensor:
        """Reset the known elements of x, then return to the step's start if required."""
        known = self.image.to(x.dtype)
        if to.sigma > 0:
            known = fused.affine_noise(known, (), (to.alpha,), to.sigma, _apart(draws, _KNOWN))
        x = torch.where(self.mask < to.share, known, x)
        if to.back is None:
            return x
        return fused.affine_noise(x, (), (to.back.scale,), to.back.std, _apart(draws, _BACK))


_LEAST = torch.finfo(torch.float32).tiny  # share below which only mask 0 is known


def broadcasts(shape: Sequence[int], to: Sequence[int]) -> bool:
    """Test if a shape broadcasts to another one."""
    return len(shape) <= len(to) and all(n in (1, m) for n, m in zip(reversed(shape), reversed(to), strict=False))


class _Place(NamedTuple):
    """Network evaluation of the run, in terms of the solver's own evaluations.

    Args:
        number: Index of the solver's evaluation.
        begun: Index of the evaluation where its step begins.
        first: True if a step begins here.
        ends: True if a step ends here.
        again: True if the state returns to the step's start afterwards.
    """

    number: int
    begun: int
    first: bool
    ends: bool
    again: bool


def _places(times: Sequence[float], resample: int) -> Iterator[_Place]:
    """Yield the evaluations of a run with `resample` passes over each step."""
    begun = 0
    for unit in _units(times):
        for left in range(resample - 1, -1, -1):
            for j in range(len(unit)):
                ends = j == len(unit) - 1
                yield _Place(begun + j, begun, j == 0, ends, ends and left > 0)
        begun += len(unit)


def _units(times: Sequence[float]) -> Iterator[list[float]]:
    """Yield the evaluation times of each step: two times if a step is corrected where it ends."""
    unit: list[float] = []
    for i, t in enumerate(times[:-1]):
        unit.append(t)
        if i + 2 == len(times) or times[i + 1] != times[i + 2]:
            yield unit
            unit = []


def _once(times: list[float], resample: int) -> list[float]:
    """Undo the repetition: return the times whose units, each `resample` times, make up `times`."""
    found, i = [], 0
    while i < len(times) - 1:
        size = next(k for k in (1, 2) if times[i : i + k] * resample == times[i : i + k * resample])
        found += times[i : i + size]
        i += size * resample
    return [*found, times[-1]]


class _Levels(NamedTuple):
    """alpha, sigma and share of the noise at each of a solver's own evaluations."""

    alpha: list[float]
    sigma: list[float]
    share: list[float]

    @classmethod
    def along(cls, schedule: Schedule, times: Sequence[float], asked: Sequence[float]) -> "_Levels":
        """Read the levels of a schedule: alpha and sigma at `asked`, shares at `times`."""
        return cls(schedule.alpha(asked).tolist(), schedule.sigma(asked).tolist(), schedule.share(times).tolist())

    def known(self, begun: int) -> float:
        """Share below which masks are known at the end of a step that began at this evaluation."""
        return max(self.share[begun], _LEAST)

    def arrival(self, place: _Place) -> Arrival:
        """Arrival at the end of a step, with the return to its start if there is one."""
        alpha, sigma, back = self.alpha[place.number + 1], self.sigma[place.number + 1], None
        if place.again:
            scale = self.alpha[place.begun] / alpha
            added = self.sigma[place.begun] ** 2 - (scale * sigma) ** 2
            if added < 0:
                raise ValueError(
                    "resample must be 1 where churn ends a step with more noise than it began with: use less churn "
                    "or fewer steps"
                )
            back = Back(scale, math.sqrt(added))
        return Arrival(alpha, sigma, self.known(place.begun), back)


def _apart(draws: Draws, offset: int) -> Draws:
    """Draws of the same step with an offset counter, for another purpose."""
    return draws._replace(step=(draws.step + offset) % _COUNTERS, component="element", z=None, u=None)
