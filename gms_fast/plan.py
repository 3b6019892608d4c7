"""Plan of a run: its times, and all numbers that are known before the first evaluation."""

import math
import operator
import struct
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gms_fast import constants, schedules
from gms_fast.constants import Identified
from gms_fast.prediction import Meaning
from gms_fast.schedules import Schedule
from gms_fast.schedules.base import as_float64
from gms_fast.solvers import Solver
from gms_fast.solvers.base import TimeStep
from gms_fast.steps import StepCoefficients

COUNTED = 1 << 30  # noise counter of the first step; smaller ones are free for callers of the ops
BY_LEVEL = 1 << 31  # counters from here on follow the noise level; those from `COUNTED` on count steps
_MOST = 256  # cached plans
_LEVEL, _SCALE, _DARK = 0.5, 0.1, -4.0  # natural logarithms; rounded times of a table are up to 0.35 away

Said = tuple[str, tuple[float, float] | None, bool]
# (time, network time, step coefficients as (name, number) pairs, the solver's own numbers, level) of each time
Row = tuple[float, float, tuple[tuple[str, float], ...], Any, float]


@dataclass(frozen=True)
class Plan:
    """Numbers of a solver's run through times of a schedule.

    A plan is a value: it compares by its content, and `str` prints it as a table.

    Args:
        steps: The K time steps, noisiest first.
        last: Time where the last step ends.
        denoise: Whether one more evaluation, at `last`, removes the noise that is left.
        whole: Whether the plan begins at the schedule's noisiest time.
        foreign: Warning if the model's own schedule has other noise levels at the network times; empty if it has not.
    """

    steps: tuple[TimeStep, ...]
    last: TimeStep
    denoise: bool
    whole: bool
    foreign: str = field(default="", compare=False, repr=False)

    @property
    def asked(self) -> tuple[TimeStep, ...]:
        """Time steps with a network time, including those that the solver knows without the network."""
        return (*self.steps, self.last) if self.denoise else self.steps

    def counters(self, step_offset: int = 0, *, counted: bool, own: int | None = None) -> list[int]:
        """Return the noise counters of the steps.

        They count the steps from `step_offset` on, or follow the noise level.

        own: `Solver.counted_from`.
        """
        counted, step_offset = counted or own is not None, step_offset + (own or 0)
        return [COUNTED + step_offset + i if counted else step.level for i, step in enumerate(self.steps)]

    def __str__(self) -> str:
        columns = ("step", "t", "network time", "alpha", "sigma", "A", "B", "std")
        rows = [columns, *(_row(step) for step in self.steps), _row(self.last)[:5]]
        widths = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(columns))]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=False)) for row in rows]
        numbers = ["" if step.numbers is None else f"  {_short(step.numbers)}" for step in self.steps]
        return "\n".join(line + more for line, more in zip(lines, ["", *numbers, ""], strict=True))


def _short(numbers: Any) -> str:
    """Format a solver's numbers of a step to six digits."""
    if isinstance(numbers, (tuple, list)):
        return " ".join(map(_short, numbers))
    return f"{numbers:.6g}" if isinstance(numbers, float) else str(numbers)


def _row(step: TimeStep) -> tuple[str, ...]:
    k = step.coefficients
    values = (step.t, step.network_time, k.alpha_t, k.sigma_t, k.A, k.B, math.sqrt(k.c))
    return str(step.i), *(f"{value:.6g}" for value in values)


def plan(
    schedule: Schedule | str,
    own: Schedule | None,
    steps: int,
    timesteps: Sequence[float] | None,
    solver: Solver,
    denoise: bool | None = None,
    said: Said = ("noise", None, False),
) -> Plan:
    """Return the plan of a run through `timesteps`, or of `steps` steps; plans are cached.

    own: the model's schedule, which fixes the network times if `schedule` does not.
    denoise: None: as the solver has it, and True for a single time.
    said: (prediction form, data range, whether moments are central), the meaning of the network's outputs.
    """
    if denoise not in (None, True, False):
        raise TypeError(f"denoise must be True, False or None: got {denoise!r}")
    wanted = integer("steps", steps) if timesteps is None else as_times(timesteps)
    if torch.compiler.is_compiling():
        pack = constants.pack
        return _of(said, *_constant_numbers(pack(schedule), pack(own), pack(solver), wanted, denoise))
    arguments = schedule, own, solver, wanted, denoise
    tables: list[weakref.ref[Any]] = []
    key = _key((arguments, said), tables)
    if key is None:
        return _compared(said, *arguments)
    found = _plans.get(key)
    if found is None or any(table() is None for table in found[0]):
        if len(_plans) >= _MOST:
            _plans.clear()
        found = _plans[key] = tables, _compared(said, *arguments)
    return found[1]


_plans: dict[object, tuple[list[weakref.ref[Any]], Plan]] = {}  # valid while the tensors of its key are alive


def _key(value: object, tables: list[weakref.ref[Any]]) -> object | None:
    """Return a hashable key for all that a plan can depend on; None if that is unknown.

    Objects of this package count by class and attributes, tensors in them by identity and version. Derived
    fields of a dataclass follow from the rest. Functions and classes of others may depend on anything.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return type(value), value
    if isinstance(value, (tuple, list)):
        return _keys(type(value), value, tables)
    if isinstance(value, dict):
        return _keys((dict, *value), value.values(), tables)
    if isinstance(value, Tensor) and not value.is_inference():
        tables.append(weakref.ref(value))
        return id(value), value._version
    if isinstance(value, Identified) and type(value).__module__.startswith("gms_fast."):
        derived: list[str] = [each.name for each in fields(value) if not each.init] if is_dataclass(value) else []
        known = {name: part for name, part in vars(value).items() if name not in (*derived, *value.unplanned)}
        return _keys((type(value), *known), known.values(), tables)
    return None


def _keys(kind: object, values: Iterable[object], tables: list[weakref.ref[Any]]) -> object | None:
    found = [_key(value, tables) for value in values]
    return None if None in found else (kind, *found)


def _of(said: Said, rows: list[Row], denoise: bool, whole: bool) -> Plan:
    """Build the plan from the result of `_numbers`."""
    times, (form, clip, central) = [t for t, *_ in rows], said
    levels = [StepCoefficients(**dict(step)) for _, _, step, _, _ in rows]
    steps = [
        TimeStep(
            i=i,
            t=t,
            s=times[min(i + 1, len(times) - 1)],
            network_time=time,
            coefficients=k,
            meaning=Meaning(form, k, clip, central),
            numbers=own,
            is_last=i == len(times) - 2,
            late=2 * i >= len(times) - 1,
            level=int(level),
        )
        for i, ((t, time, _, own, level), k) in enumerate(zip(rows, levels, strict=True))
    ]
    return Plan(tuple(steps[:-1]), steps[-1], denoise, whole)


def _compared(
    said: Said,
    schedule: Schedule | str,
    own: Schedule | None,
    solver: Solver,
    wanted: int | list[float],
    denoise: bool | None,
) -> Plan:
    """Build the plan, and compare its levels with those of the model's own schedule."""
    found = _of(said, *_numbers(schedule, own, solver, wanted, denoise))
    return found if own is None or schedule is own else replace(found, foreign=_foreign(found, own))


def _foreign(plan: Plan, own: Schedule) -> str:
    """Return a warning if the model's own schedule has other levels at the network times.

    They are compared by log(alpha/sigma), as far as there is any signal, and by the scale of the state.
    """
    steps = [step for step in plan.asked if step.coefficients.alpha_t > 0 and step.coefficients.sigma_t > 0]
    times = own.from_network_time([step.network_time for step in steps])
    alpha = torch.tensor([step.coefficients.alpha_t for step in steps], dtype=torch.float64, device="cpu")
    sigma = torch.tensor([step.coefficients.sigma_t for step in steps], dtype=torch.float64, device="cpu")
    try:
        away = ((alpha / sigma).log().clamp(min=_DARK) - own.log_snr(times).clamp(min=_DARK)).abs()
        scale = (alpha.hypot(sigma) / own.alpha(times).hypot(own.sigma(times))).log().abs()
    except ValueError as error:
        return (
            f"schedule calls the network at times that model.schedule does not have ({error}): if the network was "
            "trained on model.schedule, the samples will be wrong. docs/extend.md shows how to convert the times"
        )
    if not steps or (away.max() <= _LEVEL and scale.max() <= _SCALE):
        return ""
    worst = int((away / _LEVEL).maximum(scale / _SCALE).argmax())
    time = float(times[worst])
    return (
        f"schedule calls the network at time {steps[worst].network_time:g} for alpha = {alpha[worst]:.3g}, sigma = "
        f"{sigma[worst]:.3g}, but at that time model.schedule has alpha = {float(own.alpha(time)):.3g}, sigma = "
        f"{float(own.sigma(time)):.3g}: if the network was trained on model.schedule, the samples will be wrong. "
        "docs/extend.md shows how to convert the times"
    )


def _numbers(
    schedule: Schedule | str, own: Schedule | None, solver: Solver, wanted: int | list[float], denoise: bool | None
) -> tuple[list[Row], bool, bool]:
    """Compute one row per time, and the other fields of `Plan`."""
    schedule = schedules.build(schedule).asked_like(own)
    solver = solver if denoise is None else solver.ending(denoise)
    return _numbers_along(schedule, solver, solver.times(schedule, wanted), denoise)


def _numbers_along(
    schedule: Schedule, solver: Solver, times: list[float], denoise: bool | None
) -> tuple[list[Row], bool, bool]:
    """Compute `_numbers` for times that the solver has chosen."""
    visited, times = times, list(solver.asked(schedule, times))
    steps = [*StepCoefficients.along(schedule, visited, times), StepCoefficients.at(schedule, times[-1])]
    if not solver.rises:
        check_falling(visited, steps)
    asked = as_float64(schedule.network_time(as_float64(times))).expand(len(times)).tolist()
    numbers = [*solver.plan(schedule, visited), None]
    rows = [
        (t, time, tuple(vars(k).items()), its, _level(k))
        for t, time, k, its in zip(times, asked, steps, numbers, strict=True)
    ]
    last = denoise is not False and (solver.denoise or len(times) == 1)
    return rows, last and steps[-1].sigma_t > 0, times[0] == getattr(schedule, "t_max", None)


def check_falling(times: Sequence[float], steps: Sequence[StepCoefficients]) -> None:
    """Raise ValueError unless each time is less noisy than the one before, or repeats it."""
    for (t, s), step in zip(pairwise(times), steps, strict=False):
        if t != s and not step.falls:
            raise ValueError(f"timesteps must go from more noise to less: t = {s:g} is not less noisy than t = {t:g}")


def plan_from(index: int, of: Plan, schedule: Schedule, solver: Solver, denoise: bool | None) -> Plan:
    """Return the plan of a run that begins at an index of another plan, without history.

    solver: solver of the remaining steps.
    """
    left = of.steps[index:]
    solver = solver if denoise is None else solver.ending(denoise)
    numbers = solver.replan(schedule, [step.t for step in (*left, of.last)], [step.numbers for step in left])
    steps = (
        step._replace(i=i, numbers=own, late=2 * i >= len(left))
        for i, (step, own) in enumerate(zip(left, numbers, strict=True))
    )
    return Plan(tuple(steps), of.last._replace(i=len(left), late=True), of.denoise, of.whole and index == 0)


@constants.function
def _constant_numbers(
    schedule: Any, own: Any, solver: Any, wanted: int | list[float], denoise: bool | None
) -> tuple[list[Row], bool, bool]:
    """Compute `_numbers` of packed objects."""
    schedule, own, solver = map(constants.unpack, (schedule, own, solver))
    return _numbers(schedule, own, solver, wanted, denoise)


def _level(step: StepCoefficients) -> float:
    """Return a noise counter of its own for every noise level sigma/alpha.

    It is the level's bits in float32, counted from 2^31. A run that starts at any level thus draws noise that
    no run through other levels draws. The integer is a float, which torch.compile takes as a constant.
    """
    finite = min(step.ratio, torch.finfo(torch.float32).max)
    return float(BY_LEVEL + struct.unpack("<I", struct.pack("<f", finite))[0])


def integer(name: str, value: object) -> int:
    """Return the value as an integer. Raises TypeError naming the argument."""
    try:
        if isinstance(value, bool):
            raise TypeError
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an integer: got {value!r}") from None


def as_times(timesteps: Sequence[float]) -> list[float]:
    """Return the times as floats. Raises TypeError."""
    try:
        return [float(t) for t in timesteps]
    except (TypeError, ValueError):
        raise TypeError(f"timesteps must be a sequence of times: got {timesteps!r}") from None
