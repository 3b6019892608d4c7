"""`gms-fast edit`: change pictures by a trained model, and write the results beside what they came from."""

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

SUMMARY = "Edit pictures with a trained model: from strokes, inside a mask, variations, inversion, interpolation."
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
    level = "how much noise is added: 0 to 1, or t=500 (a time), or level=2.5 (sigma/alpha)"
    add("--strength", default=kind.strength, help=f"{level} (default: {kind.strength})")
    add("--steps", type=options.positive, default=kind.steps, help=f"solver steps (default: {kind.steps})")
    add("--solver", default=kind.solver, help=f"like er-sde:order=2, see gms-fast info (default: {kind.solver})")
    drawing.add_model(parser)
    add("--labels", type=options.classes, help="classes that pictures take in turn, as 0,1,2, where a network asks")
    add("--guidance", type=options.finite, metavar="SCALE", help="of classifier-free guidance (default: none)")
    add("--unconditional", type=options.seed, metavar="LABEL", help="the class that stands for none, with --guidance")
    out = f"{' or '.join(strips.SUFFIXES)}: a strip, a row for each picture; a folder: all results too"
    add("--out", type=Path, default=Path("edited.png"), help=f"{out} (default: edited.png)")
    add("--force", action="store_true", help="overwrite what is there")


def run(args: argparse.Namespace) -> int:
    """Read, draw, write, and say how long it took. What is drawn is kept, however the drawing ends."""
    from gms_fast import editing, solvers
    from gms_fast.storage import locks

    files = guides.files(args.pictures)
    target = strips.target(args.out, KINDS[args.kind].stems(files), args.n)
    _check(target, files, args)
    model, backend = drawing.model(args)
    asked = options.asked(model, args.labels)
    guided = _guided(model, asked, args)
    solver = solvers.build(args.solver, origin=model.origin, steps=args.steps)
    editing.timesteps(model, args.steps, strength=args.strength, solver=solver)  # which refuses what cannot be
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
            args.kept = f"; {drawing.whole(edit.count, 'picture')} in {args.out}"
    pictures = drawing.counted(edit.count, "picture")
    print(f"{pictures} in {seconds:.2f} s, {calls.number} network calls, backend {backend}: {args.out}")
    if said := edit.said():
        print(said)
    return 0


def _check(target: Target, files: list[Path], args: argparse.Namespace) -> None:
    """Raise ValueError or OSError unless all that is written may be."""
    strips.check(target, [*files, *filter(None, [args.mask])], overwrite=args.force)
    if args.noise is not None:
        options.check_file(args.noise, NOISE, overwrite=args.force, name="--noise")
        if any(file.resolve() == args.noise.resolve() for file in files):
            raise ValueError(f"--noise must not replace a picture that is read: got {args.noise}")


def _guided(model: MomentUNet | MomentHeads, asked: str | None, args: argparse.Namespace) -> Callable[..., Any]:
    """The model, with guidance around it where that is wanted."""
    import torch

    from gms_fast.guidance import ClassifierFree

    if (args.guidance is None) != (args.unconditional is None):
        raise ValueError("--guidance and --unconditional must be given together")
    if args.guidance is None:
        return model
    if asked is None:
        raise ValueError(f"--guidance must be of a network that asks for classes: {args.model} does not")
    return ClassifierFree(model, unconditional={asked: torch.tensor([args.unconditional])}, scale=args.guidance)


def _draw(edit: Edit, model: Callable[..., Any], solver: Solver, asked: str | None, calls: drawing.Calls) -> None:
    """Append all results to edit.batches, (B, C, H, W) float32 in [-1, 1] on the CPU each."""
    import torch
    from tqdm import tqdm

    args = edit.args
    with tqdm(total=edit.count, disable=None, desc=args.kind, unit="picture") as bar:
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
    """Write what is drawn, if anything is, beside files that are there, and return what is to be said of it."""
    if not edit.batches:
        of = drawing.counted(edit.count, "picture")
        return f"; none of {of} was finished" if calls else ""  # else something was refused
    noise = edit.args.noise
    if noise is not None and noise.exists():
        noise = drawing.spare(noise, noise.suffix)
    with interrupts.put_off():
        free = target.freed()
        _write(edit, free, noise)
    done = drawing.share(sum(map(len, edit.batches)), edit.count, "picture")
    where = f"{free.out}, their x_T in {noise}" if noise else f"{free.out}"
    return f"; {done} in {where}: {drawing.AGAIN}"


def _write(edit: Edit, target: Target, noise: Path | None) -> None:
    """Write x_T, where that is wanted, and the results that are there. What is written counts as kept if more fails."""
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
    """A line of what could be written."""
    noise = [f"x_T is in {file}" for file in written if file.suffix.lower() in NOISE]
    pictures = len(written) - len(noise)
    share = f"none of {drawing.counted(edit.count, 'picture')} is written"
    if pictures:
        share = f"{drawing.share(pictures, edit.count, 'picture')} in {target.out}"
    return f"; {' and '.join([*noise, share])}: {drawing.AGAIN}"
