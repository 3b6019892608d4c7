"""Sample strips of the quality report: samples of the same seeds, one solver per row.

Columns are numbers of network evaluations or strengths.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from bench.docs import style
from bench.docs.quality_tables import RECORDS
from bench.experiments.quality import extra_calls
from gms_fast.quality import matrix
from gms_fast.quality.cells import GUIDE, Cell
from gms_fast.storage import atomic

GMS, V3 = "gms:fit=free,component=element", "dpm-solver-v3:statistics=mnist,trust=-2"
BEGUN = {"GMS (free fit)": GMS, "SN-DDPM": "sn-ddpm", "DDIM": "ddim", "DDPM": "ddpm", "ER-SDE": "er-sde"}
Strips = tuple[list[str], dict[str, list[Cell]]]  # labels of the rows; heading of each column: its cells
SIZE, GAP = 22, 14  # pixels: letters, and space between columns


def by_step() -> Strips:
    """Return solvers without memory of earlier steps, on the grid of power 0.5."""
    rows = {"SN-DDPM": "sn-ddpm", "GMS (free fit)": GMS, "DDIM": "ddim"}
    return list(rows), {
        f"K = {k} steps ({k + 1} NFE)": [Cell("mnist", s, "0.5", k) for s in rows.values()] for k in (5, 10)
    }


def compared() -> Strips:
    """Return solvers with and without the Gaussian of the data."""
    rows = {
        "DPM-Solver-v3": (V3, "0.7"),
        "DPM-Solver-v3 after a teleport to 20": (f"teleport:statistics=mnist,until=20 then {V3}", "1.2"),
        "GMS (free fit)": (GMS, "angle"),
        "GMS (free fit, covariance to 3)": (f"{GMS},covariance=mnist,switch=3", "angle"),
    }
    return list(rows), {
        f"{k} NFE": [Cell("mnist", s, g, k - extra_calls(s)) for s, g in rows.values()] for k in (5, 10)
    }


def learned() -> Strips:
    """Return the solvers from which the learned tables started, and the learned tables."""
    columns = {}
    for k in (5, 10):
        began = [Cell("mnist", solver, "open 0.7", k - 1) for solver in ("ddim", "unip")]
        columns[f"{k} NFE"] = [*began, Cell("mnist", f"ggdm:table=mnist/{k}", steps=k)]
    return ["DDIM", "UniP", "GGDM (learned)"], columns


def strokes() -> Strips:
    """Return strokes and their edits by each solver, at 10 network evaluations."""
    rows = {name: Cell("mnist", s, "uniform", 10 - extra_calls(s)) for name, s in BEGUN.items()}
    shown = [Cell("mnist", GUIDE)]
    return ["strokes", *rows], {
        f"strength {s:g}": shown + [replace(cell, strength=s) for cell in rows.values()] for s in (0.3, 0.5, 0.7)
    }


STRIPS: dict[str, tuple[str, Callable[[], Strips]]] = {  # picture: group, rows and columns
    "samples": ("mnist", by_step),
    "samples-gaussian": ("gaussian", compared),
    "samples-ggdm": ("ggdm", learned),
    "samples-stroke": ("stroke", strokes),
}


def files(group: str, strips: Strips) -> list[list[Path]]:
    """Return the committed pictures of each column."""
    folder = RECORDS / group / matrix.IMAGES
    return [[folder / matrix.picture(cell) for cell in cells] for cells in strips[1].values()]


def inputs(group: str, strips: Strips) -> list[object]:
    """Return the labels of a picture and the digests of its strips."""
    shown = [[hashlib.sha256(file.read_bytes()).hexdigest() for file in column] for column in files(group, strips)]
    return [strips[0], list(strips[1]), shown]


def draw(path: Path, group: str, strips: Strips) -> None:
    """Assemble the strips, with names for the rows and columns."""
    images = [[Image.open(file) for file in column] for column in files(group, strips)]
    labels, headings = strips[0], list(strips[1])
    font = ImageFont.load_default(SIZE)
    width, height = images[0][0].size
    left, top = 24 + max(int(font.getlength(text)) for text in labels), 2 * SIZE
    canvas = Image.new("L", (left + len(headings) * (width + GAP), top + len(labels) * (height + 6)), 255)
    pen = ImageDraw.Draw(canvas)
    for i, text in enumerate(labels):
        pen.text((left - 14, top + i * (height + 6) + height // 2), text, fill=0, font=font, anchor="rm")
    for j, (heading, column) in enumerate(zip(headings, images, strict=True)):
        pen.text((left + j * (width + GAP) + width // 2, SIZE), heading, fill=0, font=font, anchor="mm")
        for i, strip in enumerate(column):
            canvas.paste(strip, (left + j * (width + GAP), top + i * (height + 6)))
    told = PngImagePlugin.PngInfo()
    told.add_text(style.FINGERPRINT, style.fingerprint(inputs(group, strips)))
    encoded = io.BytesIO()
    canvas.save(encoded, "png", optimize=True, pnginfo=told)
    atomic.write_bytes(path, encoded.getbuffer())
