"""Training state on disk: written atomically, read with every doubt about its origin spelled out."""

import os
from pathlib import Path
from typing import Any

import torch

FORMAT = "gms_fast training checkpoint 1"
FIELDS = {"configuration", "step", "smooth", "seconds", "curve", "weights", "average", "optimiser"}


def write(path: Path, state: dict[str, Any]) -> None:
    """Write `state` so that a kill at any moment leaves either the old file or the new one, whole."""
    temporary = path.with_name(path.name + ".partial")
    with temporary.open("wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def read(path: Path) -> dict[str, Any]:
    """The state that `write` stored. Raises ValueError naming the file if it is truncated or something else."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"checkpoint {path} is truncated or no checkpoint at all: {reason}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise ValueError(f"checkpoint {path} was not written by gms_fast training: it does not say {FORMAT!r}")
    if missing := FIELDS - state.keys():
        raise ValueError(f"checkpoint {path} is damaged: it lacks {', '.join(sorted(missing))}")
    return state
