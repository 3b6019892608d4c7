"""Command `statistics`."""

import numpy as np
import pytest
import torch
from published_statistics import network
from safetensors.torch import load_file

import gms_fast
from gms_fast import io
from gms_fast.cli import main
from gms_fast.models.unet import MomentUNet
from gms_fast.statistics import Gaussian, empirical_model, gaussian, load

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    model = network(attention=()).float()
    io.save(model, folder / "tiny")
    np.save(folder / "x.npy", np.random.default_rng(0).uniform(-1, 1, (6, 4, 4)).astype(np.float32))
    return folder


def command(folder, out, *more):
    options = {"--model": folder / "tiny", "--data": folder / "x.npy", "--out": out, "--nodes": 2, "--samples": 4}
    return main(["statistics", *(str(a) for pair in options.items() for a in pair), *more])


def test_command_measures(saved, tmp_path, capsys):
    assert command(saved, tmp_path / "x.safetensors", "--half") == 0
    assert "4 images at 3 noise levels, mean l from " in capsys.readouterr().out
    got, model = load(tmp_path / "x.safetensors"), io.load(saved / "tiny")
    got.check(model=model, schedule=model.schedule, shape=(1, 4, 4))
    assert (got.N, got.samples) == (2, 4)
    wanted = empirical_model(model, gms_fast.data.load(saved / "x.npy"), N=2, samples=4)
    torch.testing.assert_close(got.l, wanted.l, rtol=1e-6, atol=1e-6)
    assert load_file(tmp_path / "x.safetensors")["s"].dtype == torch.float16


def test_command_keeps_and_replaces(saved, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    out.write_bytes(b"something")
    assert command(saved, out) == 2
    assert "already exists" in capsys.readouterr().err
    assert command(saved, out, "--nodes", "1", "--force") == 2
    assert out.read_bytes() == b"something"
    assert command(saved, out, "--force") == 0
    assert load(out).N == 2


def test_command_goes_on_after_an_interruption(saved, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(MomentUNet, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command(saved, out) == 130
    assert "--resume continues" in capsys.readouterr().err
    assert command(saved, out) == 2
    assert "holds an unfinished measurement" in capsys.readouterr().err
    assert command(saved, out, "--resume") == 0


def test_command_refuses_another_suffix(saved, tmp_path, capsys):
    assert command(saved, tmp_path / "x.npz") == 2
    assert "--out must end in .safetensors" in capsys.readouterr().err


def test_command_measures_the_gaussian_of_data_and_of_samples(saved, tmp_path, capsys):
    out, options = tmp_path / "x.safetensors", ("statistics", "--gaussian", "--model", str(saved / "tiny"))
    assert main([*options, "--data", str(saved / "x.npy"), "--rank", "2", "--flips", "--half", "--out", str(out)]) == 0
    assert "12 images, 2 eigenvectors with " in capsys.readouterr().out
    measured, wanted = Gaussian.load(out), gaussian(gms_fast.data.load(saved / "x.npy"), 2, flips=True)
    torch.testing.assert_close(measured.eigenvalues, wanted.eigenvalues)
    assert load_file(out)["eigenvectors"].dtype == torch.float16
    assert main([*options, "--samples", "5", "--out", str(out)]) == 2
    assert "already exists; delete it or choose another file" in capsys.readouterr().err
    assert main([*options, "--samples", "5", "--batch-size", "2", "--out", str(out), "--force"]) == 0
    x = gms_fast.sample(io.load(saved / "tiny"), 20, solver="dpm-solver++", n=5, batch_size=2)  # rounds in the same way
    torch.testing.assert_close(Gaussian.load(out).mean, x.double().mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--gaussian", "--nodes", "3"), "--nodes must not be given with --gaussian"),
        (("--rank", "3"), "--rank must not be given without --gaussian"),
        ((), "--data must name the training data of the model"),
        (("--gaussian", "--data", "digits", "--rank", "65"), "rank must be at most 64"),
    ],
)
def test_command_keeps_kinds_of_statistics_apart(tmp_path, capsys, more, message):
    assert main(["statistics", *more, "--out", str(tmp_path / "x.safetensors")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
