"""Style of the plots in the documentation.

Colours are those of Okabe and Ito (2008); each comes with a marker and a line style, so that no curve
is told apart by its colour alone. A PNG keeps a fingerprint of its inputs: stale pictures are found without drawing.
"""

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from gms_fast.storage import atomic

DPI, WIDTH = 150, 10.8  # dots an inch, inches: 1620 pixels
GREY, LIGHT, INK = "#595959", "#e4e4e4", "#1a1a1a"
DECADES = range(-4, 5)
FINGERPRINT = "Inputs"  # where a PNG holds what it was drawn from


class Look(NamedTuple):
    """Colour, marker and line style of a curve."""

    colour: str
    marker: str
    line: str | tuple[int, tuple[float, ...]]


BLACK = Look("#000000", "X", (0, (9, 1.5)))
ORANGE = Look("#e69f00", "s", (0, (5, 1.5)))
SKY = Look("#56b4e9", "^", (0, (1, 1)))
GREEN = Look("#009e73", "D", (0, (6, 1.5, 1, 1.5)))
BLUE = Look("#0072b2", "v", "-")
VERMILION = Look("#d55e00", "o", "-")
PURPLE = Look("#cc79a7", "p", (0, (3, 1, 1, 1, 1, 1)))
RULES = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": LIGHT,
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10.5,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 7,
    "savefig.facecolor": "white",
}


def drawn(draw: Callable[..., None], file: Path, inputs: object, *, height: float, **options: Any) -> None:
    """Draw a figure by `draw(figure, **options)` in this style, and save it as PNG.

    `inputs` is what the picture shows; the PNG keeps its fingerprint. `height` is in inches.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(RULES):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure, **options)
        encoded = io.BytesIO()
        figure.savefig(encoded, format="png", dpi=DPI, metadata={FINGERPRINT: fingerprint(inputs), "Software": None})
    atomic.write_bytes(file, encoded.getbuffer())


def fingerprint(inputs: object) -> str:
    """Return a digest of what a picture shows."""
    return hashlib.sha256(json.dumps(inputs, sort_keys=True, default=str).encode()).hexdigest()


def current(file: Path, inputs: object) -> bool:
    """Tell whether a picture was drawn from these inputs."""
    return file.exists() and Image.open(file).text.get(FINGERPRINT) == fingerprint(inputs)


def curve(axes: Any, x: Sequence[float], y: Sequence[float], spread: Sequence[float], look: Look, label: str) -> None:
    """Draw means with their spread as bars."""
    colour, marker, line = look
    mark = {"color": colour, "marker": marker, "linestyle": line, "markeredgecolor": "white", "markeredgewidth": 0.4}
    axes.errorbar(x, y, spread, label=label, elinewidth=1.2, capsize=3, zorder=3, **mark)


def level(axes: Any, value: float, text: str) -> None:
    """Draw a control across, with its name outside, at the right end."""
    axes.axhline(value, color=GREY, linestyle=(0, (2, 2)), linewidth=1.2, zorder=1)
    place = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    axes.annotate(text, (1.0, value), (3, 0), color=GREY, fontsize=9, annotation_clip=False, **place)


def log_scale(axes: Any, which: str, ticks: Sequence[float] = ()) -> None:
    """Make the axis "x" or "y" logarithmic, with plain numbers at its ticks."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    some = (1, 2, 5) if high > 10 * low else (1, 1.5, 2, 3, 5, 7)
    axis.set_major_locator(FixedLocator(list(ticks) or [m * 10.0**e for e in DECADES for m in some]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def legend(figure: Any, columns: int) -> None:
    """Put one legend of all panels below the figure."""
    handles = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns, handlelength=3.2)
