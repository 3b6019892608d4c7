"""`gms-fast sample`: draw images and write them to a file."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast import interrupts
from gms_fast.cli import drawing, options

if TYPE_CHECKING:
    from torch import Tensor

    from gms_fast.models import MomentHeads, MomentUNet
    from gms_fast.solvers import Solver

SUMMARY = "Draw images with a trained model."
SUFFIXES = (".png", ".npz")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `gms-fast sample`."""
    add = parser.add_argument
    add("--steps", type=options.positive, default=10, metavar="K", help="number of solver steps (default: 10)")
    add("--n", type=options.positive, default=64, help="number of images (default: 64)")
    add("--solver", default="gms", help=f"{options.SOLVER} (default: gms)")
    add("--seed", type=options.seed, default=0, help=options.SEED)
    drawing.add_model(parser)
    add("--labels", type=options.classes, help=options.LABELS)
    out = "output file: .png for a grid of images, .npz for arrays (default: samples.png)"
    add("--out", type=Path, default=Path("samples.png"), help=out)
    add("--force", action="store_true", help="overwrite an existing --out")


def run(args: argparse.Namespace) -> int:
    """Draw, write, and report. Finished images are kept even after an early end."""
    from gms_fast import solvers
    from gms_fast.storage.locks import locked_file

    options.check_file(args.out, SUFFIXES, overwrite=args.force)
    model, backend = drawing.model(args)
    asked = options.asked(model, args.labels)
    solver = solvers.build(args.solver, origin=model.origin, steps=args.steps)
    batches: list[Tensor] = []
    with locked_file(args.out):
        options.check_file(args.out, SUFFIXES, overwrite=args.force)
        start = time.perf_counter()
        with drawing.Calls(model) as calls, drawing.kept(args, lambda: _keep(batches, args)):
            _draw(model, solver, asked, args, batches)
        seconds = time.perf_counter() - start
        with interrupts.put_off():
            _write(batches, args, args.out)
            args.kept = f"; {drawing.whole(args.n)} in {args.out}"
    images = drawing.counted(args.n)
    print(f"{images} in {seconds:.2f} s, {calls.number} network calls, backend {backend}: {args.out}")
    return 0


def _draw(
    model: MomentUNet | MomentHeads,
    solver: Solver,
    asked: str | None,
    args: argparse.Namespace,
    batches: list[Tensor],
) -> None:
    """Append args.n images to `batches`, each (B, C, H, W) float32 in [-1, 1] on the CPU."""
    import torch
    from tqdm import tqdm

    import gms_fast

    starts = range(0, args.n, args.batch_size)
    steps = len(solver.times(model.schedule, args.steps)) - 1
    with tqdm(total=len(starts) * steps, disable=None, desc="sample", unit="step") as bar:
        for start in starts:
            count = min(args.batch_size, args.n - start)
            taken = [args.labels[i % len(args.labels)] for i in range(start, start + count)] if asked else []
            x = gms_fast.sample(
                model,
                args.steps,
                solver=solver,
                n=count,
                seed=args.seed,
                sample_offset=start,
                condition={asked: torch.tensor(taken)} if asked else None,
                callback=lambda *_: bar.update(),
            )
            batches.append(x.float().clamp(-1, 1).cpu())


def _keep(batches: list[Tensor], args: argparse.Namespace) -> str:
    """Write finished images to args.out, or beside a file there, and return the message."""
    if not batches:
        return f"; none of {drawing.counted(args.n)} was finished"
    out = drawing.spare(args.out, args.out.suffix) if args.out.exists() else args.out
    with interrupts.put_off():
        _write(batches, args, out)
    done = drawing.share(sum(map(len, batches)), args.n, f" of --seed {args.seed}")
    return f"; {done} in {out}: {drawing.AGAIN}"


def _write(batches: list[Tensor], args: argparse.Namespace, out: Path) -> None:
    """Write the images atomically."""
    import numpy as np
    import torch

    from gms_fast.images import save_images
    from gms_fast.storage import atomic

    images = torch.cat(batches)
    if out.suffix.lower() == ".png":
        save_images(images, out)
        return
    with atomic.writing(out) as file:
        np.savez(file, images=images.numpy(), seed=args.seed, steps=args.steps, solver=args.solver)
