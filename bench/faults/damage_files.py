"""Intact files of every kind that this package reads, with their loaders, for `damage`."""

import functools
import json
import math
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from gms_fast import data, io, search, solvers, statistics
from gms_fast.models import MomentUNet, PointCloud
from gms_fast.quality import matrix
from gms_fast.quality.cells import Cell
from gms_fast.quality.running import KEPT, Running
from gms_fast.schedules import VP, VPLinear
from gms_fast.search.gms import _Values
from gms_fast.solvers import GGDMTable
from gms_fast.training import train_noise_network

POINTS = (torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0)) > 0.6).float() * 1.6 - 0.8
EXACT = PointCloud(POINTS, 0.1)
SCHEDULE = VP(torch.linspace(1e-3, 0.3, 20))
SETTINGS = {"n": {"mnist": 500}, "data": None, "schedule": "cosine", "sources": "0123456789ab", "inputs": {"x": "y"}}
CONFIGURATION = {"times": [999.0, 500.0, 0.0], "solver": {"fit": "free"}, "clip": [-1.0, 1.0]}


@dataclass(frozen=True)
class Kind:
    """Kind of file.

    Args:
        make: Writes intact files into an empty folder.
        files: Names of the files, one of which is damaged.
        load: Loads the folder by the package.
        sound: Returns True for valid content.
    """

    make: Callable[[Path], None]
    files: tuple[str, ...]
    load: Callable[[Path], Any]
    sound: Callable[[Any], bool]


def network() -> MomentUNet:
    """Make a small network, every weight of which matters."""
    torch.manual_seed(0)
    options = {"image_size": 8, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    model = MomentUNet(**options, attention_resolutions=(1,), schedule=SCHEDULE, head="simple")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model.eval()


def finite(*tensors: Tensor) -> bool:
    return all(bool(t.isfinite().all()) for t in tensors)


def _network_is_sound(model: MomentUNet) -> bool:
    return isinstance(model, MomentUNet) and finite(*model.state_dict().values())


def _release(name: str, write: Callable[[dict[str, Tensor], Path], None]) -> Kind:
    def make(folder: Path) -> None:
        write(network().state_dict(), folder / name)

    return Kind(make, (name,), lambda folder: io.load(folder / name, image_size=8), _network_is_sound)


def _empirical() -> statistics.EmpiricalModel:
    lam = torch.linspace(-3, 3, 5)
    l, s, b = torch.rand(3, 5, 2, 3, generator=torch.Generator().manual_seed(0))
    return statistics.EmpiricalModel(VPLinear(), lam, l, s, b, network="0123456789abcdef", samples=64)


def _sound_statistics(found: statistics.EmpiricalModel) -> bool:
    return finite(found.lam, found.l, found.s, found.b) and found.N >= 1


def _table() -> GGDMTable:
    return GGDMTable.of(solvers.DPMSolverPP(order=2), SCHEDULE, [float(t) for t in SCHEDULE.timesteps(4)[:-1]])


def _measured(folder: Path, model: Callable = EXACT) -> statistics.EmpiricalModel:
    return statistics.empirical_model(model, POINTS, N=3, samples=8, window=None, out=folder / "x.safetensors")


def _unfinished(folder: Path) -> None:
    calls = iter(range(4))

    def failing(x: Tensor, t: Tensor) -> Tensor:
        next(calls)
        return EXACT(x, t)

    failing.schedule = EXACT.schedule  # type: ignore[attr-defined]
    with suppress(StopIteration, RuntimeError):
        _measured(folder, failing)
    assert (folder / "x.safetensors.partial").is_file()


def _resumed(folder: Path) -> statistics.EmpiricalModel:
    """Resume the measurement.

    Rows may be well-formed and yet so wrong that it overflows; the measurement itself finds that.
    """
    try:
        return _measured(folder)
    except ValueError as error:
        if not str(error).startswith("model returned NaN"):
            raise
        return _empirical()


def _trained(folder: Path) -> MomentUNet:
    pictures = torch.zeros(4, 1, 8, 8)
    return train_noise_network(network(), pictures, steps=2, batch_size=2, out=folder, progress=False)


def _searched(folder: Path) -> GGDMTable:
    options = {"iterations": 1, "batch_size": 4, "score_samples": 4, "score_every": 1, "spacing": "uniform"}
    return search.ggdm(EXACT, POINTS, 2, out=folder, progress=False, **options)


def _sound_table(table: GGDMTable) -> bool:
    return finite(*(getattr(table, name) for name in table.given)) and table.steps >= 1


def _search_json(folder: Path) -> None:
    (folder / "s.json").write_text(json.dumps({"configuration": CONFIGURATION, "values": [0.5, math.inf, 0.25]}))


def _sound_images(images: Tensor) -> bool:
    return images.ndim == 4 and images.dtype == torch.float32 and finite(images) and float(images.abs().max()) <= 1


def _pictures(folder: Path) -> None:
    (folder / "d").mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8), dtype=np.uint8)
    for name, array in zip(("a.png", "b.bmp", "c.webp", "d.png"), (*pixels, pixels[0]), strict=True):
        Image.fromarray(array).convert("RGB").save(folder / "d" / name)


def _matrix(folder: Path) -> None:
    (folder / matrix.SETTINGS).write_text(json.dumps(SETTINGS, indent=1))
    record = {**Cell("mnist", "ddim", "uniform", 10).fields, "n": 500, "calls": 10, "seconds": 1.5, "frechet": 2.5}
    (folder / matrix.RECORDS).write_text((json.dumps(record) + "\n") * 3)


def _read_matrix(folder: Path) -> list[dict]:
    matrix._settle(folder, SETTINGS)
    return matrix.read(folder)


def _sound_records(records: list[dict]) -> bool:
    return all(isinstance(matrix.cell_of(record), Cell) for record in records)


def _arrays(packed: bool) -> Callable[[dict[str, Tensor], Path], None]:
    save = np.savez_compressed if packed else np.savez
    return lambda weights, path: save(path, **{name: weight.numpy() for name, weight in weights.items()})


def _running() -> Running:
    found = Running(5, "some", {"shards": ["a"]})
    found.update(torch.rand(60, 5, generator=torch.Generator().manual_seed(0)).double(), torch.arange(60))
    return found


def _shards(folder: Path) -> None:
    (folder / "d").mkdir()
    pixels = (POINTS.numpy() * 100 + 100).astype(np.uint8)
    for name, part in (("a", np.arange(5)), ("b", np.arange(5, 8))):
        np.savez(folder / "d" / f"{name}.npz", images=pixels[part], index=part, said="text")


KINDS = {
    "folder": Kind(
        lambda folder: io.save(network(), folder / "m"),
        ("m/config.json", "m/model.safetensors"),
        lambda folder: io.load(folder / "m"),
        _network_is_sound,
    ),
    "released .pt": _release("r.pt", torch.save),
    "released .pt of old": _release("r.pt", functools.partial(torch.save, _use_new_zipfile_serialization=False)),
    "released .safetensors": _release("r.safetensors", safetensors.torch.save_file),
    "released .npz": _release("r.npz", _arrays(packed=True)),
    "statistics": Kind(
        lambda folder: _empirical().save(folder / "e.safetensors"),
        ("e.safetensors",),
        lambda folder: statistics.load(folder / "e.safetensors"),
        _sound_statistics,
    ),
    "gaussian": Kind(
        lambda folder: statistics.gaussian(POINTS.double()).save(folder / "g.safetensors"),
        ("g.safetensors",),
        lambda folder: statistics.load_gaussian(folder / "g.safetensors"),
        lambda found: finite(found.mean, found.eigenvectors, found.eigenvalues),
    ),
    "table": Kind(
        lambda folder: _table().save(folder / "t.safetensors"),
        ("t.safetensors",),
        lambda folder: solvers.load_table(folder / "t.safetensors"),
        _sound_table,
    ),
    "unfinished statistics": Kind(_unfinished, ("x.safetensors.partial",), _resumed, _sound_statistics),
    "training": Kind(_trained, ("checkpoint.pt",), _trained, _network_is_sound),
    "search": Kind(_searched, ("checkpoint.pt",), _searched, _sound_table),
    "search of GMS": Kind(
        _search_json,
        ("s.json",),
        lambda folder: _Values(folder / "s.json", CONFIGURATION).stored,
        lambda values: all(isinstance(v, float) and not math.isnan(v) for v in values),
    ),
    "data .npy": Kind(
        lambda folder: np.save(folder / "d.npy", (POINTS[:, 0].numpy() * 100).astype(np.uint8)),
        ("d.npy",),
        lambda folder: data.load(folder / "d.npy"),
        _sound_images,
    ),
    "data .npz": Kind(
        lambda folder: np.savez_compressed(folder / "d.npz", images=POINTS.numpy(), labels=np.arange(8)),
        ("d.npz",),
        lambda folder: data.load(folder / "d.npz"),
        _sound_images,
    ),
    "data folder": Kind(
        _pictures,
        ("d/a.png", "d/b.bmp", "d/c.webp"),
        lambda folder: data.load(folder / "d"),
        _sound_images,
    ),
    "shards": Kind(
        _shards,
        ("d/a.npz", "d/b.npz"),
        lambda folder: torch.cat([images for images, _ in data.stream(folder / "d", 3)]) / 127.5 - 1,
        _sound_images,
    ),
    "running statistics": Kind(
        lambda folder: _running().save(folder / "r.safetensors"),
        ("r.safetensors",),
        lambda folder: Running.load(folder / "r.safetensors"),
        lambda found: finite(found.mean, found.scatter, found.rows) and len(found.index) == min(found.count, KEPT),
    ),
    "matrix": Kind(_matrix, (matrix.SETTINGS, matrix.RECORDS), _read_matrix, _sound_records),
}


@functools.cache
def whole(kind: str, folder: Path) -> Path:
    """Make a folder of intact files of a kind, once."""
    made = folder / kind.replace(" ", "_")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    KINDS[kind].make(made)
    return made
