"""Types and checks of command-line values that several subcommands share."""

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

LEFT = "; the same command with --resume continues from there"  # message after an early end
MNIST = "mnist"  # the model without --model
MODEL = (
    "embedded model (mnist or digits), folder of a saved model, or checkpoint file released for GMS or "
    "improved-diffusion (default: mnist)"
)
DEVICE = "torch device, such as cpu, cuda, cuda:1 or mps (default: cuda if available, else cpu)"
SEED = "seed of all random numbers, an integer from 0 to 2147483647 (default: 0)"
LABELS = (
    "class labels, separated by commas, for a network with classes: with 0,1,2 the images cycle through these three"
)
SOLVER = (
    'solver, with its options after a colon, such as gms, ddim:eta=1 or "teleport:until=10 then er-sde"; '
    "gms-fast info lists all names"
)


def positive(text: str) -> int:
    """Parse an integer >= 1."""
    return _at_least(1, text)


def positive_or_auto(text: str) -> int | str:
    """Parse an integer >= 1, or "auto"."""
    return text if text == "auto" else positive(text)


def several(text: str) -> int:
    """Parse an integer >= 2."""
    return _at_least(2, text)


def _at_least(least: int, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise argparse.ArgumentTypeError(f"must be an integer of at least {least}: got {text!r}")
    return int(text)


def finite(text: str) -> float:
    """Parse a finite number."""
    with suppress(ValueError):
        if math.isfinite(value := float(text)):
            return value
    raise argparse.ArgumentTypeError(f"must be a finite number: got {text!r}")


def seed(text: str) -> int:
    """Parse an integer in 0 .. 2^31 - 1, the range of all random generators in use."""
    if not text.isascii() or not text.isdigit() or int(text) >= 2**31:
        raise argparse.ArgumentTypeError(f"must be an integer from 0 to {2**31 - 1}: got {text!r}")
    return int(text)


def integers(text: str) -> tuple[int, ...]:
    """Parse positive integers separated by commas; an empty string gives an empty tuple."""
    return tuple(positive(part.strip()) for part in text.split(",")) if text.strip() else ()


def classes(text: str) -> tuple[int, ...]:
    """Parse class numbers >= 0 separated by commas."""
    return tuple(seed(part.strip()) for part in text.split(","))


def spacing(text: str) -> str | float:
    """Parse a time grid: a name, or an exponent."""
    try:
        return float(text)
    except ValueError:
        return text


def add_again(parser: argparse.ArgumentParser, what: str) -> None:
    """Add --resume and --force, which exclude each other.

    `what` is the name of the content of --out in the help.
    """
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help=f"continue an interrupted {what} in --out")
    again.add_argument("--force", action="store_true", help=f"delete the {what} in --out and start again")


def refuse(args: argparse.Namespace, names: Sequence[str], where: str) -> None:
    """Raise ValueError that names the first of these options that was given; none is allowed."""
    for name in names:
        if getattr(args, name) is not None and getattr(args, name) is not False:
            raise ValueError(f"--{name.replace('_', '-')} must not be given {where}")


def asked(network: object, labels: object) -> str | None:
    """Return the name of the condition that labels set; None for a network without one.

    Raises ValueError if labels are needed and missing, or given and not needed.
    """
    needed: tuple[str, ...] = tuple(getattr(network, "needed", ()))
    if len(needed) != (labels is not None):
        asks = ", ".join(needed) or "no condition"
        raise ValueError(f"--labels must be given for a network with classes, and only then: this one needs {asks}")
    return needed[0] if needed else None


def check_file(out: Path, suffixes: Sequence[str], *, overwrite: bool, name: str = "--out", hint: str = "") -> None:
    """Raise ValueError or OSError unless a command may write the file `out` with such a suffix.

    `hint` is added to the message about another suffix.
    """
    if out.suffix.lower() not in suffixes:
        raise ValueError(f"{name} must end in {' or '.join(suffixes)}: got {out}{hint}")
    if out.is_dir():
        raise FileExistsError(f"{name} {out} is a folder, but must be a file")
    if out.exists() and not overwrite:
        raise FileExistsError(f"{name} {out} exists: choose another file or add --force")
    if not out.parent.is_dir():
        raise FileNotFoundError(f"{name} {out}: there is no folder {out.parent}")


def check_folder(out: Path, *, again: bool) -> None:
    """Raise FileExistsError unless a run may write to `out`; `again` allows an earlier run."""
    if out.exists() and not out.is_dir():
        raise FileExistsError(f"--out {out} is a file, but must be a folder")
    if not again and out.exists() and atomic.occupied(out):
        raise FileExistsError(f"--out {out} is not empty: add --resume to continue it or --force to start again")


def device(name: str | None) -> torch.device:
    """Return the named device, by default CUDA if it is available.

    Under torchrun, "cuda" means the GPU of the rank. Raises ValueError if the device cannot be used.
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
        raise ValueError(f"--device must not be meta, whose tensors hold no numbers: got {name!r}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"--device {name} is not available: {torch.cuda.device_count()} CUDA devices found")
    try:
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError, ImportError) as error:  # their messages list everything torch is built for
        raise ValueError(f"--device {name} is not available: torch {torch.__version__} finds no such device") from error
    return found
