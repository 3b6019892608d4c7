"""`gms-fast search`: learn the sampler itself, a table of few numbers for so many network calls."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gms_fast.cli import options

if TYPE_CHECKING:
    from gms_fast.search.features import DigitFeatures

SUMMARY = "Learn a table for solver ggdm: the best sampler of so many calls of a network that stays as it is."
VARIANTS = ("ggdm", "pred", "time", "constrained")
STARTS = ("ddim", "dpm-solver++", "unip")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast search`; the defaults are the recipe of the embedded table for 5 calls."""
    add = parser.add_argument
    add("--model", default="mnist", help="embedded name, saved folder or released checkpoint (default: mnist)")
    add("--data", required=True, help="what it was trained on: mnist5k, digits, a file or folder of images")
    add("--out", type=Path, required=True, help="folder for the table, its checkpoint and the curve of scores")
    add("--steps", type=options.positive, default=5, help="network calls of the sampler (default: 5)")
    add("--features", help="what samples are seen through: mnist5k, digits or pixels (default: --data, else pixels)")
    add("--initial", choices=STARTS, default="unip", help="solver to begin as (default: unip)")
    add("--spacing", type=options.spacing, default=0.7, help="grid of its times, a name or exponent (default: 0.7)")
    add("--variant", choices=VARIANTS, default="time", help="what is learned (default: time)")
    add("--stochastic", action="store_true", help="learn the noise of each step too")
    add("--kernel", choices=("cubic", "linear"), default="cubic", help="of the distance (default: cubic)")
    add("--iterations", type=options.positive, default=120, help="steps of Adam at most (default: 120)")
    add("--batch-size", type=options.positive, default=192, help="samples of a step (default: 192)")
    add("--lr", type=float, default=1e-2, help="peak learning rate (default: 1e-2)")
    add("--patience", type=options.positive, default=12, help="scores without progress that end it (default: 12)")
    add("--chunk", type=options.positive, default=32, help="samples the network sees at a time (default: 32)")
    add("--keep-activations", action="store_true", help="a third less time, for the memory of all steps")
    add("--seed", type=options.seed, default=0, help="determines everything random (default: 0)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    options.add_again(parser, "search")


def run(args: argparse.Namespace) -> int:
    """Learn, and say what came of it."""
    import gms_fast
    from gms_fast import data, search
    from gms_fast.search import ddss

    fields = ("variant", "stochastic", "kernel", "iterations", "batch_size", "lr", "patience", "seed")
    settings: dict[str, Any] = {name: getattr(args, name) for name in fields}
    search.Settings(**settings)
    device = options.device(args.device)
    images = data.load(args.data)
    features = _features(args)
    model = gms_fast.load(args.model).to(device)
    options.check_folder(args.out, again=args.resume or args.force)
    args.left = options.LEFT
    search.ggdm(
        model,
        images,
        args.steps,
        initial=args.initial,
        spacing=args.spacing,
        features=features if features is None else features.to(device),
        chunk=args.chunk,
        rematerialise=not args.keep_activations,
        out=args.out,
        replace=args.force,
        progress=sys.stderr.isatty(),
        **settings,
    )
    with (args.out / ddss.CURVE).open() as file:
        rows = [(int(row["iteration"]), float(row["score"])) for row in csv.DictReader(file)]
    best, score = min(rows, key=lambda row: row[1])
    path = args.out / ddss.TABLE
    print(f"score {rows[0][1]:.4g} at first, {score:.4g} after {best} of {rows[-1][0]} iterations: {path}")
    print(f"draw with it: gms-fast sample --model {args.model} --steps {args.steps} --solver ggdm:table={path}")
    return 0


def _features(args: argparse.Namespace) -> DigitFeatures | None:
    """The features that `--features` names; None stands for the pixels."""
    from gms_fast import search
    from gms_fast.search.features import NAMES

    name = args.features or (args.data if args.data in NAMES else "pixels")
    return None if name == "pixels" else search.load_features(name)
