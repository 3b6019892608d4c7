"""Galaxy networks with random weights, in files like those of galaxygrad."""

import sys

import numpy as np
import pytest
import torch

from bench.experiments import galaxies

pytestmark = pytest.mark.usefixtures("one_thread")
CHANNELS, PATCHES, SIDE, HIDDEN = 6, 4, 4, 5


@pytest.fixture
def leaves():
    rng = np.random.default_rng(0)
    layers = [(HIDDEN, PATCHES), (HIDDEN,), (PATCHES, HIDDEN), (PATCHES,)]
    layers += [(HIDDEN, CHANNELS), (HIDDEN,), (CHANNELS, HIDDEN), (CHANNELS,)]
    norms = [(CHANNELS, PATCHES)] * 2 + [(PATCHES, CHANNELS)] * 2
    ends = [(CHANNELS, 2, SIDE, SIDE), (CHANNELS, 1, 1), (1, CHANNELS, SIDE, SIDE), (1, 1, 1)]
    shapes = [*ends, *layers, *norms, *layers, *norms, (CHANNELS, PATCHES), (CHANNELS, PATCHES)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


@pytest.fixture
def installed(leaves, tmp_path, monkeypatch):
    """Install a galaxygrad with random weights, whose code must not be run."""
    package = tmp_path / "galaxygrad"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('jax')")
    with (package / "eqx_hsc_ScoreNet32.eqx").open("wb") as file:
        for leaf in (*leaves, np.array(10.0)):
            np.save(file, leaf)
    monkeypatch.syspath_prepend(tmp_path)


def score(leaves, x, time):
    """Compute the network in numpy as its authors do, for one image (8, 8) and a time in [0, 1]."""

    def norm(y, weight, bias):
        return (y - y.mean()) / np.sqrt(y.var() + 1e-5) * weight + bias

    def layers(y, a, a_bias, b, b_bias):
        return np.maximum(y @ a.T + a_bias, 0) @ b.T + b_bias

    first, first_bias, last, last_bias, *inner = leaves
    y = np.stack([x, np.full_like(x, time)]).reshape(2, 2, SIDE, 2, SIDE)
    y = (np.einsum("fcab,cyaxb->fyx", first, y) + first_bias).reshape(CHANNELS, PATCHES)
    for i in (0, 12):
        y = y + layers(norm(y, *inner[i + 8 : i + 10]), *inner[i : i + 4])
        y = y.T
        y = y + layers(norm(y, *inner[i + 10 : i + 12]), *inner[i + 4 : i + 8])
        y = y.T
    y = norm(y, *inner[-2:]).reshape(CHANNELS, 2, 2)
    return np.einsum("fab,fyx->yaxb", last[0, :, ::-1, ::-1], y).reshape(8, 8) + last_bias[0]


def test_network_is_that_of_the_weights(leaves, installed):
    net = galaxies.network("hsc32")
    assert net.sample_shape == (1, 8, 8)
    x, t = np.random.default_rng(1).normal(size=(3, 1, 8, 8)).astype(np.float32), np.array([0.0, 99.0, 999.0])
    with torch.no_grad():
        found = net(torch.from_numpy(x), torch.from_numpy(t)).numpy()
    for image, time, noise in zip(x, (t + 1) / 1000, found, strict=True):
        expected = -np.sqrt(1 - np.exp(-10 * time)) * score(leaves, image[0], time)
        np.testing.assert_allclose(noise[0], expected, rtol=1e-4, atol=1e-5)


def test_schedule_is_exp(installed):
    schedule = galaxies.network("hsc32").schedule
    t = torch.arange(1000.0)
    torch.testing.assert_close(schedule.alpha(t), torch.exp(-(t.double() + 1) / 200), rtol=1e-12, atol=0)


def test_samples_are_drawn_once_and_shown(installed, tmp_path, monkeypatch):
    monkeypatch.setattr(galaxies, "MANY", 2)
    net, file = galaxies.network("hsc32"), tmp_path / "out" / "x.safetensors"
    first = galaxies.data(net, 3, file)
    monkeypatch.setattr(galaxies, "drawn", None)
    assert torch.equal(galaxies.data(net, 3, file), first)
    galaxies.show(first, tmp_path / "x.png")
    assert (tmp_path / "x.png").stat().st_size


def test_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    with pytest.raises(SystemExit, match=r"pip install --no-deps galaxygrad==0\.1\.7"):
        galaxies.network("hsc32")
