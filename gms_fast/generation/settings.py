"""Settings of a run: all that its pictures depend on, as JSON in its folder, and their fingerprint.

Who draws is none of it: processes may come and go, and the pictures stay the same.
"""

import inspect
import json
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gms_fast import solvers
from gms_fast.assumptions import attribute, unwrapped
from gms_fast.generation.drawing import Drawing
from gms_fast.generation.shards import FORMS
from gms_fast.run import Run
from gms_fast.solvers import Solver
from gms_fast.storage import atomic, fingerprints, schema
from gms_fast.storage.configuration import check_same
from gms_fast.storage.locks import locked_folder
from gms_fast.storage.reading import read_json, refusing
from gms_fast.storage.schema import Choice, Fields, Integer, Plain
from gms_fast.version import __version__

FILE, FORMAT = "run.json", "gms_fast generation 1"
CLAIMS, MEASURED, WHOLE = "claims", "measured", "measured.safetensors"  # beside it in a folder
WAIT, POLL = 60.0, 0.05  # seconds, for a process that writes the file; between two looks
_NUMBERS = dict.fromkeys(("n", "batch_size", "shard_size"), Integer(1))
_STORED = Fields({"format": Choice((FORMAT,)), "form": Choice(tuple(FORMS)), **_NUMBERS}, others=Plain())
_DEPTH = 6  # of objects in objects


def of(run: Run, drawing: Drawing, shard_size: int, form: str) -> dict[str, Any]:
    """The settings of a run, JSON."""
    said, arguments = run.said, drawing.arguments
    return {
        "format": FORMAT,
        "n": drawing.n,
        "batch_size": drawing.batch_size,
        "shard_size": shard_size,
        "form": form,
        "pictures": list(drawing.shape),
        "seed": arguments["seed"],
        "model": described(run.model),
        "prediction": [said.prediction, said.moments],
        "clip": None if said.clip is None else list(said.clip),
        "condition": described(drawing.conditions(0)),
        "decoder": described(drawing.decoder),
        "solver": of_solver(run.solver),
        "schedule": said.built().described,
        "times": [step.t for step in (*run.walk.steps, run.walk.last)],
        "denoise": run.walk.denoise,
        "dtype": str(arguments["dtype"]),
        "versions": {"gms_fast": __version__, "torch": torch.__version__},
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 digits of settings."""
    return fingerprints.of_values(dict(sorted(settings.items())))


def stored(out: Path) -> dict[str, Any] | None:
    """The settings of the run in a folder; None where there is none. Raises ValueError for a damaged file."""
    file = out / FILE
    if not file.exists():
        return None
    with refusing(f"{file} holds no settings of a run", file):
        found = read_json(file)
        schema.check("it", found, _STORED)
    return found


def settled(out: Path, make: Callable[[], dict[str, Any]] | None) -> dict[str, Any]:
    """The settings of the run in `out`; those that `make` gives are written where there is none.

    One process makes them while others wait. Raises FileExistsError for a folder of others, FileNotFoundError where
    there is no run and none is to be made.
    """
    deadline = time.monotonic() + WAIT
    while (found := stored(out)) is None:
        if make is None:
            raise FileNotFoundError(f"out: {out} holds no {FILE}: nothing was generated there")
        try:
            _write(out, make)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL)
    return found


def check(out: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise ValueError with the differences between the settings in a folder and those that are asked for."""
    asked = json.loads(json.dumps(asked))
    check_same(found, asked, f"out: {out} holds another run; choose another folder")


def _write(out: Path, make: Callable[[], dict[str, Any]]) -> None:
    """Write settings, unless another process has done it."""
    with locked_folder(out):
        if stored(out) is None:
            if atomic.occupied(out):
                raise FileExistsError(f"out: {out} is not empty and holds no {FILE}: choose another folder")
            atomic.write_text(out / FILE, json.dumps(make(), indent=1) + "\n")


def described(value: Any, depth: int = _DEPTH) -> Any:
    """A value as JSON that tells it from others: a network by its weights, a function by its name."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Tensor):
        return fingerprints.of_tensors([value])
    if isinstance(value, nn.Module):
        return _module(unwrapped(value))
    if isinstance(value, partial):
        return {"partial": [described(v, depth - 1) for v in (value.func, value.args, value.keywords)]}
    if inspect.isroutine(value) or isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    if depth == 0:
        return type(value).__qualname__
    if isinstance(value, Mapping):
        return {str(key): described(v, depth - 1) for key, v in value.items()}
    if isinstance(value, (tuple, list)):
        return [described(v, depth - 1) for v in value]
    inside = {name: described(v, depth - 1) for name, v in getattr(value, "__dict__", {}).items() if name[:1] != "_"}
    return {type(value).__qualname__: inside}


def of_solver(solver: Solver) -> Any:
    """A solver's text, or where it has tables, its kind and options."""
    try:
        return solvers.text_of(solver)
    except ValueError:
        return described(solver)


def _module(module: nn.Module) -> dict[str, Any]:
    """A network by class, weights, and the numbers that it or a wrapper of guidance has as attributes."""
    tensors = {name: value for name, value in module.state_dict().items() if isinstance(value, Tensor)}
    plain = (bool, int, float, str, Tensor)
    numbers = {name: described(v) for name, v in vars(module).items() if name[:1] != "_" and isinstance(v, plain)}
    numbers = {name: value for name, value in numbers.items() if name not in ("training", "origin")}
    inner = attribute(module, "unguided")
    names = [type(module).__qualname__, *([type(unwrapped(inner)).__qualname__] if inner is not None else [])]
    return {"class": " of ".join(names), "weights": fingerprints.of_named(tensors), "attributes": numbers}
