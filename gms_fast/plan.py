"""A run's plan: the times that are visited, and all numbers that are known of them before the network is called."""

import math
import operator
import struct
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from gms_fast import constants, schedules
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.steps import StepCoefficients

BY_LEVEL = 1 << 31  # counters from here on follow the noise level, those from `solvers.base.COUNTED` on count steps


class Visit(NamedTuple):
    """One time that is visited, and the numbers of the step from there.

    network_time  what the network is asked at
    plan          what the solver's `plan` says of the step
    late          whether it lies in the last half of the run
    level         counter of the step's noise by its noise level (`_level`)
    """

    index: int
    t: float
    network_time: float
    coefficients: StepCoefficients
    plan: Any
    level: int
    late: bool


class Plan(NamedTuple):
    """The visits, noisiest first; whether the last is one more call, to remove the noise left; whether the first is
    the schedule's noisiest time.
    """

    visits: list[Visit]
    denoise: bool
    whole: bool


def plan(
    schedule: Schedule | str,
    own: Schedule | None,
    steps: int,
    timesteps: Sequence[float] | None,
    solver: Solver,
    denoise: bool | None,
) -> Plan:
    """The plan of a run through `timesteps`, or of so many steps.

    own      the model's schedule, by which one that says nothing of it learns how to ask the network
    denoise  None: as the solver has it, and at a single time
    """
    if denoise not in (None, True, False):
        raise TypeError(f"denoise must be True, False or None: got {denoise!r}")
    wanted = integer("steps", steps) if timesteps is None else _times(timesteps)
    if torch.compiler.is_compiling():
        packed = (constants.pack(value) for value in (schedule, own, solver))
        numbers, *said = _constant_numbers(*packed, wanted, denoise)
    else:
        numbers, *said = _numbers(schedule, own, solver, wanted, denoise)
    return Plan(
        [
            Visit(i, t, time, StepCoefficients(**dict(step)), planned, int(level), 2 * i >= len(numbers) - 1)
            for i, (t, time, step, planned, level) in enumerate(numbers)
        ],
        *said,
    )


def _numbers(
    schedule: Schedule | str, own: Schedule | None, solver: Solver, wanted: int | list[float], denoise: bool | None
) -> tuple[list[tuple], bool, bool]:
    """(time, network time, step coefficients as pairs of name and number, the solver's own numbers, level) of each
    visit; the other fields of `Plan`.
    """
    schedule = schedules.build(schedule).asked_like(own)
    solver = solver if denoise is None else solver.ending(denoise)
    times = solver.times(schedule, wanted)
    steps = [StepCoefficients.between(schedule, t, s) for t, s in pairwise(times)]
    steps.append(StepCoefficients.at(schedule, times[-1]))
    planned = [*solver.plan(schedule, times), None]
    visits = [
        (t, float(schedule.network_time(t)), tuple(vars(k).items()), its, _level(k))
        for t, k, its in zip(times, steps, planned, strict=True)
    ]
    last = denoise if denoise is not None else solver.denoise or len(times) == 1
    return visits, last and steps[-1].sigma_t > 0, times[0] == getattr(schedule, "t_max", None)


@constants.function
def _constant_numbers(schedule: Any, own: Any, solver: Any, wanted: int | list[float], denoise: bool | None) -> tuple:
    """`_numbers` of packed objects."""
    return _numbers(*(constants.unpack(value) for value in (schedule, own, solver)), wanted, denoise)


def _level(step: StepCoefficients) -> float:
    """A counter of its own for every noise level sigma/alpha: the bits of that number in float32, from 2^31 on.

    A run that starts at any level so draws noise that no run through other levels draws. An integer as a float, which
    torch.compile takes for a constant.
    """
    ratio = step.sigma_t / step.alpha_t if step.alpha_t > 0 else math.inf
    finite = min(ratio, torch.finfo(torch.float32).max)
    return float(BY_LEVEL + struct.unpack("<I", struct.pack("<f", finite))[0])


def integer(name: str, value: object) -> int:
    """The value as an integer. Raises TypeError naming the argument."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer: got {value!r}") from None


def _times(timesteps: Sequence[float]) -> list[float]:
    try:
        return [float(t) for t in timesteps]
    except (TypeError, ValueError):
        raise TypeError(f"timesteps must be a sequence of times: got {timesteps!r}") from None
