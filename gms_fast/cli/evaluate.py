"""`gms-fast evaluate`: draw with several solvers, measure the samples against real data, write tables and plots."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast.cli import options

if TYPE_CHECKING:
    from collections.abc import Iterator

SUMMARY = "Measure how good a model's samples are, by solver, time grid and number of steps."
TABLES = "tables.md"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast evaluate`."""
    add = parser.add_argument
    add(
        "--model",
        default="mnist",
        help="embedded name, folder, checkpoint, or exact-digits, ... (default: mnist)",
    )
    add("--data", help="real data: mnist5k, digits, a file or folder (default: what an embedded model was trained on)")
    add("--schedule", choices=("linear", "cosine"), help="of a model with exact moments (default: linear)")
    add("--solver", action="append", help="like gms or gms:fit=free; repeat for more (default: gms, sn-ddpm)")
    add(
        "--grid",
        action="append",
        help="default, angle, uniform, log-snr or an exponent; repeat for more (default: default)",
    )
    add("--steps", type=options.integers, default=(5, 10, 20), help="numbers of steps (default: 5,10,20)")
    add("--n", type=options.positive, default=1000, help="samples of each (default: 1000)")
    add("--ranges", type=options.positive, default=3, help="ranges of n samples, for the spread (default: 3)")
    add("--workers", type=options.positive, help="processes (default: one a processor)")
    add("--out", type=Path, required=True, help="folder for records, tables and plots")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue in --out")
    again.add_argument("--force", action="store_true", help="delete the records in --out and start anew")


def run(args: argparse.Namespace) -> int:
    """Evaluate, and say where the tables are."""
    from gms_fast.quality import matrix, report
    from gms_fast.quality.cells import CONTROLS, Cell
    from gms_fast.storage import atomic

    if not args.steps:
        raise ValueError("--steps must have at least one number: got none")
    solvers, grids = args.solver or ["gms", "sn-ddpm"], args.grid or ["default"]
    cells = [
        *(Cell(args.model, control, range=r) for control in CONTROLS for r in range(args.ranges)),
        *(
            Cell(args.model, solver, grid, steps, r)
            for steps in args.steps
            for solver in solvers
            for grid in grids
            for r in range(args.ranges)
        ),
    ]
    matrix.check(cells, args.n, args.data, args.schedule)
    options.check_folder(args.out, again=args.resume or args.force)
    args.left = options.LEFT
    records = matrix.run(
        cells,
        args.out,
        n=args.n,
        data=args.data,
        schedule=args.schedule,
        workers=args.workers,
        replace=_files(args.out) if args.force else (),
        progress=sys.stderr.isatty(),
    )
    atomic.write_text(args.out / TABLES, report.tables(records))
    report.plot(records, args.out / f"{report.headline(records)}.png")
    print(f"{len(records)} cells: {args.out / TABLES}")
    return 0


def _files(out: Path) -> Iterator[str]:
    """The files of a run, relative to its folder."""
    from gms_fast.quality import matrix, report

    try:
        records = matrix.read(out)
    except ValueError:  # damaged ones are what it is to be rid of
        records = []
    pictures = {f"{matrix.IMAGES}/{matrix.picture(cell)}" for cell in map(matrix.cell_of, records)}
    yield from (matrix.SETTINGS, matrix.RECORDS, TABLES, *(f"{m}.png" for m in report.LABELS), *pictures)
