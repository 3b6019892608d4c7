"""Saved folders: everything written is read back unchanged."""

import json
from pathlib import Path

import pytest
import torch
from tiny_networks import outputs, tiny

from gms_fast import io
from gms_fast.schedules import VPCosine, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("head", [None, "simple", "complex", ("simple", "complex"), ("complex", None)])
def test_load_returns_what_save_wrote(tmp_path, head):
    model = tiny(head=head, moments="central", use_scale_shift_norm=False)
    io.save(model, tmp_path / "m")
    loaded = io.load(tmp_path / "m")
    assert loaded.config == model.config
    assert loaded.moments == "central"
    assert loaded.schedule.config == model.schedule.config
    assert not loaded.training
    for got, want in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(got, want)
    torch.testing.assert_close(outputs(loaded), outputs(model), atol=0, rtol=0)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["config.json", "m", "model.safetensors"]


def test_load_draws_no_random_numbers_and_gives_trainable_weights(tmp_path):
    io.save(tiny(), tmp_path / "m")
    before = torch.get_rng_state()
    model = io.load(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)
    assert all(p.requires_grad for p in model.parameters())
    outputs_sum = sum(e.sum() for e in model(torch.zeros(1, 1, 8, 8), torch.zeros(1)))
    outputs_sum.backward()


def test_saved_half_precision_is_half_the_size_and_loads_as_float32(tmp_path):
    model = tiny()
    io.save(model, tmp_path / "full")
    io.save(model, tmp_path / "half", dtype=torch.float16)
    full, half = (Path(tmp_path, name, io.WEIGHTS).stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    loaded = io.load(tmp_path / "half")
    assert {w.dtype for w in loaded.state_dict().values()} == {torch.float32}
    for got, want in zip(loaded.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(got, want.half().float())


def test_saved_config_says_kind_version_and_schedule(tmp_path):
    io.save(tiny(), tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    assert config["kind"] == "MomentUNet"
    assert config["schedule"] == {"name": "VPCosine", "T": 50, "time_shift": 0, "rescale_time": True}
    assert config["gms_fast"][0].isdigit()


def test_save_replaces_a_saved_model_and_an_empty_folder(tmp_path):
    (tmp_path / "m").mkdir()
    io.save(tiny(), tmp_path / "m")
    io.save(tiny(head=None), tmp_path / "m")
    assert io.load(tmp_path / "m").config["head"] is None


@pytest.mark.parametrize("name", ["notes.txt", "model.safetensors", "beside.txt"])
def test_save_refuses_a_folder_that_is_not_a_saved_model(tmp_path, name):
    target = tmp_path / "m"
    if name == "beside.txt":
        io.save(tiny(), target)
    target.mkdir(exist_ok=True)
    (target / name).write_text("precious")
    with pytest.raises(FileExistsError, match=name):
        io.save(tiny(), target)
    assert (target / name).read_text() == "precious"


def test_save_refuses_a_file(tmp_path):
    (tmp_path / "m").write_text("precious")
    with pytest.raises(FileExistsError, match="is not a saved model"):
        io.save(tiny(), tmp_path / "m")


def test_save_that_fails_leaves_the_old_model(tmp_path, monkeypatch):
    old = tiny()
    io.save(old, tmp_path / "m")
    monkeypatch.setattr(io.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        io.save(tiny(head=None), tmp_path / "m")
    assert io.load(tmp_path / "m").config == old.config
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


def test_save_puts_the_old_model_back_when_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    old = tiny()
    io.save(old, tmp_path / "m")
    monkeypatch.setattr(io.atomic, "_put", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        io.save(tiny(head=None), tmp_path / "m")
    assert io.load(tmp_path / "m").config == old.config


def test_save_refuses_another_model_another_dtype_and_weights_that_overflow(tmp_path):
    with pytest.raises(TypeError, match="model must be a MomentUNet: got Linear"):
        io.save(torch.nn.Linear(1, 1), tmp_path / "m")
    with pytest.raises(TypeError, match=r"dtype .* got torch.int8"):
        io.save(tiny(), tmp_path / "m", dtype=torch.int8)
    model = tiny()
    with torch.no_grad():
        model.out[2].bias.fill_(1e6)
    with pytest.raises(ValueError, match=r"not finite as torch.float16: out\.2\.bias"):
        io.save(model, tmp_path / "m", dtype=torch.float16)
    assert not (tmp_path / "m").exists()


def test_load_overrides_win_over_the_stored_configuration(tmp_path):
    io.save(tiny(), tmp_path / "m")
    model = io.load(tmp_path / "m", image_size=16, dropout=0.5, moments="central", schedule="linear")
    assert model.sample_shape == (1, 16, 16)
    assert model.config["dropout"] == 0.5
    assert model.moments == "central"
    assert isinstance(model.schedule, VPLinear)


def unsaid(folder):
    """Rewrite a folder as of versions before `rescale_time`, with network times 1000 t/T."""
    config = json.loads((folder / io.CONFIG).read_text())
    del config["schedule"]["rescale_time"]
    (folder / io.CONFIG).write_text(json.dumps(config))


def test_stored_network_is_asked_at_the_times_it_was_trained_at(tmp_path):
    for name, said in (("new", False), ("scaled", True), ("plain", None), ("old", None)):
        io.save(tiny(schedule=VPCosine(T=50, rescale_time=said)), tmp_path / name)
    unsaid(tmp_path / "old")
    for name, scale in (("new", 1), ("scaled", 20), ("plain", 20), ("old", 20)):
        model = io.load(tmp_path / name)
        assert float(model.schedule.network_time(49)) == 49 * scale
        io.save(model, tmp_path / "again")
        assert float(io.load(tmp_path / "again").schedule.network_time(49)) == 49 * scale
        again = io.load(tmp_path / name, schedule=VPLinear(T=100))
        assert float(again.schedule.network_time(99)) == (99 if scale == 1 else 990)
    for said, time in ((True, 990), (False, 99)):
        model = io.load(tmp_path / "new", schedule=VPLinear(T=100, rescale_time=said))
        assert float(model.schedule.network_time(99)) == time


def test_load_names_unknown_overrides_and_places_where_nothing_is(tmp_path):
    with pytest.raises(TypeError, match="unknown overrides heads: the arguments of MomentUNet are"):
        io.load(tmp_path, heads=3)
    with pytest.raises(FileNotFoundError, match=r"one of mnist, .* nothing exists at cifar"):
        io.load("cifar")
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        io.load(tmp_path)


def test_load_says_that_the_embedded_model_is_missing(tmp_path, monkeypatch):
    monkeypatch.setattr(io, "_embedded_folder", lambda name: tmp_path / name)
    assert io.embedded() == []
    with pytest.raises(FileNotFoundError, match="'mnist' is missing from this installation"):
        io.load()
    io.save(tiny(), tmp_path / "mnist")
    assert io.embedded() == ["mnist"]
    assert io.load().sample_shape == (1, 8, 8)


@pytest.mark.parametrize("text", ["{", "[]", '{"kind": "Other"}', '{"kind": "MomentUNet"}'])
def test_load_names_a_foreign_config(tmp_path, text):
    io.save(tiny(), tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"m/config\.json does not describe a model"):
        io.load(tmp_path / "m")


@pytest.mark.parametrize("keep", [0, 100, -5])
def test_load_names_truncated_weights(tmp_path, keep):
    io.save(tiny(), tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"model\.safetensors is truncated"):
        io.load(tmp_path / "m")
