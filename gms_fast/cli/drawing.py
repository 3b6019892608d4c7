"""Common parts of the commands that draw: the model, its call count, and partial results."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast.cli import options, sources

if TYPE_CHECKING:
    from gms_fast.models import MomentHeads, MomentUNet

AGAIN = "the same command with --force draws them all"


def add_model(parser: argparse.ArgumentParser, *, auto: bool = False) -> None:
    """Add the options of `model` and --batch-size; with `auto` the batch size may be measured."""
    add = parser.add_argument
    add("--model", type=sources.Model, help=options.MODEL)
    # 64 is fastest on a CPU: `python -m bench.speed.network --batches`
    size = options.positive_or_auto if auto else options.positive
    batch = "number of images drawn at a time" + ('; "auto" measures which size is fastest' if auto else "")
    batch += "; changes the images by no more than rounding (default: 64)"
    add("--batch-size", type=size, default=64, metavar="B", help=batch)
    add("--device", help=options.DEVICE)


def model(args: argparse.Namespace) -> tuple[MomentUNet | MomentHeads, str]:
    """Return the model of a command, on its device, and the backend that draws there."""
    import gms_fast

    args.model = args.model or options.MNIST
    device = options.device(args.device)
    chosen = gms_fast.backends()["chosen"]
    backend = chosen.get(device.type, chosen["other"])
    if backend is None:
        raise ValueError(f"--device {device}: the backend that was set does not run there; choose another device")
    return gms_fast.load(args.model).to(device), backend


class Calls:
    """Counter of a model's calls in the block; `then` is called with each number."""

    def __init__(self, model: MomentUNet | MomentHeads) -> None:
        self.number = 0
        self.then: Callable[[int], object] = lambda number: None
        self._handle = model.register_forward_pre_hook(self._count)

    def _count(self, *_: object) -> None:
        self.number += 1
        self.then(self.number)

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.remove()


@contextmanager
def kept(args: argparse.Namespace, keep: Callable[[], str]) -> Iterator[None]:
    """Run a block that draws; if it ends early, `keep` writes the results and returns a message."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        args.kept = keep()
        said = f"--batch-size {args.batch_size} is more than {options.device(args.device)} has memory for"
        raise MemoryError(said) from error
    except (KeyboardInterrupt, Exception):
        args.kept = keep()
        raise


def spare(path: Path, suffix: str = "") -> Path:
    """Return an unused name beside `path`: NAME.part, NAME.part-2, .., with its suffix."""
    stem = path.name.removesuffix(suffix)
    ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    found = (path.with_name(f"{stem}.part{end}{suffix}") for end in ends)
    return next(beside for beside in found if not os.path.lexists(beside))


def counted(count: int) -> str:
    """Return text like "1 image" or "2 images"."""
    return "1 image" if count == 1 else f"{count} images"


def whole(count: int) -> str:
    """Return text like "all 6 images are" or "the image is"."""
    return "the image is" if count == 1 else f"all {count} images are"


def share(done: int, count: int, of: str = "") -> str:
    """Return text like "2 of 6 images, the first ones, are", or `whole` if all are done."""
    if done == count:
        return whole(count)
    first, verb = ("one", "is") if done == 1 else ("ones", "are")
    return f"{done} of {counted(count)}, the first {first}{of}, {verb}"
