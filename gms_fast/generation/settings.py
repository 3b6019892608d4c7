"""Settings of a run: all that its images depend on, as JSON with a fingerprint.

The processes that draw are not part of it: they may change while the images stay the same.
"""

import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gms_fast import solvers
from gms_fast.generation.arithmetic import arithmetic
from gms_fast.generation.described import described
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
CLAIMS, MEASURED, WHOLE = "claims", "measured", "measured.safetensors"  # beside FILE in a folder
WAIT, POLL = 60.0, 0.05  # seconds to wait for a process that writes FILE, and between two looks
_NUMBERS = dict.fromkeys(("n", "batch_size", "shard_size"), Integer(1))
_STORED = Fields({"format": Choice((FORMAT,)), "form": Choice(tuple(FORMS)), **_NUMBERS}, others=Plain())


def of(run: Run, drawing: Drawing, shard_size: int, form: str) -> dict[str, Any]:
    """Return the settings of a run as JSON values."""
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
        "condition": described(drawing.said_of_conditions()),
        "decoder": described(drawing.decoder),
        "solver": of_solver(run.solver),
        "schedule": said.built().described,
        "times": [step.t for step in (*run.walk.steps, run.walk.last)],
        "denoise": run.walk.denoise,
        "dtype": str(arguments["dtype"]),
        "arithmetic": arithmetic(arguments["device"]),
        "versions": {"gms_fast": __version__, "torch": torch.__version__},
    }


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Return 16 digits that identify settings."""
    return fingerprints.of_values(dict(sorted(settings.items())))


def stored(out: Path) -> dict[str, Any] | None:
    """Return the settings of the run in a folder; None if there is none.

    Raises ValueError for a damaged file.
    """
    file = out / FILE
    if not file.exists():
        return None
    with refusing(f"{file} does not contain the settings of a run: move it, and the shards beside it", file):
        found = read_json(file)
        schema.check("", found, _STORED)
    return found


def settled(out: Path, make: Callable[[], dict[str, Any]], *, new: bool = True, slow: bool = False) -> dict[str, Any]:
    """Return the settings of the run in `out`; if there is none, write those from `make`.

    One process makes them while others wait; they wait without a limit if `slow` is True. Raises FileExistsError for a
    folder with other files, and FileNotFoundError if there is no run and `new` is False.
    """
    deadline = math.inf if slow else time.monotonic() + WAIT
    while (found := stored(out)) is None:
        if not new:
            raise FileNotFoundError(f"out: {out} holds no {FILE}: nothing was generated there")
        try:
            _write(out, make)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL)
    return found


def check(out: Path, found: dict[str, Any], asked: dict[str, Any]) -> None:
    """Raise ValueError with the differences between stored and requested settings."""
    asked = json.loads(json.dumps(asked))
    check_same(found, asked, f"out: {out} holds another run; choose another folder")


def _write(out: Path, make: Callable[[], dict[str, Any]]) -> None:
    """Write the settings, unless another process has done so."""
    with locked_folder(out):
        if stored(out) is None:
            # Processes whose folder was taken away may have made these anew.
            if not {CLAIMS, MEASURED}.issuperset(atomic.visible(out)):
                raise FileExistsError(f"out: {out} is not empty and holds no {FILE}: choose another folder")
            atomic.write_text(out / FILE, json.dumps(make(), indent=1) + "\n")


def of_solver(solver: Solver) -> Any:
    """Return a solver's text, or its kind and options if it has tables."""
    try:
        return solvers.text_of(solver)
    except ValueError:
        return described(solver)
