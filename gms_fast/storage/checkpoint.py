"""Training checkpoints: written atomically, and checked in full when read."""

from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gms_fast.storage import atomic, pickles, schema
from gms_fast.storage.reading import refusing
from gms_fast.storage.schema import Choice, Either, Fields, Integer, Listed, Plain, Real, Want

FORMAT = "gms_fast training checkpoint 1"
FIELDS = {"configuration", "step", "smooth", "seconds", "curve", "weights", "average", "optimiser"}


def write(path: Path, state: dict[str, Any], form: str = FORMAT) -> None:
    """Write a training state atomically."""
    with atomic.writing(path) as file:
        torch.save({"format": form, **state}, file)


def read(path: Path, form: str = FORMAT, fields: Set[str] = FIELDS) -> dict[str, Any]:
    """Read a state that `write` stored with the same `form`.

    Its configuration is checked to hold plain values only. Raises ValueError that names the
    file if it is truncated or something else.
    """
    with refusing(f"checkpoint {path} is truncated or not a checkpoint", path):
        state = pickles.read(path)
    if not isinstance(state, dict) or not Choice((form,)).fits(state.get("format")):
        raise ValueError(f"checkpoint {path} is of another kind: its format is not {form!r}")
    if missing := fields - state.keys():
        raise ValueError(f"checkpoint {path} is damaged: it lacks {', '.join(sorted(missing))}")
    schema.check(f"checkpoint {path}", state["configuration"], Fields({}, others=Plain()), "configuration")
    return state


@dataclass(frozen=True)
class Like(Want):
    """A finite tensor of a given shape and dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Fields:
        """Describe tensors of these names, shapes and dtypes."""
        return Fields({name: cls(tuple(value.shape), value.dtype) for name, value in tensors.items()})

    def fits(self, value: object) -> bool:
        if not isinstance(value, Tensor) or (tuple(value.shape), value.dtype) != (self.shape, self.dtype):
            return False
        return bool(value.isfinite().all())

    def __str__(self) -> str:
        return f"a finite tensor {self.shape} of {self.dtype}"


def check(path: Path, state: dict[str, Any], wants: dict[str, Want], optimiser: torch.optim.Adam) -> None:
    """Check a state's values and its optimiser state; raise ValueError with file and key.

    The optimiser's current settings replace the stored ones, except the learning rate.
    """
    with refusing(f"checkpoint {path} is damaged", path):
        for key, want in wants.items():
            schema.check(f"checkpoint {path}", state[key], want, key)
        state["optimiser"] = _checked_adam(f"checkpoint {path}", state["optimiser"], optimiser)


def _checked_adam(where: str, state: Any, optimiser: torch.optim.Adam) -> dict[str, Any]:
    """Return a checked `Adam` state for the parameters of `optimiser`, with its settings."""
    parameters = [p for group in optimiser.param_groups for p in group["params"]]
    count, (own,) = len(parameters), optimiser.state_dict()["param_groups"]
    if isinstance(state, dict) and isinstance(state.get("state"), dict):  # its keys are numbers
        state = {**state, "state": {str(place): kept for place, kept in state["state"].items()}}
    moments = [Like(tuple(p.shape), p.dtype) for p in parameters]
    steps = Either(Like((), torch.float32), Like((), torch.float64))
    kept = {str(i): Fields({"step": steps, "exp_avg": m, "exp_avg_sq": m}) for i, m in enumerate(moments)}
    settings = Fields({"params": Listed(Integer(0, count - 1), count, count), "lr": Real(0)}, others=Plain())
    schema.check(where, state, Fields({"state": Fields({}, kept), "param_groups": Listed(settings, 1, 1)}), "optimiser")
    for place, found in state["state"].items():
        if bool((found["exp_avg_sq"] < 0).any()) or float(found["step"]) < 0:
            raise ValueError(f"optimiser.state.{place} holds negative squares or steps")
    group = own | {"lr": state["param_groups"][0]["lr"]}
    return {"state": {int(i): found for i, found in state["state"].items()}, "param_groups": [group]}
