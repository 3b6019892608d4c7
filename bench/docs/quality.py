"""From the committed quality matrix to docs/quality.md: `python -m bench.docs.quality [--check]`.

Rewrites every table between `<!-- begin GROUP MODEL MEASURE -->` and `<!-- end -->`, and draws docs/quality/; of group
stroke those of `.. MEASURE CALLS -->`, at so many network calls. Reads bench/results/quality/, and of group bases
bench/results/bases.json. --check writes nothing and fails where a table is out of date.
"""

import argparse
import io
import json
import re
from dataclasses import replace
from pathlib import Path

from PIL import Image, ImageDraw

from bench.experiments import bases
from bench.experiments.quality import extra_calls
from bench.records.checkout import RESULTS, ROOT
from gms_fast.quality import matrix, report
from gms_fast.quality.cells import CONTROLS, GUIDE, Cell
from gms_fast.solvers.text import parse
from gms_fast.storage import atomic

RECORDS, PAGE, PICTURES = RESULTS / "quality", ROOT / "docs" / "quality.md", ROOT / "docs" / "quality"
BLOCK = re.compile(r"(<!-- begin (\S+) (\S+) (\S+)(?: (\d+))? -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)
CURVES = {  # model: group; of the solvers those in SHOWN
    "mixture-1d": "exact",
    "exact-digits": "exact",
    "digits": "digits",
    "mnist": "mnist",
}
AT_CALLS = {  # of group calls: what the pictures show of it, and its name there
    "gms:fit=free,component=element": "GMS",
    "ddim": "DDIM",
    "dpm-solver++": "DPM-Solver++ 2M",
    "dpm-solver++:denoise=False": "DPM-Solver++ 2M, no last call",
    "diffusers:solver_order=2": "diffusers 2M",
    "er-sde": "ER-SDE",
    "dpm-solver-v3:statistics={},trust=-2": "DPM-Solver-v3",
}
SHOWN = (
    "real",
    "gaussian",
    "ddpm",
    "sn-ddpm",
    "ddim",
    "gms:fit=free,component=element",
    "gms:fit=exact,component=sample",
)
STRIPS = (("SN-DDPM", "sn-ddpm"), ("GMS", "gms:fit=free,component=element"), ("DDIM", "ddim"))
STROKES = {  # solvers of group stroke: their names in its pictures
    "gms:fit=free,component=element": "GMS",
    "sn-ddpm": "SN-DDPM",
    "ddim": "DDIM",
    "ddpm": "DDPM",
    "er-sde": "ER-SDE",
}
WITH_GAUSSIAN = ("mnist", "digits", "exact-digits", "exact-mnist5k")
NAMES = {  # solver without options and statistics: its name in the pictures of group gaussian
    "gms": "GMS",
    "dpm-solver++": "DPM-Solver++ 2M",
    "er-sde": "ER-SDE",
    "dpm-solver-v3": "DPM-Solver-v3",
}


def records(group: str, model: str) -> list[dict]:
    found = [r for r in matrix.read(RECORDS / group) if r["model"] == model]
    if not found:
        raise SystemExit(f"docs/quality.md asks for {model} of group {group}, of which nothing is committed")
    return found


def page(text: str) -> str:
    """The text with every table made anew."""
    return BLOCK.sub(lambda m: f"{m[1]}{table(m[2], m[3], m[4], m[5])}\n{m[6]}", text)


def table(group: str, model: str, measure: str, calls: str | None) -> str:
    if group == "bases":
        return bases.table(json.loads((RESULTS / "bases.json").read_text())["records"], measure)
    return report.table(block(group, model, calls), measure)


def block(group: str, model: str, calls: str | None) -> list[dict]:
    """The records of a table; with `calls`, those of that many network calls and the controls."""
    found = records(group, model)
    return report.at_calls(found)[int(calls)] if calls else found


def plain(solver: str) -> str:
    return solver.replace(",clip_pixel=None", "").replace(":clip_pixel=None", "")


def label(solver: str) -> str:
    """The name of a solver in a picture of group gaussian; nothing for those it leaves out."""
    name, given, then = parse(solver)
    if then:
        return f"{NAMES[parse(then)[0]]} after teleport to {given['until']:g}"
    if "covariance" not in given:
        return NAMES[name]
    return "GMS with covariance" if given["switch"] == 3 else ""


def draw() -> None:
    PICTURES.mkdir(exist_ok=True)
    for model, group in CURVES.items():
        found = records(group, model) + [r for r in records("angle", model) if r["solver"] not in CONTROLS]
        shown = [{**r, "solver": plain(r["solver"])} for r in found if plain(r["solver"]) in SHOWN]
        report.plot(shown, PICTURES / f"{model}.png")
    for model in ("digits", "mnist"):
        names = {solver.format(model): name for solver, name in AT_CALLS.items()}
        found = [r | {"solver": names.get(r["solver"], r["solver"])} for r in records("calls", model)]
        report.plot([r for r in found if r["solver"] in (*names.values(), *CONTROLS)], PICTURES / f"{model}-calls.png")
    for model in WITH_GAUSSIAN:
        found = [
            r | {"solver": r["solver"] if r["solver"] in CONTROLS else label(r["solver"])}
            for r in records("gaussian", model)
        ]
        report.plot([r for r in found if r["solver"] and r["solver"] != "gaussian"], PICTURES / f"{model}-gaussian.png")
    for model in ("digits", "mnist"):
        found = [r | {"solver": STROKES.get(r["solver"], r["solver"])} for r in records("stroke", model)]
        report.plot_strokes(found, PICTURES / f"{model}-stroke.png")
    columns = {f"K = {k}": [Cell("mnist", s, "0.5", k) for _, s in STRIPS] for k in (5, 10)}
    strips(PICTURES / "samples.png", "mnist", [name for name, _ in STRIPS], columns)
    strips(PICTURES / "samples-gaussian.png", "gaussian", *compared())
    strips(PICTURES / "samples-ggdm.png", "ggdm", *learned())
    strips(PICTURES / "samples-stroke.png", "stroke", *begun())


def compared() -> tuple[list[str], dict[str, list[Cell]]]:
    """Rows and columns of the strips of group gaussian: solvers with and without it, at 5 and 10 network calls."""
    gms, v3 = "gms:fit=free,component=element", "dpm-solver-v3:statistics=mnist,trust=-2"
    rows = {
        "v3": (v3, "0.7"),
        "teleport, v3": (f"teleport:statistics=mnist,until=20 then {v3}", "1.2"),
        "GMS": (gms, "angle"),
        "GMS, covariance": (f"{gms},covariance=mnist,switch=3", "angle"),
    }
    columns = {f"{k} calls": [Cell("mnist", s, g, k - extra_calls(s)) for s, g in rows.values()] for k in (5, 10)}
    return list(rows), columns


def learned() -> tuple[list[str], dict[str, list[Cell]]]:
    """Rows and columns of the strips of group ggdm: what learned tables began from, and what they became."""
    columns = {}
    for k in (5, 10):
        began = [Cell("mnist", solver, "open 0.7", k - 1) for solver in ("ddim", "unip")]
        columns[f"{k} calls"] = [*began, Cell("mnist", f"ggdm:table=mnist/{k}", steps=k)]
    return ["DDIM", "UniP", "learned"], columns


def begun() -> tuple[list[str], dict[str, list[Cell]]]:
    """Rows and columns of the strips of group stroke: strokes and what solvers make of them, at 10 network calls."""
    rows = {name: Cell("mnist", s, "uniform", 10 - extra_calls(s)) for s, name in STROKES.items()}
    shown = [Cell("mnist", GUIDE)]
    return ["strokes", *rows], {
        f"strength {s:g}": shown + [replace(cell, strength=s) for cell in rows.values()] for s in (0.3, 0.5, 0.7)
    }


def strips(path: Path, group: str, labels: list[str], columns: dict[str, list[Cell]]) -> None:
    """The same seeds by solver (rows) and number of steps (columns)."""
    folder = RECORDS / group / matrix.IMAGES
    images = [[Image.open(folder / matrix.picture(cell)) for cell in cells] for cells in columns.values()]
    width, height = images[0][0].size
    left, top = 10 + 7 * max(map(len, labels)), 20
    canvas = Image.new("L", (left + len(columns) * (width + 8), top + len(labels) * (height + 4)), 255)
    pen = ImageDraw.Draw(canvas)
    for i, text in enumerate(labels):
        pen.text((4, top + i * (height + 4) + height // 2 - 6), text, fill=0)
    for j, (heading, column) in enumerate(zip(columns, images, strict=True)):
        pen.text((left + j * (width + 8) + width // 2 - 20, 4), heading, fill=0)
        for i, strip in enumerate(column):
            canvas.paste(strip, (left + j * (width + 8), top + i * (height + 4)))
    encoded = io.BytesIO()
    canvas.save(encoded, "png", optimize=True)
    atomic.write_bytes(path, encoded.getbuffer())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a table is out of date")
    args = parser.parse_args()
    text = PAGE.read_text()
    if args.check:
        raise SystemExit("out of date: docs/quality.md; run python -m bench.docs.quality" if page(text) != text else 0)
    atomic.write_text(PAGE, page(text))
    draw()


if __name__ == "__main__":
    main()
