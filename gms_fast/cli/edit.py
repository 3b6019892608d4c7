"""`gms-fast edit`: edit images with a trained model, and show them with their results."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gms_fast import interrupts
from gms_fast.cli import drawing, guides, options, strips
from gms_fast.cli.edits import KINDS, Edit

if TYPE_CHECKING:
    from gms_fast.cli.strips import Target
    from gms_fast.models import MomentHeads, MomentUNet
    from gms_fast.solvers import Solver

SUMMARY = "Edit images with a trained model: strokes, inpainting, variations, inversion and interpolation."
NOISE = (".npz",)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the kinds of edits, each with its options."""
    kinds = parser.add_subparsers(dest="kind", required=True, metavar="kind")
    for name, kind in KINDS.items():
        _add_options(kinds.add_parser(name, help=kind.summary, description=kind.summary), kind)


def _add_options(parser: argparse.ArgumentParser, kind: type[Edit]) -> None:
    add = parser.add_argument
    guides.add_arguments(parser)
    kind.add(parser)
    level = "noise level: a share from 0 (none) to 1 (all), a time such as t=500, or sigma/alpha such as level=2.5"
    add("--strength", default=kind.strength, help=f"{level} (default: {kind.strength})")
    steps = "number of solver steps, at least 1, starting from that noise level"
    add("--steps", type=options.positive, default=kind.steps, metavar="K", help=f"{steps} (default: {kind.steps})")
    add("--solver", default=kind.solver, help=f"{options.SOLVER} (default: {kind.solver})")
    drawing.add_model(parser)
    add("--labels", type=options.classes, help=options.LABELS.replace("images", "pictures"))
    guidance = "scale of classifier-free guidance, for a network with classes (default: no guidance)"
    add("--guidance", type=options.finite, metavar="SCALE", help=guidance)
    unconditional = 'class label that means "no class"; required with --guidance'
    add("--unconditional", type=options.seed, metavar="LABEL", help=unconditional)
    suffixes = ", ".join(strips.SUFFIXES)
    out = f"file ({suffixes}) for a strip with one row per image, or a folder for the strip and all single results"
    add("--out", type=Path, default=Path("edited.png"), help=f"{out} (default: edited.png)")
    add("--force", action="store_true", help="overwrite existing output files")


def run(args: argparse.Namespace) -> int:
    """Read, draw, write, and report the time. Finished results are kept even after an early end."""
    from gms_fast import editing, solvers
    from gms_fast.storage import locks

    files = guides.files(args.pictures)
    target = strips.target(args.out, KINDS[args.kind].stems(files), args.n)
    _check(target, files, args)
    model, backend = drawing.model(args)
    asked = options.asked(model, args.labels)
    guided = _guided(model, asked, args)
    solver = solvers.build(args.solver, origin=model.origin, steps=args.steps)
    editing.timesteps(model, args.steps, strength=args.strength, solver=solver)  # raises for bad combinations
    edit = KINDS[args.kind](args, guides.read(files, guides.shape_of(model), resize=args.resize))
    noise = nullcontext() if args.noise is None else locks.locked_file(args.noise)
    with strips.held(target), noise:
        _check(target, files, args)
        start = time.perf_counter()
        with drawing.Calls(model) as calls, drawing.kept(args, lambda: _keep(edit, target, calls.number)):
            _draw(edit, guided, solver, asked, calls)
        seconds = time.perf_counter() - start
        with interrupts.put_off():
            _write(edit, target, args.noise)
            args.kept = f"; {drawing.whole(edit.count)} in {args.out}"
    images = drawing.counted(edit.count)
    print(f"{images} in {seconds:.2f} s, {calls.number} network calls, backend {backend}: {args.out}")
    if said := edit.said():
        print(said)
    return 0


def _check(target: Target, files: list[Path], args: argparse.Namespace) -> None:
    """Raise ValueError or OSError unless all output files may be written."""
    strips.check(target, [*files, *filter(None, [args.mask])], overwrite=args.force)
    if args.noise is not None:
        options.check_file(args.noise, NOISE, overwrite=args.force, name="--noise")
        if any(file.resolve() == args.noise.resolve() for file in files):
            raise ValueError(f"--noise must not replace an input image: got {args.noise}")


def _guided(model: MomentUNet | MomentHeads, asked: str | None, args: argparse.Namespace) -> Callable[..., Any]:
    """Return the model, with classifier-free guidance if it is requested."""
    import torch

    from gms_fast.guidance import ClassifierFree

    if (args.guidance is None) != (args.unconditional is None):
        raise ValueError("--guidance and --unconditional must be given together")
    if args.guidance is None:
        return model
    if asked is None:
        raise ValueError(f"--guidance needs a network with classes: {args.model} has none")
    return ClassifierFree(model, unconditional={asked: torch.tensor([args.unconditional])}, scale=args.guidance)


def _draw(edit: Edit, model: Callable[..., Any], solver: Solver, asked: str | None, calls: drawing.Calls) -> None:
    """Append all results to edit.batches, each (B, C, H, W) float32 in [-1, 1] on the CPU."""
    import torch
    from tqdm import tqdm

    args = edit.args
    with tqdm(total=edit.count, disable=None, desc=args.kind, unit="image") as bar:
        calls.then = lambda number: bar.set_postfix(calls=number)
        for start, rows in edit.parts():
            results = edit.draw(
                model,
                rows,
                start,
                steps=args.steps,
                solver=solver,
                strength=args.strength,
                condition={asked: torch.tensor(edit.labels(start, len(rows)))} if asked else None,
            )
            edit.batches.append(results.float().clamp(-1, 1).cpu())
            bar.update(len(results))


def _keep(edit: Edit, target: Target, calls: int) -> str:
    """Write finished results beside existing files, and return the message about them."""
    if not edit.batches:
        of = drawing.counted(edit.count)
        return f"; none of {of} was finished" if calls else ""  # without a call the input was bad
    noise = edit.args.noise
    if noise is not None and noise.exists():
        noise = drawing.spare(noise, noise.suffix)
    with interrupts.put_off():
        free = target.freed()
        _write(edit, free, noise)
    done = drawing.share(sum(map(len, edit.batches)), edit.count)
    where = f"{free.out}, their x_T in {noise}" if noise else f"{free.out}"
    return f"; {done} in {where}: {drawing.AGAIN}"


def _write(edit: Edit, target: Target, noise: Path | None) -> None:
    """Write x_T, if requested, and the results; if one file fails, earlier ones are kept."""
    import numpy as np
    import torch

    from gms_fast.storage import atomic

    results, args = torch.cat(edit.batches), edit.args
    written: list[Path] = []
    with drawing.kept(args, lambda: _written(edit, target, written)):
        if noise is not None:
            with atomic.writing(noise) as file:
                x_T = torch.cat(edit.noise)[: len(results)].numpy()
                np.savez(file, x_T=x_T, steps=args.steps, solver=args.solver, strength=args.strength)
            written.append(noise)
        strips.write(target, results, args.n, edit.before, edit.after, written)


def _written(edit: Edit, target: Target, written: list[Path]) -> str:
    """Return the message about files that could be written."""
    noise = [f"x_T is in {file}" for file in written if file.suffix.lower() in NOISE]
    pictures = len(written) - len(noise)
    share = f"none of {drawing.counted(edit.count)} is written"
    if pictures:
        share = f"{drawing.share(pictures, edit.count)} in {target.out}"
    return f"; {' and '.join([*noise, share])}: {drawing.AGAIN}"
