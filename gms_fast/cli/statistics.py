"""`gms-fast statistics`: measure what DPM-Solver-v3 wants to know about a network."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from gms_fast.cli import options

SUMMARY = "Measure a model's statistics for DPM-Solver-v3."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast statistics`."""
    parser.set_defaults(on_interrupt="; the same command with --resume goes on from there")
    add = parser.add_argument
    add("--model", default="mnist", help="embedded name, saved folder or released checkpoint (default: mnist)")
    add("--data", required=True, help="what it was trained on: mnist5k, digits, a file or folder of images")
    add("--out", type=Path, required=True, help="file for the statistics, .safetensors")
    add("--nodes", type=options.positive, default=120, help="intervals of the grid of noise levels (default: 120)")
    add("--samples", type=options.positive, default=1024, help="images averaged at every level (default: 1024)")
    add("--window", type=float, default=0.1, help="of the smoothing of dl/dlambda, in lambda (default: 0.1)")
    add("--batch-size", type=options.positive, default=64, help="images at a time; changes no result (default: 64)")
    add("--seed", type=options.seed, default=0, help="determines noise and probes (default: 0)")
    add("--half", action="store_true", help="store two of the three curves in half precision")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="continue what an interrupted command left beside --out")
    again.add_argument("--force", action="store_true", help="delete --out and what lies beside it, and start anew")


def run(args: argparse.Namespace) -> int:
    """Measure, write, and say where."""
    import torch

    from gms_fast import data, io
    from gms_fast.statistics import empirical_model, measure

    if args.out.suffix != ".safetensors":
        raise ValueError(f"--out must end in .safetensors: got {args.out}")
    measure.check_numbers(args.nodes, args.samples, args.batch_size, args.seed, args.window)
    device = options.device(args.device)
    images = data.load(args.data)
    model = io.load(args.model).to(device)
    measure.check_data(model, images)
    if args.force:
        args.out.unlink(missing_ok=True)
        measure.partial(args.out).unlink(missing_ok=True)
    measured = empirical_model(
        model,
        images,
        N=args.nodes,
        samples=args.samples,
        window=args.window,
        batch_size=args.batch_size,
        seed=args.seed,
        out=args.out,
        resume=args.resume,
        progress=sys.stderr.isatty(),
    )
    if args.half:
        measured.save(args.out, dtype=torch.float16)
    first, last = (float(measured.l[j].mean()) for j in (0, -1))
    print(f"{args.samples} images at {args.nodes + 1} noise levels, mean l from {first:.3f} to {last:.3f}: {args.out}")
    return 0
