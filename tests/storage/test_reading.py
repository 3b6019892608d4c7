"""Foreign JSON, archives and weights: read within bounds, or refused by name."""

import threading

import numpy as np
import pytest
import safetensors.torch
import torch
from strange_files import saved

from bench.faults import damage, damage_files
from gms_fast import data, io, solvers, statistics
from gms_fast.storage.reading import json_value, most

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("open_", "close"), [("[", "]"), ('{"a":', "}")])
def test_deep_json_is_named(tmp_path, open_, close):
    folder = saved(tmp_path)
    (folder / io.CONFIG).write_text(open_ * 100_000 + "1" + close * 100_000)
    with pytest.raises(ValueError, match=r"config\.json does not describe a model: it is nested too deeply"):
        io.load(folder)


def test_json_that_is_read_in_two_ways_is_refused():
    with pytest.raises(ValueError, match="it has the key 'a' twice"):
        json_value('{"a": 1, "a": 2}')
    with pytest.raises(ValueError, match=r"more than .* lists and mappings"):
        json_value("[" + "[]," * (1 << 19) + "[]]")
    assert json_value('{"a": Infinity}', infinite=True) == {"a": float("inf")}
    with pytest.raises(ValueError, match="it holds Infinity"):
        json_value("[Infinity]")


def test_archive_that_unpacks_without_bound_is_refused(tmp_path):
    file = tmp_path / "d.npz"
    file.write_bytes(damage._zeros(600))
    assert file.stat().st_size < 3 << 20
    with pytest.raises(ValueError, match=rf"{file} cannot be read: it unpacks to 629\d+ bytes .*: compress it less"):
        data.load(file)
    file.write_bytes(damage._zeros(48))
    assert data.load(file).shape == (48, 1, 1024, 1024)
    assert most(file.stat().st_size, 100) == 64 << 20


def spoilt(value):
    weights = damage_files.network().state_dict()
    name = "out.2.bias"
    return weights | {name: value(weights[name])}, name


SPOILT = {
    "NaN": lambda w: w * float("nan"),
    "infinity": lambda w: w + float("inf"),
    "integers": lambda w: w.int(),
    "complex": lambda w: w.to(torch.complex64),
}


@pytest.mark.parametrize("value", SPOILT.values(), ids=SPOILT)
def test_weights_that_are_no_finite_numbers_are_named(tmp_path, value):
    weights, name = spoilt(value)
    wanted = rf"{name}.*wanted f(inite|loating-point) numbers"
    folder = saved(tmp_path)
    safetensors.torch.save_file(weights, folder / io.WEIGHTS)
    with pytest.raises(ValueError, match=rf"{folder}/model\.safetensors: .*{wanted}"):
        io.load(folder)
    for file, save in {
        "r.pt": torch.save,
        "r.safetensors": safetensors.torch.save_file,
        "r.npz": lambda w, path: np.savez(path, **{n: v.numpy() for n, v in w.items()}),
    }.items():
        save(weights, tmp_path / file)
        with pytest.raises(ValueError, match=rf"checkpoint {tmp_path / file}: .*{wanted}"):
            io.load(tmp_path / file)


@pytest.mark.parametrize("value", SPOILT.values(), ids=SPOILT)
def test_weights_that_are_no_finite_numbers_are_not_saved(tmp_path, value):
    model = damage_files.network()
    model.out[2].bias = torch.nn.Parameter(value(model.out[2].bias.detach()), requires_grad=False)
    with pytest.raises(ValueError, match=r"model has weights that are no.*: out\.2\.bias"):
        io.save(model, tmp_path / "m", dtype=torch.float32)
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_floating_types_are_read(tmp_path, dtype):
    weights = {name: w.to(dtype) for name, w in damage_files.network().state_dict().items()}
    torch.save(weights, tmp_path / "r.pt")
    loaded = io.load(tmp_path / "r.pt", image_size=8).state_dict()
    assert all(torch.equal(loaded[name], w.float()) for name, w in weights.items())


@pytest.mark.parametrize(
    ("load", "name"),
    [
        (statistics.load, "../models/mnist"),
        (statistics.load_gaussian, "../models/mnist"),
        (statistics.load_gaussian, "mnist/../digits"),
        (solvers.load_table, "../models/mnist/5"),
        (solvers.load_table, "mnist/../mnist/5"),
        (io.load, "../models/mnist"),
    ],
)
def test_names_do_not_leave_the_package(load, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        load(name)


def test_what_is_embedded_is_found_by_name():
    assert statistics.load("digits").sample_shape == (1, 8, 8)
    assert statistics.load_gaussian("mnist").sample_shape == (1, 28, 28)
    assert solvers.load_table("mnist/5").steps == 5


def test_model_that_is_saved_anew_is_read_as_a_whole(tmp_path):
    """Load a model while it is saved anew; no load mixes description and weights of two models."""
    torch.manual_seed(0)
    models = [damage_files.network() for _ in range(2)]
    for i, model in enumerate(models):
        model.config["image_size"] = 8 + i
        with torch.no_grad():
            model.out[2].bias.fill_(i)
    io.save(models[0], tmp_path / "m")
    done = threading.Event()

    def write():
        while not done.is_set():
            for model in models:
                io.save(model, tmp_path / "m")

    writer = threading.Thread(target=write)
    writer.start()
    try:
        found = [io.load(tmp_path / "m") for _ in range(30)]
    finally:
        done.set()
        writer.join()
    pairs = {(model.config["image_size"], float(model.out[2].bias[0])) for model in found}
    assert pairs <= {(8, 0.0), (9, 1.0)}
