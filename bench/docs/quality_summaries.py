"""Small tables of docs/quality.md, each a selection of the records of the matrix."""

import math
import statistics
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from bench.docs.quality_tables import records
from bench.docs.solver_names import CONTROLS, grid, name

GMS, V3 = "gms:fit=free,component=element", "dpm-solver-v3:statistics=MODEL,trust=-2"
LAST = "dpm-solver++:denoise=False"


class Row(NamedTuple):
    """A row of a table: a solver on one or several time grids, in a group of the matrix.

    `solver` is its solver string, with MODEL for the model and CALLS for the number of evaluations. `grid` is one grid,
    or several separated by "|", of which each column has at most one.
    """

    group: str
    solver: str
    grid: str = ""

    def cells(self, columns: "Sequence[Column]") -> list[str]:
        """Return the name and grid of the row, and its figure in each column."""
        words = [name(self.solver), ", ".join(grid(g) for g in self.grid.split("|"))]
        return words + [figure(_values(self, column)) for column in columns]


class Column(NamedTuple):
    """A column of a table: a measure of one model at a number of network evaluations."""

    heading: str
    model: str
    calls: int
    measure: str = "frechet"


class Summary(NamedTuple):
    """A table by its columns and rows."""

    columns: tuple[Column, ...]
    rows: tuple[Row, ...]

    def text(self) -> str:
        """Return the table as Markdown."""
        return _markdown(
            ["solver", "grid", *(c.heading for c in self.columns)], [r.cells(self.columns) for r in self.rows]
        )


def figure(values: Sequence[float]) -> str:
    """Return mean ± standard deviation to three digits of the mean, or "" without values."""
    if not values:
        return ""
    mean, width = statistics.fmean(values), statistics.stdev(values)
    decimals = max(0, 2 - math.floor(math.log10(abs(mean))))
    return f"{mean:.{decimals}f}" + (f" ± {width:.{decimals}f}" if width else "")


@cache
def _records(group: str, model: str) -> list[dict]:
    return records(group, model)


def _values(row: Row, column: Column) -> list[float]:
    """Return the measure of each set of samples."""
    solver = row.solver.replace("MODEL", column.model).replace("CALLS", str(column.calls))
    found = [r for r in _records(row.group, column.model) if r["solver"] == solver]
    drawn = [r for r in found if r["grid"] in row.grid.split("|") and r["calls"] == column.calls]
    return [r[column.measure] for r in (found if solver in CONTROLS else drawn)]


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def by_calls(model: str, calls: Sequence[int], measure: str = "frechet", words: str = "") -> tuple[Column, ...]:
    """Return a column for each number of network evaluations."""
    return tuple(Column(f"{words}{k} NFE", model, k, measure) for k in calls)


def jump(until: float | None, then: str) -> str:
    """Return the solver string of a solver after a teleport."""
    return f"teleport:statistics=MODEL{'' if until is None else f',until={until:g}'} then {then}"


UNET, DIT = (f"runs/strangers/heads/{network}/model" for network in ("unet", "dit"))
SUMMARIES = {
    "ends": Summary(
        (
            *by_calls("digits", (6, 11), words="8x8: distance, "),
            *by_calls("digits", (6, 11), "energy", "8x8: energy distance, "),
            *by_calls("mnist", (11,), words="28x28: distance, "),
        ),
        tuple(Row("ends", solver, grid) for solver in ("unip", "dpm-solver++") for grid in ("uniform", "quadratic")),
    ),
    "best of GMS": Summary(
        (*by_calls("mnist", (5, 10), words="distance, "), *by_calls("mnist", (5, 10), "precision", "precision, ")),
        (
            Row("best", "sn-ddpm", "angle"),
            Row("best", f"{GMS},covariance=MODEL", "angle"),
            Row("best", jump(None, GMS), "1.2"),
            *(Row("best", jump(3, then), "1.5|1.2") for then in ("gms", "sn-ddpm")),
            Row("gaussian", jump(20, V3), "1.2"),
        ),
    ),
    "strangers": Summary(
        (*by_calls(UNET, (6, 11), words="U-Net, "), *by_calls(DIT, (6, 11), words="DiT, ")),
        tuple(Row("strangers", solver, "angle") for solver in ("ddpm", "sn-ddpm", GMS, "ddim")),
    ),
    "learned": Summary(
        tuple(
            c
            for m, w in (("frechet", "distance, "), ("precision", "precision, "))
            for c in by_calls("mnist", (5, 10), m, w)
        ),
        (
            Row("ggdm", "real"),
            *(Row("ggdm", solver, "open 0.7") for solver in ("ddim", "unip")),
            Row("ggdm", V3, "0.7"),
            Row("ggdm", jump(20, V3), "1.2"),
            Row("ggdm", "ggdm:table=MODEL/CALLS", "default"),
        ),
    ),
}
CHOICES = {  # what the user has: (number of network evaluations, row of the solver to use)
    "data and network statistics": (
        (3, Row("best", jump(5.5, V3), "1.2")),
        (5, Row("gaussian", jump(20, V3), "1.2")),
        (10, Row("gaussian", jump(20, V3), "1.2")),
        (20, Row("gaussian", jump(20, V3), "1.2")),
    ),
    "network statistics": tuple((k, Row("gaussian", V3, "0.7")) for k in (3, 5, 10, 20)),
    "data statistics": tuple((k, Row("gaussian", jump(10, "er-sde"), "1.2")) for k in (3, 5, 10)),
    "a learned coefficient table": tuple((k, Row("ggdm", "ggdm:table=MODEL/CALLS", "default")) for k in (5, 10)),
    "neither statistics nor moment heads": (
        (3, Row("gaussian", LAST, "0.7")),
        (5, Row("gaussian", "er-sde", "uniform")),
        (10, Row("gaussian", LAST, "0.7")),
    ),
    "moment heads and data statistics": (
        (5, Row("best", jump(3, "gms"), "1.5")),
        (10, Row("best", jump(3, "gms"), "1.2")),
        (20, Row("best", jump(3.2, "gms"), "1.2")),
    ),
    "moment heads": tuple((k, Row("gaussian", GMS, "angle")) for k in (3, 5, 10, 20)),
}


def choices() -> str:
    """Return the solver to use, by what the user has and by number of network evaluations."""
    calls = (3, 5, 10, 20)
    rows = [[have, *(_choice(dict(chosen).get(k), k) for k in calls)] for have, chosen in CHOICES.items()]
    return _markdown(["What you have", *(f"{k} NFE" for k in calls)], rows)


def _choice(row: Row | None, calls: int) -> str:
    """Return the name of a solver and its feature distance on 28x28 digits."""
    if row is None:
        return ""
    solver = name(row.solver).replace(" (trust -2)", "")
    mean, _, _ = figure(_values(row, Column("", "mnist", calls))).partition(" ")
    return f"{solver}: **{mean}**"


def summary(words: str) -> str:
    """Return the table of that name."""
    return choices() if words == "choices" else SUMMARIES[words].text()
