"""Plots of the quality report, each drawn from the committed records of the matrix."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from bench.docs import style
from bench.docs.quality_tables import records
from gms_fast.quality import report
from gms_fast.quality.cells import CONTROLS
from gms_fast.solvers.text import parse

Records = list[dict[str, Any]]
NFE, FRECHET = "network evaluations (NFE)", "feature Fréchet distance\n(lower is better)"
WASSERSTEIN, STROKES = "Wasserstein-1 distance\n(lower is better)", "distance to the strokes\n(lower is better)"
GMS, V3 = "gms:fit=free,component=element", "dpm-solver-v3:statistics=MODEL,trust=-2"
TITLES = {
    "mixture-1d": "Two Gaussians in one dimension",
    "digits": "8x8 digits",
    "mnist": "28x28 digits",
    "exact-digits": "8x8 digits",
    "exact-mnist5k": "28x28 digits",
}
Curve = tuple[str, str, style.Look]  # solver string with MODEL, name, look
BY_STEP: tuple[Curve, ...] = (
    ("ddpm", "DDPM", style.SKY),
    ("sn-ddpm", "SN-DDPM", style.BLUE),
    ("ddim", "DDIM", style.BLACK),
    ("gms:fit=exact,component=sample", "GMS (exact fit, shared component)", style.ORANGE),
    (GMS, "GMS (free fit)", style.VERMILION),
)
AT_CALLS: tuple[Curve, ...] = (
    (GMS, "GMS (free fit)", style.VERMILION),
    ("ddim", "DDIM", style.BLACK),
    ("dpm-solver++", "DPM-Solver++(2M)", style.SKY),
    ("dpm-solver++:denoise=False", "DPM-Solver++(2M), no final denoising", style.BLUE),
    ("diffusers:solver_order=2", "diffusers DPM-Solver++(2M)", style.PURPLE),
    ("er-sde", "ER-SDE", style.GREEN),
    (V3, "DPM-Solver-v3 (trust -2)", style.ORANGE),
)
BEHIND = (GMS, "dpm-solver++:denoise=False", "er-sde", V3)  # a panel each: without and after a teleport
PANELS = dict(zip(BEHIND, ("GMS (free fit)", "DPM-Solver++(2M)", "ER-SDE", "DPM-Solver-v3"), strict=True))
BEGUN: tuple[Curve, ...] = (
    (GMS, "GMS (free fit)", style.VERMILION),
    ("sn-ddpm", "SN-DDPM", style.BLUE),
    ("ddim", "DDIM", style.BLACK),
    ("ddpm", "DDPM", style.SKY),
    ("er-sde", "ER-SDE", style.GREEN),
)
AFTER = (("after a teleport", style.VERMILION), ("after a teleport to $\\sigma/\\alpha$ = 20", style.BLUE))
GRIDS = ("uniform", "0.7", "0.5", "0.4", "angle")


class Plot(NamedTuple):
    """A plot: the function that draws it, the records it shows, and its height in inches."""

    draw: Callable[..., None]
    of: tuple[tuple[str, str], ...]  # group and model of the records
    height: float

    def inputs(self) -> list[Records]:
        """Return the records that the picture shows."""
        return [[_lasting(r) for r in records(*of)] for of in self.of]


def _lasting(record: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in record.items() if k != "seconds"}


def _of(found: Records, solver: str, model: str) -> Records:
    """Return the records of one solver, given with MODEL for the model.

    The last step may be bounded or not: data that has noise of its own is drawn without the bound.
    """
    text = solver.replace("MODEL", model)
    bounded = f"{text}{',' if ':' in text.split(' then ')[-1] else ':'}clip_pixel=None"
    return [r for r in found if r["solver"] in (text, bounded)]


def _best(found: Records, measure: str) -> dict[int, tuple[float, float]]:
    """Return mean and standard deviation by number of evaluations, each on its best grid."""
    groups = defaultdict(list)
    for r in found:
        groups[r["calls"], r["grid"]].append(r[measure])
    points: dict[int, tuple[float, float]] = {}
    for (calls, _), values in sorted(groups.items()):
        point = report.spread(values)
        points[calls] = min(points.get(calls, point), point)
    return points


def _curves(axes: Any, found: Records, model: str, curves: Sequence[Curve], measure: str = "frechet") -> None:
    """Draw a measure of solvers against network evaluations, with real data as a level."""
    calls = sorted({r["calls"] for r in found if r["calls"] and any(_of([r], s, model) for s, _, _ in curves)})
    apart = (calls[-1] / calls[0]) ** 0.007
    for i, (solver, name, look) in enumerate(curves):
        if points := _best(_of(found, solver, model), measure):
            means, spreads = zip(*points.values(), strict=True)
            x = [k * apart ** (i - (len(curves) - 1) / 2) for k in points]
            style.curve(axes, x, means, spreads, look, name)
    _level(axes, found, "real", "real\ndata", measure)
    style.log_scale(axes, "x", calls)
    style.log_scale(axes, "y")
    axes.set(xlabel=NFE, title=TITLES[model])


def _level(axes: Any, found: Records, control: str, text: str, measure: str = "frechet") -> None:
    """Draw the mean of a control as a horizontal line."""
    style.level(axes, statistics.fmean(r[measure] for r in found if r["solver"] == control), text)


def _side_by_side(figure: Any, found: list[Records], curves: Sequence[Curve], columns: int) -> None:
    """Draw a panel for each model, with one legend."""
    models = list(dict.fromkeys(own[0]["model"] for own in found))
    axes = figure.subplots(1, len(models))
    for panel, model in zip(axes, models, strict=True):
        own = [r for part in found for r in part if r["model"] == model]
        measure = report.headline(own)
        _curves(panel, own, model, curves, measure)
        panel.set_ylabel(WASSERSTEIN if measure == "wasserstein" else FRECHET)
    style.legend(figure, columns)


def by_step(figure: Any, found: list[Records]) -> None:
    """Draw the solvers without memory of earlier steps, all on the grid of power 0.5."""
    equal = [[r for r in own if r["grid"] == "0.5" or r["solver"] in CONTROLS] for own in found]
    _side_by_side(figure, equal, BY_STEP, 5)


def at_calls(figure: Any, found: list[Records]) -> None:
    """Draw all solvers at equal numbers of network evaluations."""
    _side_by_side(figure, found, AT_CALLS, 3)


def grids(figure: Any, found: list[Records]) -> None:
    """Draw the feature distance of three solvers on five time grids, by number of steps."""
    together = [r for part in found for r in part if r["solver"] not in CONTROLS]
    steps = sorted({r["steps"] for r in together})
    axes = figure.subplots(1, len(steps), sharey=True)
    for panel, k in zip(axes, steps, strict=True):
        for i, (solver, name, look) in enumerate(c for c in BY_STEP if c[0] in ("sn-ddpm", "ddim", GMS)):
            own = [r for r in together if r["solver"] == solver and r["steps"] == k]
            points = [report.spread(r["frechet"] for r in own if r["grid"] == g) for g in GRIDS]
            means, spreads = zip(*points, strict=True)
            x = [place + 0.18 * (i - 1) for place in range(len(GRIDS))]
            mark = {"color": look.colour, "marker": look.marker, "linestyle": "none", "elinewidth": 1.4, "capsize": 3}
            panel.errorbar(x, means, spreads, label=name, **mark)
        _level(panel, found[0], "real", "real\ndata")
        names = [f"power {g}" if g[0] == "0" else g for g in GRIDS]
        panel.set_xticks(range(len(GRIDS)), names, rotation=35, ha="right", rotation_mode="anchor")
        panel.grid(visible=False, axis="x")
        panel.set_title(f"K = {k} steps ({k + 1} NFE)")
        style.log_scale(panel, "y")
    axes[0].set_ylabel(FRECHET)
    style.legend(figure, 3)


def teleport(figure: Any, found: list[Records]) -> None:
    """Draw solvers by themselves and after a teleport: rows are models, columns solvers."""
    solvers = [s for s in BEHIND if all(_of(own, s, own[0]["model"]) for own in found)]
    axes = figure.subplots(len(found), len(solvers), sharex=True, sharey="row", squeeze=False)
    for i, own in enumerate(found):
        model = own[0]["model"]
        for panel, solver in zip(axes[i], solvers, strict=True):
            _curves(panel, own, model, list(_compared(own, solver, model)))
            panel.set(title="" if i else PANELS[solver], xlabel=NFE if own is found[-1] else "")
            style.log_scale(panel, "x", (3, 5, 10, 20))
        axes[i][0].set_ylabel(f"{TITLES[model]}\n{FRECHET}")
    style.legend(figure, 4)


def _compared(found: Records, solver: str, model: str) -> Iterable[Curve]:
    """Return the curves of a panel: without and after teleports, and with covariance."""
    untils = {parse(r["solver"])[1]["until"] for r in found if r["solver"].startswith("teleport")}
    jumps = [f"teleport:statistics=MODEL,until={u:g} then {solver}" for u in sorted(untils)]
    there = [jump for jump in jumps if _of(found, jump, model)]
    yield solver, "without a teleport", style.BLACK
    yield from ((jump, *after) for jump, after in zip(there, AFTER, strict=False))
    if solver == GMS:
        yield f"{GMS},covariance=MODEL,switch=3", "with the covariance of the data", style.GREEN


def strokes(figure: Any, found: list[Records]) -> None:
    """Draw realism against distance to the strokes: a curve for each solver.

    Each panel is a number of network evaluations. Each curve goes from strength to strength, on the grid that is best
    in the geometric mean over the strengths.
    """
    parts = report.at_calls(found[0])
    axes = figure.subplots(1, len(parts), sharey=True)
    for panel, (calls, part) in zip(axes, parts.items(), strict=True):
        for solver, name, look in BEGUN:
            _by_strength(panel, [r for r in part if r["solver"] == solver], name, look)
        _level(panel, part, "real", "real\ndata")
        _level(panel, part, "guide", "strokes")
        style.log_scale(panel, "y")
        panel.set(xlabel=STROKES)
        panel.set_title(f"{TITLES[part[0]['model']]}, {calls} NFE", pad=24)
    axes[0].set_ylabel(FRECHET)
    style.legend(figure, len(BEGUN))


def _by_strength(panel: Any, own: Records, name: str, look: style.Look) -> None:
    """Draw the curve of a solver; for ER-SDE write the strengths above the panel."""
    grids = {r["grid"] for r in own}
    best = min(grids, key=lambda g: statistics.geometric_mean(r["frechet"] for r in own if r["grid"] == g))
    strengths = sorted({r["strength"] for r in own})
    rows = [[r for r in own if (r["grid"], r["strength"]) == (best, s)] for s in strengths]
    x = [statistics.fmean(r["faithful"] for r in row) for row in rows]
    y, spread = zip(*(report.spread(r["frechet"] for r in row) for row in rows), strict=True)
    shown = name == "ER-SDE"
    style.curve(panel, x, y, spread, look, f"{name} (strengths at the top)" if shown else name)
    for strength, across in zip(strengths, x, strict=True):
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "annotation_clip": False}
        if shown:
            panel.annotate(f"{strength:g}", (across, 1.0), (0, 4), ha="center", color=look.colour, fontsize=9, **place)


PLOTS = {
    "grids": Plot(grids, (("digits", "digits"), ("angle", "digits")), 4.6),
    "exact": Plot(by_step, (("exact", "mixture-1d"), ("exact", "exact-digits"), ("exact", "exact-mnist5k")), 4.6),
    "learned": Plot(by_step, (("digits", "digits"), ("mnist", "mnist")), 4.6),
    "calls": Plot(at_calls, (("calls", "digits"), ("calls", "mnist")), 5.2),
    "teleport": Plot(teleport, (("gaussian", "digits"), ("gaussian", "mnist")), 6.6),
    "teleport-exact": Plot(teleport, (("gaussian", "exact-digits"), ("gaussian", "exact-mnist5k")), 6.6),
    "stroke-digits": Plot(strokes, (("stroke", "digits"),), 4.9),
    "stroke-mnist": Plot(strokes, (("stroke", "mnist"),), 4.9),
}
