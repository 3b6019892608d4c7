"""Show the committed quality matrix in docs/quality.md: `python -m bench.docs.quality`.

Rewrites every block between `<!-- begin KIND WORDS -->` and `<!-- end -->` of docs/quality.md and docs/quality/*.md,
and draws docs/quality/*.png. The kinds of blocks are the keys of `BLOCKS`. Reads bench/results/ only. --check writes
nothing and fails where a block or a picture is out of date.
"""

import argparse
import re
from collections.abc import Callable
from pathlib import Path

from bench.docs import quality_strips, quality_tables, style
from bench.docs.quality_plots import PLOTS
from bench.docs.quality_summaries import summary
from bench.records.checkout import ROOT
from gms_fast.storage import atomic

PAGE, FOLDER = ROOT / "docs" / "quality.md", ROOT / "docs" / "quality"
BLOCK = re.compile(r"(<!-- begin (\w+) ?(.*?) -->\n)(?:(?!<!-- (?:begin|end)).)*(<!-- end -->)", re.DOTALL)
BLOCKS: dict[str, Callable[[str], str]] = {
    "summary": summary,  # a small table: NAME
    "group": quality_tables.group,  # all tables of a group of the matrix: NAME
    "file": quality_tables.file,  # all tables of bench/results/NAME.md
    "part": lambda words: quality_tables.part(*words.split("; ")),  # rows of one of these tables: NAME; TITLE; ROW; ..
    "settings": lambda _: quality_tables.settings(),
}


def pages() -> list[Path]:
    """Return the report and its appendices."""
    return [PAGE, *sorted(FOLDER.glob("appendix-*.md"))]


def page(text: str) -> str:
    """Return the text with every block regenerated."""
    return BLOCK.sub(lambda m: f"{m[1]}{BLOCKS[m[2]](m[3])}\n{m[4]}", text)


def pictures() -> dict[Path, tuple[object, Callable[[], None]]]:
    """Return the inputs of each picture and the function that draws it."""
    found = {}
    for name, plot in PLOTS.items():
        file, shown = FOLDER / f"{name}.png", plot.inputs()
        found[file] = shown, lambda f=file, p=plot, s=shown: style.drawn(p.draw, f, s, height=p.height, found=s)
    for name, (group, make) in quality_strips.STRIPS.items():
        file, strips = FOLDER / f"{name}.png", make()
        shown = quality_strips.inputs(group, strips)
        found[file] = shown, lambda f=file, g=group, s=strips: quality_strips.draw(f, g, s)
    return found


def out_of_date() -> list[str]:
    """Return the names of the files that are out of date with the committed results."""
    stale = [file.name for file in pages() if page(text := file.read_text()) != text]
    return stale + [file.name for file, (shown, _) in pictures().items() if not style.current(file, shown)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing, fail if something is out of date")
    args = parser.parse_args()
    if args.check:
        if stale := out_of_date():
            raise SystemExit(f"out of date: {', '.join(stale)}; run python -m bench.docs.quality")
        return
    for file in pages():
        atomic.write_text(file, page(file.read_text()))
    for _, draw in pictures().values():
        draw()


if __name__ == "__main__":
    main()
