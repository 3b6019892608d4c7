"""Kinds of command-line values that several subcommands share."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

from gms_fast.storage import atomic

if TYPE_CHECKING:
    from pathlib import Path

    import torch

LEFT = "; the same command with --resume goes on from there"  # by which a command says how to go on after its end


def positive(text: str) -> int:
    """An integer of at least 1."""
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be an integer of at least 1: got {text!r}")
    return int(text)


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


def check_folder(out: Path, *, again: bool) -> None:
    """Raise FileExistsError unless a run may write to the folder `out`; again: one that resumes or replaces another."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"--out {out} is a file: a folder is wanted")
    if not again and out.exists() and atomic.occupied(out):
        raise FileExistsError(f"--out {out} is not empty: add --resume to continue it or --force to start anew")


def device(name: str | None) -> torch.device:
    """The device of that name, by default CUDA where there is one, of torchrun's ranks that of the rank.

    Raises ValueError if it cannot be used.
    """
    import torch

    if name is None and not torch.cuda.is_available():
        return torch.device("cpu")
    if name is None:
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
