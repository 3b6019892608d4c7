"""Kinds of command-line values that several subcommands share."""

from __future__ import annotations

import argparse
import math
import os
from contextlib import suppress
from typing import TYPE_CHECKING

from gms_fast.storage import atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import torch

LEFT = "; the same command with --resume goes on from there"  # by which a command says how to go on after its end


def positive(text: str) -> int:
    """An integer of at least 1."""
    return _at_least(1, text)


def positive_or_auto(text: str) -> int | str:
    """An integer of at least 1, or "auto"."""
    return text if text == "auto" else positive(text)


def several(text: str) -> int:
    """An integer of at least 2."""
    return _at_least(2, text)


def _at_least(least: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}: got {text!r}")
    return int(text)


def finite(text: str) -> float:
    """A number that is neither infinite nor none."""
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"must be a number that is finite: got {text!r}")


def seed(text: str) -> int:
    """An integer in 0 .. 2^31 - 1: what every generator in use takes."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {2**31 - 1}: got {text!r}")
    return int(text)


def integers(text: str) -> tuple[int, ...]:
    """Positive integers separated by commas; nothing is the empty tuple."""
    return tuple(positive(part.strip()) for part in text.split(",")) if text.strip() else ()


def classes(text: str) -> tuple[int, ...]:
    """Numbers of classes, 0 or more, separated by commas."""
    return tuple(seed(part.strip()) for part in text.split(","))


def spacing(text: str) -> str | float:
    """A grid of times: a name, or an exponent."""
    try:
        return float(text)
    except ValueError:
        return text


def add_again(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --resume and --force, of which one may be given, for the `what` in --out."""
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help=f"continue the {what} in --out")
    again.add_argument("--force", action="store_true", help=f"delete the {what} in --out and start anew")


def refuse(args: argparse.Namespace, names: Sequence[str], where: str) -> None:
    """Raise ValueError naming the first of some options that is given, which does not go where it says."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) is not False:
            raise ValueError(f"--{name.replace('_', '-')} does not go {where}")


def asked(network: object, labels: object) -> str | None:
    """The condition that labels are of a network, None for a network without.

    Raises ValueError where a network wants them and they are not given, or the other way round.
    """
    needed: tuple[str, ...] = tuple(getattr(network, "needed", ()))
    if len(needed) != (labels is not None):
        asks = ", ".join(needed) or "no condition"
        raise ValueError(f"--labels must be given for a network with classes, and for no other: this asks for {asks}")
    return needed[0] if needed else None


def check_file(out: Path, suffixes: Sequence[str], *, overwrite: bool, name: str = "--out", hint: str = "") -> None:
    """Raise ValueError or OSError unless a command may write the file `out`, one of those that end so, in any case.

    hint  what is to be said of another ending
    """
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"{name} must end in {' or '.join(suffixes)}: got {out}{hint}")
    if out.is_dir():
        raise FileExistsError(f"{name} {out} is a folder: a file is wanted")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{name} {out} exists: choose another file or add --force")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{name} {out}: there is no folder {out.parent}")


def check_folder(out: Path, *, again: bool) -> None:
    """Raise FileExistsError unless a run may write to the folder `out`; again: one that resumes or replaces another."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"--out {out} is a file: a folder is wanted")
    if not again and out.exists() and atomic.occupied(out):
        raise FileExistsError(f"--out {out} is not empty: add --resume to continue it or --force to start anew")


def device(name: str | None) -> torch.device:
    """The device of that name, by default CUDA where there is one. "cuda" is that of the rank under torchrun.

    Raises ValueError if it cannot be used.
    """
    import torch

    if name is None and not torch.cuda.is_available():
        return torch.device("cpu")
    if name in (None, "cuda"):
        name = f"cuda:{rank}" if (rank := os.environ.get("LOCAL_RANK")) else "cuda"
    try:
        found = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f'--device must be like "cpu", "cuda", "cuda:1" or "mps": got {name!r}') from error
    if found.type == "meta":
        raise ValueError(f"--device must be one whose tensors hold numbers: got {name!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name} is not there: {torch.cuda.device_count()} CUDA devices found")
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, ImportError) as error:  # which list all that this torch is built for
        raise ValueError(f"--device {name} is not there: torch {torch.__version__} finds no such device") from error
    return found
