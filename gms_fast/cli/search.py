"""`gms-fast search`: learn a sampler, a small table for a fixed number of network calls."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gms_fast.cli import options, sources

if TYPE_CHECKING:
    from gms_fast.search.features import DigitFeatures

SUMMARY = "Learn the coefficient table of the solver ggdm, for a frozen network and a fixed number of network calls."
VARIANTS = ("ggdm", "pred", "time", "constrained")
STARTS = ("ddim", "dpm-solver++", "unip")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast search`, by default the recipe of the embedded 5-call table."""
    add = parser.add_argument
    add("--model", type=sources.Model, help=options.MODEL)
    data = "training data of the model: mnist5k, digits, an array file or a folder of images"
    add("--data", type=sources.Data, required=True, help=data)
    add("--out", type=Path, required=True, help="folder for the learned table, its checkpoint and the curve of scores")
    add(
        "--steps", type=options.positive, default=5, metavar="K", help="number of network calls per sample (default: 5)"
    )
    features = "features by which samples and data are compared: mnist5k, digits or pixels"
    add("--features", help=f"{features} (default: the same as --data if that is one of these, else pixels)")
    add(
        "--initial",
        choices=STARTS,
        default="unip",
        help="solver whose coefficients the search starts from (default: unip)",
    )
    spacing = "initial time grid: a name such as log-snr, or an exponent (default: 0.7)"
    add("--spacing", type=options.spacing, default=0.7, help=spacing)
    variant = (
        "learned coefficients: ggdm (weights of past states), pred (also weights of the data estimate), time (also the "
    )
    variant += "times), constrained (like ggdm, but keeps the schedule's marginals) (default: time)"
    add("--variant", choices=VARIANTS, default="time", help=variant)
    add("--stochastic", action="store_true", help="also learn the amount of noise in each step")
    kernel = "kernel for the distance between samples and data (default: cubic)"
    add("--kernel", choices=("cubic", "linear"), default="cubic", help=kernel)
    iterations = "maximum number of optimiser steps (default: 120)"
    add("--iterations", type=options.positive, default=120, metavar="N", help=iterations)
    batch = "number of samples per optimiser step, at least 2 (default: 192)"
    add("--batch-size", type=options.positive, default=192, metavar="B", help=batch)
    add("--lr", type=float, default=1e-2, help="peak learning rate, above 0 (default: 1e-2)")
    patience = "stop after this number of scores without an improvement (default: 12)"
    add("--patience", type=options.positive, default=12, metavar="N", help=patience)
    chunk = "number of samples sent through the network at a time (default: 32)"
    add("--chunk", type=options.positive, default=32, metavar="N", help=chunk)
    keep = "keep the activations of all steps, which takes a third less time but needs memory for all of them"
    add("--keep-activations", action="store_true", help=keep)
    add("--seed", type=options.seed, default=0, help=options.SEED)
    add("--device", help=options.DEVICE)
    options.add_again(parser, "search")


def run(args: argparse.Namespace) -> int:
    """Learn the table, and report its score."""
    import gms_fast
    from gms_fast import data, search
    from gms_fast.search import ddss

    args.model = args.model or options.MNIST
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
    """Return the features of --features; None stands for pixels."""
    from gms_fast import search
    from gms_fast.search.features import NAMES

    name = args.features or (args.data if args.data in NAMES else "pixels")
    return None if name == "pixels" else search.load_features(name)
