"""Common parts of the commands that train: options, settings, and a folder that ranks of torchrun hold together."""

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


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """Add what training of either stage depends on; the defaults are the recipe of the embedded MNIST model."""
    add = parser.add_argument
    add("--batch-size", type=options.positive, default=64, help="images per step, of all ranks (default: 64)")
    add(
        "--micro-batch",
        type=options.positive,
        metavar="ROWS",
        help="images that go through the network at a time, where memory is short (default: all of a rank's)",
    )
    add("--lr", type=float, default=1e-3, help="peak learning rate (default: 1e-3)")
    add("--decay", choices=("cosine", "linear", "constant"), default="cosine", help="of the rate (default: cosine)")
    add("--ema", type=float, default=0.999, help="decay of the averaged weights (default: 0.999)")
    add("--flips", action="store_true", help="mirror images at random (wrong for digits)")
    add("--seed", type=options.seed, default=0, help="determines everything random (default: 0)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one, with torchrun that of the rank)")


def settings(args: argparse.Namespace, precision: str) -> dict[str, Any]:
    """Arguments of the training functions, but for the steps. Raises ValueError for those that cannot work."""
    from gms_fast.training import Settings

    fields = ("batch_size", "lr", "decay", "ema", "flips", "seed")
    given: dict[str, Any] = {**{name: getattr(args, name) for name in fields}, "precision": precision}
    Settings(steps=args.steps, **given)
    return {**given, "micro_batch": args.micro_batch, "progress": sys.stderr.isatty()}


def labels(args: argparse.Namespace, n: int) -> Tensor | None:
    """Classes of n images, if --labels says where they are."""
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
    """Hold --out for all ranks and nobody else; with --force it is emptied of an earlier run.

    files  of the model that is saved in the end
    check  raises where it cannot be saved
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
    if args.force and int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)):
        raise ValueError("--force must not be given with torchrun's --max-restarts, since each start would delete what "
                         "it is to go on from: give --resume, which a new folder takes too")  # fmt: skip
    options.check_folder(args.out, again=args.resume or args.force)


def _clear(out: Path, stages: Sequence[str], files: Sequence[str]) -> None:
    """Delete the files of a run that nobody else goes on with."""
    from gms_fast.storage import atomic
    from gms_fast.storage.locks import locked_folder
    from gms_fast.training.state import CHECKPOINT, CURVE

    kept = {**dict.fromkeys(stages, (CHECKPOINT, CURVE)), MODEL: files}
    with ExitStack() as held:
        for stage in stages:
            held.enter_context(locked_folder(out / stage))
        atomic.clear(out, [f"{inner}/{name}" for inner, names in kept.items() for name in names])
