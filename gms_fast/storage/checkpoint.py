"""Training state on disk: written atomically, read with every doubt about its origin spelled out."""

import hashlib
from collections.abc import Iterable, Set
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gms_fast.storage import atomic

FORMAT = "gms_fast training checkpoint 1"
FIELDS = {"configuration", "step", "smooth", "seconds", "curve", "weights", "average", "optimiser"}


def write(path: Path, state: dict[str, Any], form: str = FORMAT) -> None:
    """Write `state` as a whole."""
    with atomic.writing(path) as file:
        torch.save({"format": form, **state}, file)


def read(path: Path, form: str = FORMAT, fields: Set[str] = FIELDS) -> dict[str, Any]:
    """The state that `write` stored in that form.

    Raises ValueError naming the file if it is truncated or something else.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"checkpoint {path} is truncated or no checkpoint at all: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != form:
        raise ValueError(f"checkpoint {path} is of another kind: it does not say {form!r}")
    if missing := fields - state.keys():
        raise ValueError(f"checkpoint {path} is damaged: it lacks {', '.join(sorted(missing))}")
    return state


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """16 hexadecimal digits of shapes and values, to the last bit."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(str(tuple(tensor.shape)).encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
