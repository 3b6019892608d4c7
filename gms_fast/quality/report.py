"""Markdown tables and plots of records: means over ranges of samples, with their spread."""

import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gms_fast.quality.cells import CONTROLS, GUIDE
from gms_fast.storage import atomic

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Records = Sequence[dict[str, Any]]
Point = tuple[float, float]  # mean and spread
SHOWN = (
    *("wasserstein", "faithful", "frechet", "kernel", "precision", "recall", "confident"),
    *("energy", "sliced", "mean", "variance", "third"),
)
HIGHER = ("precision", "recall", "confident")  # measures for which higher is better
LABELS = {
    "wasserstein": "Wasserstein-1",
    "faithful": "distance to the strokes",
    "frechet": "Fréchet distance of classifier features",
    "kernel": "kernel distance of classifier features",
    "energy": "energy distance",
    "sliced": "sliced Wasserstein",
    "mean": "error of the elements' means",
    "variance": "error of the elements' variances",
    "third": "error of the elements' third central moments",
}
_ROW = ("solver", "grid")
_CONTROLS = (*CONTROLS, GUIDE)


def headline(records: Records) -> str:
    """Return the measure that ranks samples of this model."""
    return next(m for m in ("wasserstein", "frechet", "sliced") if m in records[0])


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Return mean and standard deviation; the latter is nan for a single value."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def table(records: Records, measure: str) -> str:
    """Return a Markdown table with solvers and grids as rows, then the controls.

    Entries are mean ± standard deviation over the ranges. The columns are steps; network calls if the solvers' calls
    for K steps differ; or strengths if there are any (then pass records of one number of calls: `at_calls`).
    """
    by, head = _columns(records)
    steps = sorted({r[by] for r in _drawn(records)})
    rows: dict[tuple[Any, ...], dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in (r for r in records if measure in r):
        column = 0 if record["solver"] in _CONTROLS else record[by]
        rows[tuple(record[k] for k in _ROW)][column].append(record[measure])
    lines = ["| solver | grid | " + " | ".join(head.format(k) for k in steps) + " |", "|---" * (len(steps) + 2) + "|"]
    for (solver, grid), found in rows.items():
        control = solver in _CONTROLS
        cells = [_figure(found[0 if control and k == steps[0] else k]) for k in steps]
        lines.append(f"| {_name(solver)} | {'' if control else grid} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _columns(records: Records) -> tuple[str, str]:
    """Return the field that makes the columns of a table, and the format of their headings."""
    drawn = _drawn(records)
    if any("strength" in r for r in drawn):
        return "strength", "strength {:g}"
    extra = {s: max(r["calls"] - r["steps"] for r in drawn if r["solver"] == s) for s in {r["solver"] for r in drawn}}
    return ("steps", "K={}") if len(set(extra.values())) <= 1 else ("calls", "{} calls")


def _drawn(records: Records) -> list[dict[str, Any]]:
    return [r for r in records if r["solver"] not in _CONTROLS]


def at_calls(records: Records) -> dict[int, list[dict[str, Any]]]:
    """Group the records with a strength by network calls, each with all controls."""
    calls = sorted({r["calls"] for r in records if "strength" in r})
    return {k: [r for r in records if r["solver"] in _CONTROLS or (r["calls"] == k and "strength" in r)] for k in calls}


def tables(records: Records, shown: Sequence[str] = SHOWN) -> str:
    """Return all tables of each model under headings, with counts and origins of the samples."""
    parts = []
    for model in dict.fromkeys(r["model"] for r in records):
        own = [r for r in records if r["model"] == model]
        counts = sorted({r["n"] for r in own})
        ranges = len({r["range"] for r in own})
        origins = ", ".join(sorted({r["origin"] for r in own if r.get("origin")}))
        parts.append(
            f"## {model}\n\n{ranges} ranges of {' or '.join(map(str, counts))} samples"
            + (f"; {origins}." if origins else ".")
        )
        parted = {f", {calls} network calls": part for calls, part in at_calls(own).items()} or {"": own}
        for measure in (m for m in shown if any(m in r for r in own)):
            name, better = LABELS.get(measure, measure), "higher" if measure in HIGHER else "lower"
            for calls, part in parted.items():
                parts.append(f"**{name}**{calls} ({better} is better)\n\n{table(part, measure)}")
    return "\n\n".join(parts) + "\n"


def plot(records: Records, path: str | Path, measure: str | None = None) -> None:
    """Plot a measure of one model against network calls.

    Each solver has a curve on its best grid, with a band for the spread.
    """
    from matplotlib.figure import Figure

    measure = measure or headline(records)
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for solver in dict.fromkeys(r["solver"] for r in records):
        if solver in CONTROLS:
            _line(axes, records, solver, measure)
            continue
        calls, means, widths = zip(*_best(records, solver, measure), strict=True)
        (line,) = axes.plot(calls, means, marker="o", markersize=4, label=solver)
        low, high = ([m + sign * w for m, w in zip(means, widths, strict=True)] for sign in (-1, 1))
        axes.fill_between(calls, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="network calls", ylabel=LABELS.get(measure, measure), title=records[0]["model"], xscale="log")
    _scale(axes, measure)
    ticks = sorted({r["calls"] for r in records if r["calls"]})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    _finish(figure, axes, path)


def _scale(axes: "Axes", measure: str) -> None:
    """Make the y axis logarithmic, unless the measure may be negative or is a share."""
    from matplotlib.ticker import LogLocator, NullFormatter

    if measure not in (*HIGHER, "energy"):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())


def _line(axes: "Axes", records: Records, control: str, measure: str) -> None:
    """Draw a control as a labelled horizontal line."""
    value = spread(r[measure] for r in records if r["solver"] == control)[0]
    axes.axhline(value, color="0.6", linestyle=":" if control == "real" else "--", linewidth=1)
    name, place = "strokes" if control == GUIDE else control, ("axes fraction", "data")
    axes.annotate(name, (1.0, value), xycoords=place, color="0.4", fontsize=8, ha="right")


def _finish(figure: "Figure", axes: "Axes", path: str | Path) -> None:
    """Write a figure with the legend of these axes."""
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=120)
    atomic.write_bytes(path, encoded.getbuffer())


def plot_strokes(records: Records, path: str | Path, measure: str | None = None) -> None:
    """Plot faithfulness against a measure of realism for one model, a panel per network calls.

    Each solver has a curve over the strengths, with bars for the spread. Its grid is the best one in the geometric mean
    over the strengths. The dotted line is real data; the dashed one is the strokes.
    """
    from matplotlib.figure import Figure

    measure = measure or headline(records)
    parts = at_calls(records)
    figure = Figure(figsize=(1 + 3.9 * len(parts), 4.8), layout="constrained")
    panels = figure.subplots(1, len(parts), sharex=True, sharey=True, squeeze=False)[0]
    for axes, (calls, part) in zip(panels, parts.items(), strict=True):
        places = defaultdict(list)
        for solver in dict.fromkeys(r["solver"] for r in part):
            if solver in _CONTROLS:
                _line(axes, part, solver, measure)
                continue
            curve = _by_strength(part, solver, measure)
            (x, dx), (y, dy) = (zip(*(point[k] for point in curve.values()), strict=True) for k in (0, 1))
            axes.errorbar(x, y, dy, dx, marker="o", markersize=4, linewidth=1, elinewidth=0.8, label=solver)
            for strength, point in curve.items():
                places[strength].append((point[0][0], point[1][0]))
        for strength, points in places.items():  # above the highest curve
            at = (statistics.fmean(x for x, _ in points), max(y for _, y in points))
            axes.annotate(f"{strength:g}", at, (0, 12), textcoords="offset points", ha="center", fontsize=8)
        axes.set(title=f"{records[0]['model']}, {calls} network calls", xlabel=LABELS["faithful"])
    panels[0].set_ylabel(LABELS.get(measure, measure))
    _scale(panels[0], measure)
    _finish(figure, panels[0], path)


def _by_strength(records: Records, solver: str, measure: str) -> dict[float, tuple[Point, Point]]:
    """Return, by strength, (mean, spread) of the distance and of the measure on the best grid.

    The best grid has the best mean of the measure over all strengths.
    """
    grids: dict[str, dict[float, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for r in sorted((r for r in records if r["solver"] == solver), key=lambda r: r["strength"]):
        grids[r["grid"]][r["strength"]].append(r)
    sign = -1 if measure in HIGHER else 1

    def middle(grid: dict[float, list[dict[str, Any]]]) -> float:
        values = [r[measure] for rs in grid.values() for r in rs]
        positive = all(value > 0 for value in values)  # the geometric mean weighs small and large ones alike
        return sign * (statistics.geometric_mean(values) if positive else statistics.fmean(values))

    best = min(grids.values(), key=middle)
    return {s: (_point(rs, "faithful"), _point(rs, measure)) for s, rs in best.items()}


def _point(records: Records, measure: str) -> Point:
    """Return mean and spread; the spread of a single record is 0."""
    mean, width = spread(r[measure] for r in records)
    return mean, 0.0 if math.isnan(width) else width


def _best(records: Records, solver: str, measure: str) -> list[tuple[int, float, float]]:
    """Return (calls, mean, spread) for each number of steps, each on its best grid."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for r in records:
        if r["solver"] == solver:
            groups[r["steps"], r["grid"]].append(r)
    points: dict[int, tuple[int, float, float]] = {}
    sign = -1 if measure in HIGHER else 1
    for (steps, _), group in groups.items():
        point = (group[0]["calls"], *_point(group, measure))
        points[steps] = min(points.get(steps, point), point, key=lambda p: sign * p[1])
    return sorted(points.values())


def _figure(values: list[float]) -> str:
    if not values:
        return ""
    mean, width = spread(values)
    digits = 4 if abs(mean) < 0.1 else 3 if abs(mean) < 1 else 2 if abs(mean) < 10 else 1
    alone = math.isnan(width) or width == 0  # one range, or the same samples in each
    return f"{mean:.{digits}f}" + ("" if alone else f" ±{width:.{digits}f}")


def _name(solver: str) -> str:
    named = {"real": "*real against real*", "gaussian": "*Gaussian control*", GUIDE: "*the strokes*"}
    return named.get(solver, f"`{solver}`")
