"""From the committed quality matrix to docs/quality.md: `python bench/quality_docs.py [--check]`.

Rewrites every table between `<!-- begin GROUP MODEL MEASURE -->` and `<!-- end -->`, and draws docs/quality/. Reads
bench/results/quality/ only. --check writes nothing and fails where a table is out of date.
"""

import argparse
import re
from pathlib import Path

from PIL import Image, ImageDraw

from gms_fast.quality import matrix, report
from gms_fast.quality.cells import CONTROLS, Cell

ROOT = Path(__file__).resolve().parent.parent
RESULTS, PAGE, PICTURES = (
    ROOT / "bench" / "results" / "quality",
    ROOT / "docs" / "quality.md",
    ROOT / "docs" / "quality",
)
BLOCK = re.compile(r"(<!-- begin (\S+) (\S+) (\S+) -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)
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


def records(group: str, model: str) -> list[dict]:
    found = [r for r in matrix.read(RESULTS / group) if r["model"] == model]
    if not found:
        raise SystemExit(f"docs/quality.md asks for {model} of group {group}, of which nothing is committed")
    return found


def page(text: str) -> str:
    """The text with every table made anew."""
    return BLOCK.sub(lambda m: m[1] + report.table(records(m[2], m[3]), m[4]) + "\n" + m[5], text)


def plain(solver: str) -> str:
    return solver.replace(",clip_pixel=None", "").replace(":clip_pixel=None", "")


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
    strips(PICTURES / "samples.png")


def strips(path: Path, steps: tuple[int, ...] = (5, 10)) -> None:
    """The same seeds by solver (rows) and number of steps (columns)."""
    folder = RESULTS / "mnist" / matrix.IMAGES
    rows = [[Image.open(folder / matrix.picture(Cell("mnist", s, "0.5", k))) for k in steps] for _, s in STRIPS]
    width, height = rows[0][0].size
    left, top = 70, 20
    canvas = Image.new("L", (left + len(steps) * (width + 8), top + len(rows) * (height + 4)), 255)
    pen = ImageDraw.Draw(canvas)
    for i, (label, _) in enumerate(STRIPS):
        pen.text((4, top + i * (height + 4) + height // 2 - 6), label, fill=0)
        for j, strip in enumerate(rows[i]):
            canvas.paste(strip, (left + j * (width + 8), top + i * (height + 4)))
    for j, k in enumerate(steps):
        pen.text((left + j * (width + 8) + width // 2 - 20, 4), f"K = {k}", fill=0)
    canvas.save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a table is out of date")
    args = parser.parse_args()
    text = PAGE.read_text()
    if args.check:
        raise SystemExit("out of date: docs/quality.md; run python bench/quality_docs.py" if page(text) != text else 0)
    PAGE.write_text(page(text))
    draw()


if __name__ == "__main__":
    main()
