"""Models and data that are compared, and the controls beside them."""

import pytest
import torch

from gms_fast import data
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
    """Real against real beats two steps of DDIM in every distance: a measure that cannot see that is broken."""
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
