"""Solvers as candidates for a recommendation, with the tables that they need."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gms_fast.run import origin_of
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.solvers.text import COVARIANCE, CURVES, LEARNED, Table, build, spelled
from gms_fast.storage.embedded import named
from gms_fast.tables import EmpiricalModel, Gaussian, GGDMTable

GIVEN = "given"  # name of a table that has no file
_KINDS: dict[type, Table] = {Gaussian: COVARIANCE, EmpiricalModel: CURVES, GGDMTable: LEARNED}


class Choice(NamedTuple):
    """Solver, possibly after a jump to noise level `level` with a grid `spacing` behind it."""

    kind: str
    options: tuple[str, ...] = ()
    level: float | None = None
    spacing: str = ""

    def text(self, names: Mapping[Table, str]) -> str:
        """Return the solver's text with these names of its tables."""
        own = spelled(self.kind, [*_named(self.kind, names), *self.options])
        if self.level is None:
            return own
        jump = [*_named("teleport", names), f"until={self.level:g}", f"spacing={self.spacing}"]
        return spelled("teleport", jump, own)


_TAKES = {
    "teleport": [("statistics", COVARIANCE)],
    "dpm-solver-v3": [("statistics", CURVES)],
    "ggdm": [("table", LEARNED)],
}
V3, TRUSTED = Choice("dpm-solver-v3"), Choice("dpm-solver-v3", ("trust=-2",))
ER_SDE, MIXTURE, LEARNED_TABLE = Choice("er-sde"), Choice("gms"), Choice("ggdm")
BEHIND = (TRUSTED, ER_SDE, Choice("dpm-solver++", ("denoise=False",)), MIXTURE)


def _named(kind: str, names: Mapping[Table, str]) -> list[str]:
    """Return the option that names the table of a solver."""
    return [f"{option}={names[table]}" for option, table in _TAKES.get(kind, ()) if table in names]


class Known(NamedTuple):
    """Tables at hand, names of those not beside the model, and evaluations per sample."""

    tables: dict[Table, Any]
    names: dict[Table, str]
    schedule: Schedule
    calls: int

    @property
    def spread(self) -> float | None:
        """Spread of the data's Gaussian, if there is one."""
        found = self.tables.get(COVARIANCE)
        return None if found is None else found.spread

    def behind(self, choice: Choice, factor: float, spacing: str) -> Choice:
        """Return the choice after a jump to `factor` times the spread.

        The level is rounded to two digits and is at least 1.
        """
        return choice._replace(level=max(1.0, float(f"{factor * (self.spread or 0):.2g}")), spacing=spacing)

    def solver(self, choice: Choice) -> tuple[Solver, int] | None:
        """Return (solver, its steps).

        None if a table is missing, a jump lies outside the schedule, or no number of steps takes `calls` evaluations.
        """
        if any(table not in self.tables for _, table in _TAKES.get(choice.kind, ())):
            return None
        load = {table: lambda _, found=found: found for table, found in self.tables.items()}
        made = build(choice.text(dict.fromkeys(self.tables, GIVEN)), load=load)
        with suppress(ValueError):  # the schedule has too few times, or a jump lies outside
            for steps in (self.calls, self.calls - 1):
                if steps > 0 and made.calls(self.schedule, made.times(self.schedule, steps)) == self.calls:
                    return made, steps
        return None


def known_of(model: object, statistics: Any, schedule: Schedule, calls: int) -> Known:
    """Collect the given tables and those beside the model.

    Raises TypeError for an object that is not a table, and FileNotFoundError for a name without tables beside it.
    """
    found, names = _beside(origin_of(model), calls), {}
    if isinstance(statistics, (str, Path)):
        if not (own := _beside(str(statistics), calls)):
            raise FileNotFoundError(
                f"statistics must name a model or a folder with statistics files: none are at {str(statistics)!r}"
            )
        found, names = found | own, {table: _name(str(statistics), table, calls) for table in own}
    else:
        for given in statistics if isinstance(statistics, (tuple, list)) else (statistics,):
            table = next((t for kind, t in _KINDS.items() if isinstance(given, kind)), None)
            if table is None:
                kinds = ", ".join(kind.__name__ for kind in _KINDS)
                raise TypeError(
                    f"statistics must be one or more of {kinds}, or a model's name: got {type(given).__name__}"
                )
            if not _equal(found.get(table), given):
                found[table], names[table] = given, GIVEN
    return Known(found, names, schedule, calls)


def _equal(known: Any, given: Any) -> bool:
    """Tell whether the given table is the known one."""
    if type(known) is not type(given):
        return False
    pairs = [(getattr(known, field.name), getattr(given, field.name)) for field in fields(known) if field.init]
    return all(_same(a, b) for a, b in pairs if not isinstance(a, Schedule))


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) and isinstance(b, Tensor) else type(a) is type(b) and a == b


def _beside(origin: str | None, calls: int) -> dict[Table, Any]:
    """Load the tables beside a model of that name or in that folder."""
    if origin is None:
        return {}
    files = {table: table.file.format(steps=calls) for table in _KINDS.values()}
    places = {table: named(origin, file) or Path(origin, file) for table, file in files.items()}
    return {table: table.load(place) for table, place in places.items() if place.is_file()}


def _name(origin: str, table: Table, calls: int) -> str:
    """Return the name of a table beside a model, as solvers accept it."""
    file = table.file.format(steps=calls)
    if named(origin, file) is None:
        return str(Path(origin, file))
    return f"{origin}/{calls}" if table is LEARNED else origin
