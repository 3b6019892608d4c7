"""The colour script: a toy run, its interruptions, and the cells of the quality matrix."""

import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from places import ROOT

import gms_fast
from bench.assets import colour
from bench.experiments import quality
from gms_fast import io
from gms_fast.quality import cells, subjects
from gms_fast.storage import checkpoint

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.slow(30)]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Write 8x8 images whose colour depends on the class, with noise."""
    path, random = tmp_path_factory.mktemp("data") / "train.npz", np.random.default_rng(0)
    labels = np.arange(60) % 10
    images = 20 * labels[:, None, None, None] + random.integers(0, 60, (60, 3, 8, 8))
    np.savez(path, images=images.astype(np.uint8), labels=labels.astype(np.uint8))
    return path


def arguments(file, out, *options):
    return ["--data", str(file), "--out", str(out), "--toy", "--minutes", "0.01", "--device", "cpu", *options]


def command(file, out, *options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["colour", *arguments(file, out, *options)])
        colour.main()


@pytest.fixture(scope="module")
def finished(file, tmp_path_factory):
    out = tmp_path_factory.mktemp("colour") / "run"
    command(file, out)
    return out


def test_network_is_of_the_size_that_was_asked_for():
    """Expect 10 to 20 million parameters, and 3 to 5 million images in eight GPU minutes."""
    model = colour.network(colour.FULL, 32, 10)
    assert 10e6 < sum(p.numel() for p in model.parameters()) < 20e6
    assert 3e6 < 0.15 * colour.PEAK * 8 * 60 / colour.operations(model) < 5e6
    assert "million images in 8 minutes" in colour.planned(colour.FULL, 8)


def test_dry_run_makes_all_that_solvers_take(finished, capsys):
    model = finished / "model"
    wanted = {"model.safetensors", "config.json", "README.md", "gaussian.safetensors", "empirical.safetensors"}
    assert {p.name for p in model.iterdir()} == wanted | {"ggdm-5.safetensors"}
    card = (model / "README.md").read_text()
    assert "# Model card: CIFAR-10 (JPEG 75)" in card
    assert "| table of 5 calls |" in card
    assert (finished / "samples.png").is_file()
    network = io.load(model)
    assert (network.no_class, network.moments, network.normalised) == (10, "central", True)
    found = colour.Turns(network)(torch.zeros(12, 3, 8, 8), torch.zeros(12))
    with torch.no_grad():
        y = torch.arange(12) % 10
        torch.testing.assert_close(found, network.first_moment(torch.zeros(12, 3, 8, 8), torch.zeros(12), y=y))


def test_the_same_command_finds_all_of_it_done(finished, file, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")}
    command(file, finished)
    assert capsys.readouterr().out == ""
    assert {p: p.stat().st_mtime_ns for p in finished.rglob("*.safetensors")} == before
    with pytest.raises(SystemExit, match=r"holds one of --minutes 0\.01: give the same"):
        command(file, finished, "--minutes", "3")


KILLED = """
import os, signal, sys
from bench.assets import colour
from gms_fast.training import loop

at, step, own = (sys.argv.pop(1), int(sys.argv.pop(1))), loop._Step.__call__, colour.Run.settings.fget

def called(self, state, signals):
    if (state.configuration["stage"], state.step) == at:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, state, signals)

loop._Step.__call__ = called
colour.Run.settings = property(lambda self: {**own(self), "checkpoint_seconds": 1e-9})
colour.main()
"""


def begun(out):
    """Make a folder with a plan whose steps do not depend on the machine."""
    plan = {"noise": {"steps": 6, "seconds": 0.1}, "heads": {"steps": 3, "seconds": 0.1}}
    out.mkdir(parents=True)
    known = {"minutes": 0.01, "toy": True, "plan": plan, "seconds": {}, "ended": ["plan"]}
    (out / "run.json").write_text(json.dumps(known))
    return out


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory):
    out = begun(tmp_path_factory.mktemp("whole") / "run")
    command(file, out)
    return io.load(out / "model").state_dict()


@pytest.mark.parametrize(("stage", "at"), [("noise", 4), ("heads", 2)])
def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path, whole, file, stage, at):
    out = begun(tmp_path / "run")
    kill = [sys.executable, "-c", KILLED, stage, str(at), *arguments(file, out)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    assert subprocess.run(kill, env=env, cwd=tmp_path, check=False).returncode == -signal.SIGKILL
    assert checkpoint.read(out / stage / "checkpoint.pt")["step"] == at
    command(file, out)
    got = io.load(out / "model").state_dict()
    assert [name for name in whole if not torch.equal(got[name], whole[name])] == []


# --- group cifar10 of the quality matrix ---


def group(folder):
    return quality.groups(folder)["cifar10"]


def test_cells_are_of_equal_calls_and_can_be_drawn(finished, file, tmp_path):
    shutil.copytree(finished / "model", tmp_path / "colours" / "a" / "model")
    folder = tmp_path / "colours" / "a" / "model"
    found = group(tmp_path / "colours")
    assert len(found) == len(cells.CONTROLS) + len(quality.COLOUR) * len(quality.COLOUR_CALLS) + 2
    subject = subjects.build(str(folder), str(file))
    assert subject.classes == 10
    for cell in found:
        few = (
            cell.solver.startswith(("ggdm", "dpm-solver-v3")) and cell.steps > 5
        )  # the toy run has 1 table and 12 nodes
        if cell.solver in cells.CONTROLS or few:
            continue
        _, calls = cells._drawer(cell, subject)
        assert calls == cell.steps + quality.extra_calls(cell.solver)
        assert calls in quality.COLOUR_CALLS
    drawn = [c for c in found if c.solver not in cells.CONTROLS]
    for cell in (c for c in drawn if c.steps + quality.extra_calls(c.solver) == 5):
        x, _ = cells.samples(cell, subject, 2)
        assert x.shape == (2, 3, 8, 8)
        assert x.isfinite().all()


def test_group_wants_a_folder_and_data(finished, monkeypatch, tmp_path):
    shutil.copytree(finished / "model", tmp_path / "a" / "model")
    for given, named in (([], "--heads must name"), (["--heads", str(tmp_path)], "--data must name")):
        monkeypatch.setattr(sys, "argv", ["quality", "cifar10", *given])
        with pytest.raises(SystemExit, match=named):
            quality.main()
    assert group(None) == []
    assert gms_fast.load(tmp_path / "a" / "model").needed == ("y",)
