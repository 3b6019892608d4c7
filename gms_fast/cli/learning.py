"""Common parts of the commands that train: options, settings, and a folder for all ranks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gms_fast.cli import options

if TYPE_CHECKING:
    from torch import Tensor

    from gms_fast.training.ranks import Ranks

MODEL = "model"
HEAD = "type of the moment heads: simple (one layer) or complex (with a residual block) (default: complex)"
DATA = "training images: mnist5k, digits, a .npy or .npz file, or a folder of images"


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add the options of training in either stage, by default the recipe of the MNIST model."""
    add = parser.add_argument
    batch = "number of images per optimiser step, over all ranks (default: 64)"
    add("--batch-size", type=options.positive, default=64, metavar="B", help=batch)
    micro = "number of images sent through the network at a time, to save memory (default: all images of a rank)"
    add("--micro-batch", type=options.positive, metavar="ROWS", help=micro)
    add("--lr", type=float, default=1e-3, help="peak learning rate, above 0 (default: 1e-3)")
    decay = "shape of the learning rate decay, which acts from the first step on (default: cosine)"
    add("--decay", choices=("cosine", "linear", "constant"), default="cosine", help=decay)
    add(
        "--ema",
        type=float,
        default=0.999,
        help="decay rate of the averaged weights (EMA), at least 0 and below 1 (default: 0.999)",
    )
    add("--flips", action="store_true", help="mirror images at random (not suitable for digits and text)")
    add("--seed", type=options.seed, default=0, help=options.SEED)
    add("--device", help=f"{options.DEVICE[:-1]}; under torchrun, the GPU of each rank)")


def settings(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Return the arguments of the training functions except the steps.

    Raises ValueError for values that cannot work.
    """
    from gms_fast.training import Settings

    fields = ("batch_size", "lr", "decay", "ema", "flips", "seed")
    given: dict[str, Any] = {**{name: getattr(args, name) for name in fields}, "precision": precision}
    Settings(steps=args.steps, **given)
    return {**given, "micro_batch": args.micro_batch, "progress": sys.stderr.isatty()}


def labels(args: argparse.Namespace, n: int) -> Tensor | None:
    """Load the classes of n images, if --labels is given."""
    from gms_fast import data

    if args.labels is None:
        return None
    found = data.load_labels(args.labels)
    if len(found) != n:
        raise ValueError(f"--labels must be one for each of {n} images: got {len(found)}")
    return found


@contextmanager
def folder(
    args: argparse.Namespace,
    ranks: Ranks,
    stages: Sequence[str],
    files: Sequence[str],
    check: Callable[[Path], None] = lambda _: None,
) -> Iterator[None]:
    """Hold --out for all ranks and nobody else; with --force, delete an earlier run in it.

    `files` are those of the model saved at the end. `check` raises an error if it cannot be saved.
    """
    from gms_fast.storage.locks import locked_folder

    def begin() -> None:
        check(args.out / MODEL)
        if args.force:
            _clear(args.out, stages, files)

    ranks.by_first(lambda: _check(args))
    with ranks.alone(lambda: locked_folder(args.out)):
        ranks.by_first(begin)
        args.left = options.LEFT
        yield


def _check(args: argparse.Namespace) -> None:
    """Raise an error unless the run may write to --out."""
    if args.force and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        raise ValueError("--force must not be given with torchrun's --max-restarts: each restart would delete the run; "
                         "give --resume, which accepts a new folder too")  # fmt: skip
    options.check_folder(args.out, again=args.resume or args.force)


def _clear(out: Path, stages: Sequence[str], files: Sequence[str]) -> None:
    """Delete the files of a run that no other process is using."""
    from gms_fast.storage import atomic
    from gms_fast.storage.locks import locked_folder
    from gms_fast.training.state import CHECKPOINT, CURVE

    kept = {**dict.fromkeys(stages, (CHECKPOINT, CURVE)), MODEL: files}
    with ExitStack() as held:
        for stage in stages:
            held.enter_context(locked_folder(out / stage))
        atomic.clear(out, [f"{inner}/{name}" for inner, names in kept.items() for name in names])
