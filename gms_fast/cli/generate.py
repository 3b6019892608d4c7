"""`gms-fast generate`: many images into a folder, by one or many processes; can be resumed."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast import interrupts
from gms_fast.cli import drawing, measured, options

if TYPE_CHECKING:
    from torch import Tensor

    from gms_fast.generation import Report

SUMMARY = (
    "Draw many images into a folder, with one process, torchrun or cluster jobs. An interrupted run can be resumed."
)
LEFT = "; the same command continues from there"
VERIFY = 0.01


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast generate`."""
    add = parser.add_argument
    add("--n", type=options.positive, required=True, help="total number of images in the run")
    add(
        "--out",
        type=Path,
        required=True,
        help="folder of the run; if it contains part of this run, the missing images are drawn",
    )
    add("--steps", type=options.positive, default=10, metavar="K", help="number of solver steps (default: 10)")
    add("--solver", default="gms", help=f"{options.SOLVER} (default: gms)")
    add("--seed", type=options.seed, default=0, help=options.SEED)
    drawing.add_model(parser, auto=True)
    add("--labels", type=options.classes, help=options.LABELS)
    forms = "npz: arrays; png: folders of PNG files; none: no images, only the statistics of --features (default: npz)"
    add("--form", choices=("npz", "png", "none"), default="npz", help=forms)
    memory = (
        "memory in GiB that --batch-size auto may use (default: 80%% of a GPU's free memory, or 50%% of the host's)"
    )
    add("--memory", type=options.finite, metavar="GIB", help=memory)
    size = "number of images per shard, a multiple of --batch-size (default: up to 8 batches)"
    add("--shard-size", type=options.positive, metavar="N", help=size)
    shard = "draw only share K of N, for jobs that do not share a folder (default: 1/1)"
    add("--shard", default="1/1", metavar="K/N", help=shard)
    measured.add_features(parser)
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--verify",
        nargs="?",
        type=options.finite,
        const=VERIFY,
        metavar="SHARE",
        help=f"redraw this share of the images, in (0, 1], and compare; write nothing (SHARE if omitted: {VERIFY})",
    )
    again.add_argument("--force", action="store_true", help="delete the run in --out and start again")


def run(args: argparse.Namespace) -> int:
    """Draw the missing images, and report the time."""
    from gms_fast import solvers
    from gms_fast.generation import generate

    model, backend = drawing.model(args)
    asked = options.asked(model, args.labels)
    args.left = "" if args.verify else LEFT
    start = time.perf_counter()
    report = generate(
        model,
        args.out,
        n=args.n,
        batch_size=args.batch_size,
        steps=args.steps,
        solver=solvers.build(args.solver, origin=model.origin, steps=args.steps),
        seed=args.seed,
        condition=(lambda index: {asked: _turns(args.labels, index)}) if asked else None,
        form=args.form,
        shard_size=args.shard_size,
        shard=args.shard,
        features=measured.extractor(args) if args.features else None,
        memory=None if args.memory is None else int(args.memory * 2**30),
        verify=args.verify,
        replace=args.force,
        progress=sys.stderr.isatty(),
    )
    if interrupts.speaks():
        print(_compared(args, report) if args.verify else _made(args, report, time.perf_counter() - start, backend))
    return 0


def _turns(labels: tuple[int, ...], index: Tensor) -> Tensor:
    """Return the classes of samples by index."""
    import torch

    return torch.tensor(labels)[index % len(labels)]


def _made(args: argparse.Namespace, report: Report, seconds: float, backend: str) -> str:
    drawn = f"{report.drawn} drawn here in {seconds:.1f} s, {report.there} there before"
    return f"{drawing.counted(args.n)}: {drawn}, backend {backend}: {args.out}"


def _compared(args: argparse.Namespace, report: Report) -> str:
    images = f"{drawing.counted(report.compared)} drawn again"
    if not report.differing:
        return f"{images}: equal to those in {args.out}"
    levels = f"{report.differing:.2%} of pixels differ, by up to {report.largest} grey levels"
    return f"{images}: {levels}, from those in {args.out}, which another kind of device drew"
