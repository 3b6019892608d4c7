"""Draws docs/roofline.png from the committed results; run by `readme`.

Across: operations per byte that an op must move. Up: operations in the time of copying one byte, a ratio of two times
of one run, so that the copy's bandwidth is the line y = x on every machine. The flat roof, where it was measured, is a
float32 matrix product. Filled points are measured, hollow ones predicted (`bench.gpu.predict`).
"""

import io
import math
from pathlib import Path

from gms_fast.storage import atomic

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
STYLE = {"gms_step": ("#1b6ca8", "o"), "sample_mixture": ("#c8553d", "s"), "fit_mixture": ("#588157", "D")}
STYLE |= {"philox": ("#7b4b94", "^"), "affine_noise": ("#b58900", "v")}
Places = dict[str, tuple[float, float]]


def points(rows: list[dict], *, narrow: bool) -> Places:
    """Places of the rows whose operations are counted; `narrow` keeps bfloat16, the same work on fewer bytes."""
    places = {}
    for row in rows:
        name = row["name"].removesuffix(", float32")
        operations = OPERATIONS.get(name.split(", bfloat16")[0])
        if operations and (narrow or "bfloat16" not in name):
            intensity = operations / row["bytes"]
            places[name] = (intensity, intensity * row["of_copy"])
    return places


def draw(panels: list[dict[str, object]], file: Path, inputs: str) -> None:
    """Panels side by side: {"title", "ridge", "measured" and "predicted": places}; `inputs` is kept in the PNG."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(5.6 * len(panels), 4.6), layout="constrained")
    figure.suptitle("Arithmetic and memory: how near each op comes to what the machine can do", fontsize=12)
    for axis, panel in zip(axes, panels, strict=True):
        places = panel["predicted"] | panel["measured"]
        _roofs(axis, panel["ridge"], places)
        _markers(axis, panel["predicted"], hollow=True)
        _markers(axis, panel["measured"], hollow=False)
        _labels(axis, places)
        axis.set_title(panel["title"], fontsize=10.5)
        axis.set_xlabel("operations per byte that must be moved")
    axes[0].set_ylabel("operations in the time of copying one byte")
    figure.legend(handles=_legend(plt, panels), loc="outside lower center", ncols=7, frameon=False, fontsize=9.5)
    encoded = io.BytesIO()
    figure.savefig(encoded, format="png", dpi=150, metadata={"Inputs": inputs, "Software": None})
    atomic.write_bytes(file, encoded.getbuffer())


def _roofs(axis, ridge: float | None, places: Places) -> None:
    x, y = zip(*places.values(), strict=True)
    left, right = min(*x, ridge or 2.0) / 4, max(100.0, 2 * max(x))
    low, high = min(1.0, min(y) / 3), 3 * max(*y, ridge or 0)
    top = ridge or right
    grey = {"color": "#444444", "linewidth": 1.4, "zorder": 1}
    axis.plot([left / 10, top, right], [left / 10, top, top], **grey)
    axis.set(xscale="log", yscale="log", xlim=(left, right), ylim=(low, high))
    axis.grid(which="major", color="#e8e8e8", linewidth=0.7, zorder=0)
    text = {"fontsize": 9, "color": "#444444"}
    start, above = 1.2 * max(left, low), 1.25
    angle = math.degrees(math.atan(above))  # of y = x in the logarithm, at a point above it
    along = {"rotation": angle, "transform_rotates_text": True, "rotation_mode": "anchor"}
    axis.text(start, above * start, "a copy's bandwidth", **along, **text)
    if ridge:
        axis.text(right * 0.9, ridge * 1.12, "float32 matrix product", ha="right", **text)


def _style(name: str) -> tuple[str, str]:
    return next(style for op, style in STYLE.items() if name.startswith(op))


def _markers(axis, places: Places, hollow: bool) -> None:
    for name, place in places.items():
        colour, marker = _style(name)
        face = "white" if hollow else colour
        axis.plot(*place, marker, color=colour, markerfacecolor=face, markersize=7, markeredgewidth=1.5, zorder=3)


def _labels(axis, places: Places) -> None:
    """One for each op and fit, in the margin; a line joins the dtypes of one, narrower ones to the right."""
    ends: Places = {}
    for name in {name.split(", bfloat16")[0] for name in places}:
        chain = sorted(place for other, place in places.items() if other.split(", bfloat16")[0] == name)
        axis.plot(*zip(*chain, strict=True), color=_style(name)[0], linewidth=0.8, zorder=2)
        ends[name] = chain[-1]
    names = sorted(ends, key=lambda name: ends[name][1])
    line = {"arrowstyle": "-", "color": "#c4c4c4", "linewidth": 0.8, "shrinkB": 5, "relpos": (0, 0.5)}
    margin = 1.12 * axis.get_xlim()[1]
    for name, height in zip(names, _apart(axis, [ends[name][1] for name in names]), strict=True):
        text = {"fontsize": 9, "color": _style(name)[0], "va": "center"}
        axis.annotate(name, ends[name], (margin, height), arrowprops=line, annotation_clip=False, **text)
    if len(ends) < len(places):
        note = "joined, from the left: float32, bfloat16\nmoments, output too, state too"
        axis.text(0.97, 0.03, note, transform=axis.transAxes, ha="right", fontsize=8.5, color="#444444")


def _apart(axis, heights: list[float]) -> list[float]:
    """Ascending heights, moved apart by one line of text each."""
    low, high = axis.get_ylim()
    gap = (high / low) ** 0.045
    for _ in range(200):
        for i in range(len(heights) - 1):
            missing = gap * heights[i] / heights[i + 1]
            if missing > 1:
                heights[i], heights[i + 1] = heights[i] / missing**0.5, heights[i + 1] * missing**0.5
    return heights


def _legend(plt, panels: list[dict[str, object]]) -> list:
    shown = [name for panel in panels for name in (*panel["measured"], *panel["predicted"])]
    ops = {op: style for op, style in STYLE.items() if any(name.startswith(op) for name in shown)}
    handles = [plt.Line2D([], [], color=c, marker=m, linestyle="", label=op) for op, (c, m) in ops.items()]
    hollow = plt.Line2D([], [], color="#666666", marker="o", linestyle="", markerfacecolor="white", label="predicted")
    return [*handles, hollow] if any(panel["predicted"] for panel in panels) else handles
