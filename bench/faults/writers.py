"""All writers of the package, each with two contents, for `kills`."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from gms_fast import images, io, schedules, solvers, statistics, training
from gms_fast.generation.shards import FORMS, Cut
from gms_fast.models import MomentUNet
from gms_fast.quality import matrix
from gms_fast.solvers import GGDMTable
from gms_fast.storage import atomic, checkpoint, tensors
from gms_fast.training.state import State


def tiny(seed: int = 0) -> MomentUNet:
    """Make the smallest possible network, with heads that count as trained."""
    torch.manual_seed(seed)
    size = {"image_size": 4, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    model = MomentUNet(**size, attention_resolutions=(), head="simple", moments="central")
    for weight in model.head_parameters().values():
        torch.nn.init.normal_(weight, std=0.01)
    return model


def _gaussian(path: Path, value: int) -> None:
    statistics.Gaussian(torch.full((3,), float(value)), torch.eye(3), torch.ones(3)).save(path)


def _empirical(path: Path, value: int) -> None:
    lam, curves = torch.linspace(-2, 2, 3, dtype=torch.float64), torch.full((3, 2), float(value))
    statistics.EmpiricalModel(schedules.build("edm"), lam, curves, curves, curves).save(path)


def _table(path: Path, value: int) -> None:
    GGDMTable.of(solvers.build("ddim"), schedules.build("linear"), [900.0 + value, 400.0]).save(path)


def _trained(path: Path, value: int) -> None:
    state = State({"w": torch.nn.Parameter(torch.zeros(2))}, training.Settings(steps=2), path, {})
    state.step = value
    state.save()


def _shard(path: Path, value: int) -> None:
    """Write a shard; scratch is swept once a run, not by each write."""
    shards = FORMS["npz" if path.suffix else "png"](path.parent, Cut(2, 2), (1, 4, 4), "run")
    shards.write(0, torch.full((2, 1, 4, 4), value, dtype=torch.uint8))
    shards.sweep(lambda name: False)


def _record(path: Path, value: int) -> None:
    """Append a line unless it is there already, as a resumed matrix does."""
    if not value:
        atomic.write_text(path, "")
        return
    matrix._mend(path.parent)
    if not path.read_text():
        atomic.append_line(path, "{}")


WRITERS: dict[str, Callable[[Path, int], None]] = {  # each writes content 0 or 1 to a path
    "model": lambda path, value: io.save(tiny(value), path),
    "model, where names cannot be exchanged": lambda path, value: io.save(tiny(value), path),
    "x.safetensors": lambda path, value: tensors.write(path, {"x": torch.full((9,), float(value))}, {"is": "x"}),
    "gaussian.safetensors": _gaussian,
    "empirical.safetensors": _empirical,
    "table.safetensors": _table,
    "state.pt": lambda path, value: checkpoint.write(path, {"step": value}),
    "checkpoint.pt": _trained,
    "x.png": lambda path, value: images.save_images(torch.full((1, 1, 4, 4), float(value)), path),
    "x.json": lambda path, value: atomic.write_text(path, json.dumps(value)),
    "000000000-000000001": _shard,
    "000000000-000000001, where names cannot be exchanged": _shard,
    "000000000-000000001.npz": _shard,
    "curve.csv": lambda path, value: atomic.write_rows(path, [[value]]),
    matrix.RECORDS: _record,
}
