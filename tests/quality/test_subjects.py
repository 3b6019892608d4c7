"""Evaluated models with their data and controls."""

import numpy as np
import pytest
import torch
from tiny_networks import tiny

from gms_fast import data, io
from gms_fast.quality import cells, subjects
from gms_fast.quality.cells import Cell

pytestmark = pytest.mark.filterwarnings("ignore:Metric `Kernel")


def test_controls_are_real_samples_and_a_gaussian_of_their_mean_and_covariance():
    subject = subjects.build("digits", "digits")
    real = data.load("digits")
    assert len(subject.reference) + len(subject.control) == len(real)
    rows = {tuple(x.flatten().tolist()) for x in real}
    assert all(tuple(x.flatten().tolist()) in rows for x in subject.real(50, 0))
    assert len(subject.real(10_000, 0)) == len(subject.control)
    drawn, flat = subject.gaussian(20_000, 0).flatten(1).double(), subject.reference.flatten(1).double()
    assert (drawn.mean(0) - flat.mean(0)).abs().max() < 5 * flat.std(0).max() / 20_000**0.5
    spread = flat.std(0).max() ** 2 * (2 / 20_000) ** 0.5
    assert (torch.cov(drawn.T) - torch.cov(flat.T)).abs().max() < 5 * spread


@pytest.mark.parametrize("name", ["eight", "exact-digits", "digits"])
def test_real_samples_come_closest_on_every_model(name):
    """Check that every distance finds real data closer to real data than two steps of DDIM."""
    subject = subjects.build(name)
    real = cells.measure(subject.real(800, 7), subject)
    drawn = cells.measure(cells.samples(Cell(name, "ddim", "uniform", 2), subject, 800)[0], subject)
    for measure in ("energy", "sliced", "variance"):
        assert real[measure] < drawn[measure], measure
    if subject.features:
        assert real["frechet"] < drawn["frechet"]
        assert real["precision"] > drawn["precision"]
        assert real["confident"] > drawn["confident"]


def test_samples_are_refused_where_shape_or_count_do_not_do():
    subject = subjects.build("eight")
    with pytest.raises(ValueError, match=r"samples must be \(2,\) each: got \(3,\)"):
        cells.measure(torch.zeros(100, 3), subject)
    with pytest.raises(ValueError, match="at least 50 rows: got 20"):
        cells.measure(torch.zeros(20, 2), subject)
    pixels = data.load("digits")[:100] * 127.5 + 127.5
    with pytest.raises(ValueError, match="samples must be in the data's units: 100 of 100 go beyond 5"):
        cells.measure(pixels, subjects.build("digits"))


def test_subject_is_refused_where_data_and_model_differ():
    with pytest.raises(ValueError, match=r"data must be \(1, 28, 28\) for model mnist: got \(1, 8, 8\)"):
        subjects.build("mnist", "digits")
    with pytest.raises(ValueError, match="data is for learned models"):
        subjects.build("mixture-1d", "nowhere.npy")
    with pytest.raises(ValueError, match="schedule is for exact models"):
        subjects.build("mnist", None, "cosine")
    with pytest.raises(ValueError, match="features are for learned models; exact-digits has its own: got 'digits'"):
        subjects.build("exact-digits", None, None, "digits")


# --- real data of a file, with named features ---


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    """Make a network of colour images, and 300 images in two classes by brightness."""
    made = tmp_path_factory.mktemp("colours")
    io.save(tiny(image_size=32, in_channels=3), made / "model")
    labels = np.arange(300, dtype=np.uint8) % 2
    images = np.random.default_rng(0).integers(0, 200, (300, 3, 32, 32), dtype=np.uint8)
    np.savez(made / "x.npz", images=images + 50 * labels[:, None, None, None], labels=labels)
    return str(made / "model"), str(made / "x.npz")


def test_features_of_a_file_are_named_never_guessed(colours, tmp_path):
    model, file = colours
    assert subjects.build(model, file).features is None
    subject = subjects.build(model, file, None, "cifar10")
    found = cells.measure(subject.real(150, 0), subject)
    assert {"frechet", "kernel", "precision", "recall", "confident"} <= found.keys()
    assert found["frechet"] < cells.measure(subject.gaussian(150, 0) / 2, subject)["frechet"]
    with pytest.raises(ValueError, match="n must be at least 129 samples"):
        cells.check(Cell(model, "real"), 128, subject)
    cells.check(Cell(model, "real"), 129, subject)


def test_a_named_data_set_and_its_file_measure_alike(tmp_path):
    np.save(tmp_path / "x.npy", data.load("digits").numpy())
    named, of_file = subjects.build("digits"), subjects.build("digits", str(tmp_path / "x.npy"), None, "digits")
    assert cells.measure(named.real(100, 0), named) == cells.measure(of_file.real(100, 0), of_file)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ("digits", r"features must be for images \(3, 32, 32\): digits sees \(1, 8, 8\)"),
        ("pixels", "features must be one of mnist5k, digits, cifar10: got 'pixels'"),
    ],
)
def test_features_of_other_pictures_are_refused(colours, features, message):
    with pytest.raises(ValueError, match=message):
        subjects.build(*colours, None, features)


def test_classes_are_those_in_the_file(colours, monkeypatch):
    network = tiny(image_size=32, in_channels=3)
    network.needed = ("y",)
    monkeypatch.setattr(io, "load", lambda name: network)
    subject = subjects.build("conditional", colours[1])
    assert subject.classes == 2
    assert subject.condition(3, 1)["y"].tolist() == [1, 0, 1]


def test_a_long_reference_is_cut_and_the_control_is_not(colours, monkeypatch):
    model, file = colours
    whole = subjects.build(model, file).reference
    subjects.build.cache_clear()
    monkeypatch.setattr(subjects, "REFERENCE", 100)
    subject = subjects.build(model, file)
    subjects.build.cache_clear()
    assert torch.equal(subject.reference, whole[:100])
    assert len(subject.control) == 150
