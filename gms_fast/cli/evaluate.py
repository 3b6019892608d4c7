"""`gms-fast evaluate`: draw with several solvers, measure the samples against real data, write tables and plots.

With --samples: measure samples that are there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast.cli import measured, options

if TYPE_CHECKING:
    from collections.abc import Iterator

SUMMARY = "Measure how good a model's samples are, by solver, time grid and number of steps, or samples that are there."
TABLES = "tables.md"
DEFAULTS = {"model": "mnist", "steps": (5, 10, 20), "n": 1000, "ranges": 3}
OF_MODELS = (*DEFAULTS, "data", "schedule", "solver", "grid", "workers", "resume")
OF_SAMPLES = ("reference", "feature_input", "feature_channels", "inception", "batch_size", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast evaluate`."""
    add = parser.add_argument
    add(
        "--model",
        help="embedded name, folder, checkpoint, or exact-digits, ... (default: mnist)",
    )
    real = "mnist5k, digits, or a file or folder, to be seen through --features mnist5k, digits or cifar10"
    add("--data", help=f"real data: {real} (default: what an embedded model was trained on)")
    add("--schedule", choices=("linear", "cosine"), help="of a model with exact moments (default: linear)")
    add("--solver", action="append", help="like gms or gms:fit=free; repeat for more (default: gms, sn-ddpm)")
    add(
        "--grid",
        action="append",
        help="default, angle, uniform, log-snr or an exponent; repeat for more (default: default)",
    )
    add("--steps", type=options.integers, help="numbers of steps (default: 5,10,20)")
    add("--n", type=options.positive, help="samples of each (default: 1000)")
    add("--ranges", type=options.positive, help="ranges of n samples, for the spread (default: 3)")
    add("--workers", type=options.positive, help="processes (default: one a processor)")
    add("--out", type=Path, help="folder for records, tables and plots; with --samples a file .json, or nothing")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue in --out")
    again.add_argument("--force", action="store_true", help="delete the records in --out and start anew")
    _add_samples(parser.add_argument_group("of samples that are there, in place of a model"))


def _add_samples(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--samples", help="folder of shards or pictures, an array file, or statistics of features, .safetensors")
    add("--reference", help="real data, of the same kinds or a data set; statistics: gms-fast statistics --features")
    measured.add_features(group)
    add("--inception", action="store_true", help="the features are the published Inception's: call the result FID")
    add("--batch-size", type=options.positive, help=f"pictures at a time (default: {measured.BATCH})")
    add("--device", help="of the feature network: cpu, cuda, ... (default: cuda if there is one)")


def run(args: argparse.Namespace) -> int:
    """Evaluate a model, and say where the tables are, or samples, and print their distances."""
    if args.samples is not None:
        options.refuse(args, OF_MODELS, "with --samples")
        return measured.evaluate(args)
    options.refuse(args, OF_SAMPLES, "without --samples")
    if args.out is None:
        raise ValueError("--out must be given for a model")
    for name, value in DEFAULTS.items():
        setattr(args, name, value if getattr(args, name) is None else getattr(args, name))
    return _model(args)


def _model(args: argparse.Namespace) -> int:
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
    matrix.check(cells, args.n, args.data, args.schedule, args.features)
    options.check_folder(args.out, again=args.resume or args.force)
    args.left = options.LEFT
    records = matrix.run(
        cells,
        args.out,
        n=args.n,
        data=args.data,
        schedule=args.schedule,
        features=args.features,
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
