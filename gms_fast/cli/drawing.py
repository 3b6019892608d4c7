"""Parts of commands that draw: the model, the count of its calls, and keeping what is drawn at an early end."""

from __future__ import annotations

import argparse
import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from gms_fast.cli import options

if TYPE_CHECKING:
    from gms_fast.models import MomentHeads, MomentUNet

AGAIN = "the same command with --force draws them all"


def add_model(parser: argparse.ArgumentParser, *, auto: bool = False) -> None:
    """Add the options of `model`, and the size of batches; auto: also that by measurement."""
    add = parser.add_argument
    add("--model", default="mnist", help="embedded name, saved folder or released checkpoint (default: mnist)")
    # 64 is fastest on a CPU: `python -m bench.speed.network --batches`
    said = "changes images by rounding; auto: as is fastest here" if auto else "changes no image"
    size = options.positive_or_auto if auto else options.positive
    add("--batch-size", type=size, default=64, help=f"images at a time; {said} (default: 64)")
    add("--device", help="cpu, cuda, cuda:1, ... (default: cuda if there is one)")


def model(args: argparse.Namespace) -> tuple[MomentUNet | MomentHeads, str]:
    """The model that a command asks for, on its device, and the backend that draws there."""
    import gms_fast

    device = options.device(args.device)
    chosen = gms_fast.backends()["chosen"]
    backend = chosen.get(device.type, chosen["other"])
    if backend is None:
        raise ValueError(f"--device {device}: the backend that is forced does not run there")
    return gms_fast.load(args.model).to(device), backend


class Calls:
    """The number of a model's calls in the block; `then` is told each."""

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
    """A block that draws; `keep` writes what is drawn where it ends early, and returns what is to be said of it."""
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
    """A name beside `path` at which nothing is: NAME.part, NAME.part-2, .., each with the suffix that it has."""
    stem = path.name.removesuffix(suffix)
    ends = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    found = (path.with_name(f"{stem}.part{end}{suffix}") for end in ends)
    return next(beside for beside in found if not os.path.lexists(beside))


def counted(count: int, noun: str) -> str:
    """As "1 picture", or "2 pictures"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def whole(count: int, noun: str) -> str:
    """As "all 6 pictures are", or "the picture is"."""
    return f"the {noun} is" if count == 1 else f"all {count} {noun}s are"


def share(done: int, count: int, noun: str, of: str = "") -> str:
    """As "2 of 6 pictures, the first ones, are", or "1 of 6 pictures, the first one, is"; of all of them as `whole`."""
    if done == count:
        return whole(count, noun)
    first, verb = ("one", "is") if done == 1 else ("ones", "are")
    return f"{done} of {counted(count, noun)}, the first {first}{of}, {verb}"
