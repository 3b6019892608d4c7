"""From records to Markdown tables and plots: every figure a mean over ranges of samples, with their spread."""

import io
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gms_fast.quality.cells import CONTROLS
from gms_fast.storage import atomic

Records = Sequence[dict[str, Any]]
SHOWN = (
    *("wasserstein", "frechet", "kernel", "precision", "recall", "confident"),
    *("energy", "sliced", "mean", "variance", "third"),
)
HIGHER = ("precision", "recall", "confident")  # is better
LABELS = {
    "wasserstein": "Wasserstein-1",
    "frechet": "Fréchet distance of classifier features",
    "kernel": "kernel distance of classifier features",
    "energy": "energy distance",
    "sliced": "sliced Wasserstein",
    "mean": "error of the elements' means",
    "variance": "error of the elements' variances",
    "third": "error of the elements' third central moments",
}
_ROW = ("solver", "grid")


def headline(records: Records) -> str:
    """The measure that ranks samples of this model."""
    return next(m for m in ("wasserstein", "frechet", "sliced") if m in records[0])


def spread(values: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (nan of a single value)."""
    values = list(values)
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else math.nan


def table(records: Records, measure: str) -> str:
    """Markdown: solvers and grids by steps, mean ± standard deviation over the ranges; then the controls.

    By network calls where the solvers differ in what K steps cost.
    """
    by, head = _columns(records)
    steps = sorted({r[by] for r in records if r["solver"] not in CONTROLS})
    rows: dict[tuple[Any, ...], dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        rows[tuple(record[k] for k in _ROW)][record[by]].append(record[measure])
    lines = ["| solver | grid | " + " | ".join(head.format(k) for k in steps) + " |", "|---" * (len(steps) + 2) + "|"]
    for (solver, grid), found in rows.items():
        control = solver in CONTROLS
        cells = [_figure(found[0 if control and k == steps[0] else k]) for k in steps]
        lines.append(f"| {_name(solver)} | {'' if control else grid} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _columns(records: Records) -> tuple[str, str]:
    """The field that makes the columns of a table, and their heading."""
    drawn = [r for r in records if r["solver"] not in CONTROLS]
    extra = {s: max(r["calls"] - r["steps"] for r in drawn if r["solver"] == s) for s in {r["solver"] for r in drawn}}
    return ("steps", "K={}") if len(set(extra.values())) <= 1 else ("calls", "{} calls")


def tables(records: Records, shown: Sequence[str] = SHOWN) -> str:
    """For each model all its tables, under headings, with the counts and origins of the samples."""
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
        for measure in (m for m in shown if m in own[0]):
            better = "higher" if measure in HIGHER else "lower"
            parts.append(f"**{LABELS.get(measure, measure)}** ({better} is better)\n\n{table(own, measure)}")
    return "\n\n".join(parts) + "\n"


def plot(records: Records, path: str | Path, measure: str | None = None) -> None:
    """Draw a measure of one model against network calls: a curve per solver on its best grid, a band for the spread."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    measure = measure or headline(records)
    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    axes = figure.subplots()
    for solver in dict.fromkeys(r["solver"] for r in records):
        if solver in CONTROLS:
            value = spread(r[measure] for r in records if r["solver"] == solver)[0]
            axes.axhline(value, color="0.6", linestyle=":" if solver == "real" else "--", linewidth=1)
            axes.annotate(solver, (1.0, value), xycoords=("axes fraction", "data"), color="0.4", fontsize=8, ha="right")
            continue
        calls, means, widths = zip(*_best(records, solver, measure), strict=True)
        (line,) = axes.plot(calls, means, marker="o", markersize=4, label=solver)
        low, high = ([m + sign * w for m, w in zip(means, widths, strict=True)] for sign in (-1, 1))
        axes.fill_between(calls, low, high, color=line.get_color(), alpha=0.2, linewidth=0)
    axes.set(xlabel="network calls", ylabel=LABELS.get(measure, measure), title=records[0]["model"], xscale="log")
    if measure not in (*HIGHER, "energy"):
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
    ticks = sorted({r["calls"] for r in records if r["calls"]})
    axes.set_xticks(ticks, [str(t) for t in ticks])
    axes.minorticks_off()
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=120)
    atomic.write_bytes(path, encoded.getbuffer())


def _best(records: Records, solver: str, measure: str) -> list[tuple[int, float, float]]:
    """(calls, mean, spread) by steps, each on the grid that is best there."""
    groups: dict[tuple[int, str], list[dict[str, Any]]] = defaultdict(list)
    for r in records:
        if r["solver"] == solver:
            groups[r["steps"], r["grid"]].append(r)
    points: dict[int, tuple[int, float, float]] = {}
    sign = -1 if measure in HIGHER else 1
    for (steps, _), group in groups.items():
        mean, width = spread(r[measure] for r in group)
        point = (group[0]["calls"], mean, 0.0 if math.isnan(width) else width)
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
    return {"real": "*real against real*", "gaussian": "*Gaussian control*"}.get(solver, f"`{solver}`")
