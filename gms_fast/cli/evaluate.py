"""`gms-fast evaluate`: tables and plots that compare solvers' samples with real data.

With --samples it measures existing samples.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast.cli import measured, options, sources

if TYPE_CHECKING:
    from collections.abc import Iterator

SUMMARY = (
    "Measure the quality of existing samples, or of a model's samples for each solver, time grid and number of steps."
)
TABLES = "tables.md"
DEFAULTS = {"model": "mnist", "steps": (5, 10, 20), "n": 1000, "ranges": 3}
OF_MODELS = (*DEFAULTS, "data", "schedule", "solver", "grid", "workers", "resume")
OF_SAMPLES = ("reference", "feature_input", "feature_channels", "inception", "batch_size", "device")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast evaluate`."""
    add = parser.add_argument
    subject = "embedded model (mnist or digits), folder of a saved model, released checkpoint, or exact-digits or "
    subject += "exact-mnist5k (models with the exact moments of a data set) (default: mnist)"
    add("--model", type=sources.Subject, help=subject)
    real = "mnist5k, digits, or a file or folder, which requires --features mnist5k, digits or cifar10"
    real = f"real data to compare with: {real} (default: the training data of an embedded model)"
    add("--data", type=sources.Data, help=real)
    add("--schedule", choices=("linear", "cosine"), help="noise schedule of an exact model (default: linear)")
    add("--solver", action="append", help="solver such as gms or gms:fit=free; may be repeated (default: gms, sn-ddpm)")
    grid = "time grid: default (the solver's own), angle, uniform, log-snr, or an exponent; may be repeated"
    add("--grid", action="append", help=f"{grid} (default: default)")
    add(
        "--steps",
        type=options.integers,
        metavar="K,..",
        help="numbers of steps, separated by commas (default: 5,10,20)",
    )
    add("--n", type=options.positive, help="number of samples in each measurement (default: 1000)")
    ranges = "number of times to measure each case, with different samples, to estimate the spread (default: 3)"
    add("--ranges", type=options.positive, metavar="R", help=ranges)
    add("--workers", type=options.positive, metavar="W", help="number of processes (default: one per processor)")
    add(
        "--out",
        type=Path,
        help="folder for records, tables and plots (required); with --samples, an optional .json file instead",
    )
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue an interrupted measurement in --out")
    again.add_argument("--force", action="store_true", help="delete the records in --out and start again")
    note = "A model with your own --data needs --features too."
    _add_samples(parser.add_argument_group("options to measure existing samples instead of a model", note))


def _add_samples(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    samples = "samples to measure: folder of shards or images, array file, or feature statistics (.safetensors)"
    add("--samples", type=sources.Data, help=samples)
    reference = (
        "real data: a file or folder as for --samples, a data set, or statistics from gms-fast statistics --features"
    )
    add("--reference", type=sources.Data, help=f"{reference} (required with --samples)")
    measured.add_features(group)
    add(
        "--inception",
        action="store_true",
        help="confirm that the features come from the published Inception network, so that the result is called FID",
    )
    batch = f"number of images sent through the feature network at a time (default: {measured.BATCH})"
    add("--batch-size", type=options.positive, metavar="B", help=batch)
    add("--device", help=options.DEVICE)


def run(args: argparse.Namespace) -> int:
    """Evaluate a model and print the tables' file, or measure samples and print distances."""
    if args.samples is not None:
        options.refuse(args, OF_MODELS, "with --samples")
        return measured.evaluate(args)
    options.refuse(args, OF_SAMPLES, "without --samples")
    if args.out is None:
        raise ValueError("--out must be given to evaluate a model: got none")
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
    """Yield the files of a run, relative to its folder."""
    from gms_fast.quality import matrix, report

    try:
        records = matrix.read(out)
    except ValueError:  # damaged records are deleted too
        records = []
    pictures = {f"{matrix.IMAGES}/{matrix.picture(cell)}" for cell in map(matrix.cell_of, records)}
    yield from (matrix.SETTINGS, matrix.RECORDS, TABLES, *(f"{m}.png" for m in report.LABELS), *pictures)
