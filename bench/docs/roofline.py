"""Draw docs/roofline.png from the committed results; run by `readme`.

Across: operations per byte that an op must move. Up: operations in the time of copying one byte, a ratio of two times
of one run, so that the copy's bandwidth is the line y = x on every machine. The flat roof, where it was measured, is a
float32 matrix product. Filled points are measured, hollow ones predicted (`bench.gpu.predict`).
"""

import math
from pathlib import Path
from typing import Any

from bench.docs import style

# Operations an element, counted in csrc/gms: an fma is two, any other arithmetic, comparison, selection or bit
# operation one. What is the same for a whole sample or step is not counted.
WORDS = 20  # philox.h, philox_words: 10 rounds of 8 for 4 elements
UNIFORM = WORDS + 3
NORMAL = WORDS + 39  # and box_muller: 2 uniforms 6, minus_two_log 32, sincos_turn 36, the rest 3, for 2 elements
MOMENTS = 19  # moments.h, posterior: data_cumulants 12, clipping 4; step.h, from x_0 to x_s 3
GAUSSIAN = 17  # the same without a third moment, and the root of the variance 4
RELEASED = 45  # released_moments, data_cumulants included
SPLIT = 3  # variance into floor and excess
SOLVE = 31  # mixture.h, solve: cbrt_newton 26, the rest 5
EXACT = SOLVE + 14  # choose_closed
FREE = EXACT + 25
WITHIN = 12
ADAN = 7 + 70 * (43 + 3 * 21)  # Adan: gradients 43, three updates of 21 an iteration
DRAW = 2

OPERATIONS = {
    "gms_step exact/sample": MOMENTS + EXACT + NORMAL + DRAW,
    "gms_step exact/element": MOMENTS + EXACT + NORMAL + UNIFORM + DRAW,
    "gms_step free/sample": MOMENTS + WITHIN + FREE + NORMAL + DRAW,
    "gms_step free/element": MOMENTS + WITHIN + FREE + NORMAL + UNIFORM + DRAW,
    "gms_step gaussian/sample": GAUSSIAN + NORMAL + DRAW,
    "gms_step adan/sample": RELEASED + ADAN + NORMAL + DRAW + 4,
    "sample_mixture exact/element": SPLIT + EXACT + 1 + NORMAL + UNIFORM + DRAW,
    "fit_mixture exact": SPLIT + SOLVE + 10,
    "fit_mixture free": SPLIT + SOLVE + 10 + 26,
    "fit_mixture adan": ADAN,
    "philox_normal": NORMAL,
    "philox_uniform": UNIFORM,
    "affine_noise, terms: 2": 7 + NORMAL,
    "affine_noise, terms: 3": 9 + NORMAL,
}
MARKERS = ("o", "s", "^", "D", "v", "X")  # of the cases of an op, in the order of OPERATIONS
COLOURS = {  # op: colour; with the markers no two cases look alike
    "gms_step": style.VERMILION.colour,
    "sample_mixture": style.BLACK.colour,
    "fit_mixture": style.GREEN.colour,
    "philox": style.BLUE.colour,
    "affine_noise": style.ORANGE.colour,
}
Places = dict[str, tuple[float, float]]


def points(rows: list[dict], *, narrow: bool) -> Places:
    """Return the places of the rows whose operations are counted.

    `narrow` keeps the rows in bfloat16: the same work on fewer bytes.
    """
    places = {}
    for row in rows:
        name = row["name"].removesuffix(", float32")
        operations = OPERATIONS.get(name.split(", bfloat16")[0])
        if operations and (narrow or "bfloat16" not in name):
            intensity = operations / row["bytes"]
            places[name] = (intensity, intensity * row["of_copy"])
    return places


def draw(panels: list[dict[str, object]], file: Path) -> None:
    """Draw panels side by side: {"title", "ridge", "measured" and "predicted": places}."""
    style.drawn(_panels, file, panels, height=6.2, panels=panels)


def _panels(figure: Any, panels: list[dict[str, object]]) -> None:
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, panel in zip(axes, panels, strict=True):
        places = panel["predicted"] | panel["measured"]
        _roofs(axis, panel["ridge"], places)
        _points(axis, panel["predicted"], hollow=True)
        _points(axis, panel["measured"], hollow=False)
        axis.set(title=panel["title"], xlabel="operations per byte that must be moved")
        axis.title.set_fontsize(10.5)
    axes[0].set_ylabel("operations in the time of copying one byte")
    _legend(figure, panels)


def _roofs(axis: Any, ridge: float | None, places: Places) -> None:
    """Draw the bandwidth of a copy, y = x, and the roof of a matrix product if measured."""
    x, y = zip(*places.values(), strict=True)
    left, right = min(x) / 2, 2 * max(*x, ridge or 0)
    low, high = min(y) / 2, 1.6 * max(*y, ridge or 0)
    top = ridge or right
    axis.plot([left / 10, top, right], [left / 10, top, top], color=style.GREY, linewidth=1.6, zorder=1)
    axis.set(xlim=(left, right), ylim=(low, high))
    for which in "xy":
        style.log_scale(axis, which)
    text = {"fontsize": 9.5, "color": style.GREY}
    start, above = 1.15 * max(left, low), 1.2
    angle = math.degrees(math.atan(above))  # of y = x in the logarithm, at a point above it
    along = {"rotation": angle, "transform_rotates_text": True, "rotation_mode": "anchor"}
    axis.text(start, above * start, "a copy's bandwidth", **along, **text)
    if ridge:
        axis.text(1.05 * ridge, 1.03 * ridge, "matrix product", va="bottom", **text)


def _case(name: str) -> str:
    """Return the case of a row: its name without the narrower dtypes."""
    return name.split(", bfloat16")[0]


def _look(case: str) -> dict[str, str]:
    """Return colour and marker of a case."""
    op = next(op for op in COLOURS if case.startswith(op))
    of_op = [c for c in OPERATIONS if c.startswith(op)]
    return {"color": COLOURS[op], "marker": MARKERS[of_op.index(case)]}


def _points(axis: Any, places: Places, hollow: bool) -> None:
    """Draw the rows; a line joins the dtypes of a case, narrower ones to the right and smaller."""
    for case in dict.fromkeys(map(_case, places)):
        chain = sorted(place for name, place in places.items() if _case(name) == case)
        look = _look(case)
        axis.plot(*zip(*chain, strict=True), color=look["color"], linewidth=0.9, zorder=2)
        for i, place in enumerate(chain):
            face = "white" if hollow else look["color"]
            edge = look["color"] if hollow else "white"
            mark = {"markerfacecolor": face, "markeredgecolor": edge, "markeredgewidth": 1 if hollow else 0.5}
            axis.plot(*place, markersize=9 - 1.5 * i, zorder=3, **mark, **look)


def _legend(figure: Any, panels: list[dict[str, object]]) -> None:
    """Name the cases below the panels, an op a column."""
    from matplotlib.lines import Line2D

    shown = {_case(name) for panel in panels for name in (*panel["measured"], *panel["predicted"])}
    handles = [Line2D([], [], linestyle="", label=case, **_look(case)) for case in OPERATIONS if case in shown]
    note = (
        "joined, in the GPU's panels, from the left: float32; bfloat16 moments; bfloat16 output too; bfloat16 state too"
    )
    if any(panel["predicted"] for panel in panels):
        note += "; hollow: predicted"
    figure.legend(handles=handles, loc="outside lower center", ncols=4, title=note, title_fontsize=10)
