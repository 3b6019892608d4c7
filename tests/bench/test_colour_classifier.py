"""Training of the classifier of small photographs."""

import sys

import numpy as np
import pytest
import torch

from bench.assets import colour_classifier
from gms_fast.quality.classifier import ColourClassifier
from gms_fast.storage import tensors

pytestmark = pytest.mark.usefixtures("one_thread")


def test_moved_pictures_are_windows_of_reflected_ones():
    images = torch.rand(40, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    found = colour_classifier.moved(images)
    padded = torch.nn.functional.pad(images, (4,) * 4, mode="reflect")
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # (n, c, 9, 9, 32, 32)
    equal = [
        (windows == (found if straight else found.flip(3))[:, :, None, None]).all(-1).all(-1).all(1)
        for straight in (True, False)
    ]
    straight, mirrored = (some.flatten(1).any(1) for some in equal)
    assert (straight ^ mirrored).all()
    assert 5 < straight.sum() < 35
    places = (equal[0] | equal[1]).nonzero()[:, 1:]
    assert (places.amin(0) < 2).all()
    assert (places.amax(0) > 6).all()


def test_training_learns_colours_and_writes_what_loads(tmp_path, monkeypatch, capsys):
    labels = np.arange(128, dtype=np.uint8) % 2
    images = np.random.default_rng(0).integers(0, 256, (128, 3, 32, 32), dtype=np.uint8)
    images[labels == 1, 0] //= 4  # less red
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    out, file = tmp_path / "net.safetensors", str(tmp_path / "x.npz")
    monkeypatch.setattr(colour_classifier, "BATCH", 32)
    command = ["x", "--data", file, "--test", file, "--epochs", "3", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", command)
    colour_classifier.main()
    assert "100.0% of 128 test images right" in capsys.readouterr().out
    tensors.load_into(ColourClassifier(), out)
    stored, _ = tensors.load(out)
    assert {w.dtype for name, w in stored.items() if "tracked" not in name} == {torch.float16}
