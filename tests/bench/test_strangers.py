"""Networks of diffusers trained by a script: readable by diffusers and by this package."""

import sys

import pytest
import torch

import gms_fast
from bench.assets import strangers
from gms_fast.models import wrap

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("strangers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(strangers, "BATCH", 2)
        patch.setattr(sys, "argv", ["strangers", str(out), "--steps", "2"])
        strangers.main()
    return out


def test_unet_is_a_pipeline_of_diffusers(trained):
    pipeline = diffusers.DDPMPipeline.from_pretrained(trained / "unet")
    x = gms_fast.sample(wrap(pipeline), 2, solver="ddim", n=2)
    assert x.shape == (2, 1, 8, 8)
    network, _ = strangers.load(trained / "unet")
    assert all(torch.equal(a, b) for a, b in zip(network.parameters(), pipeline.unet.parameters(), strict=True))


def test_dit_takes_classes_and_none(trained):
    model = wrap(strangers.load(trained / "dit"))
    x = gms_fast.sample(model, 2, solver="ddim", n=2, condition={"class_labels": torch.tensor([3, strangers.CLASSES])})
    assert x.shape == (2, 1, 8, 8)


def test_labels_are_dropped_as_often_as_said():
    torch.manual_seed(0)
    labels = strangers.some_classes(torch.full((10_000,), 3))["class_labels"]
    assert set(labels.tolist()) == {3, strangers.CLASSES}
    assert (labels == strangers.CLASSES).float().mean().item() == pytest.approx(strangers.DROPPED, abs=0.01)


def test_training_learns_and_depends_on_its_seed_alone(monkeypatch):
    monkeypatch.setattr(strangers, "BATCH", 8)
    ends = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        network = strangers.dit()
        before = next(network.parameters()).clone()
        strangers.train(network, diffusers.DDPMScheduler(), strangers.some_classes, 3)
        ends.append(next(network.parameters()).detach())
        assert not torch.equal(ends[-1], before)
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])


def test_folder_that_is_there_stays(trained, monkeypatch, capsys):
    files = {file: file.stat().st_mtime_ns for file in trained.rglob("*.safetensors")}
    monkeypatch.setattr(sys, "argv", ["strangers", str(trained)])
    strangers.main()
    assert capsys.readouterr().out.count("is there") == len(files) == 2
    assert {file: file.stat().st_mtime_ns for file in trained.rglob("*.safetensors")} == files
