"""The experiment on editing: conditional laws, steps across an edge, and tables."""

import numpy as np
import pytest
import torch
from toys import Model

from bench.experiments import editing
from gms_fast.statistics import Gaussian


def test_the_conditional_law_is_that_of_many_draws():
    torch.manual_seed(0)
    vectors = torch.linalg.qr(torch.randn(4, 4, dtype=torch.float64))[0]
    law = Gaussian([0.1, 0.2, 0.3, 0.4], vectors, [1.0, 0.5, 0.2, 0.1])
    free = torch.tensor([False, False, True, True])
    mean, covariance = editing.conditional(law, torch.tensor([0.5, -0.5, 9.0, 9.0], dtype=torch.float64), free)
    C = (vectors * law.eigenvalues) @ vectors.T
    precision = torch.linalg.inv(C)  # its inverted block is the conditional covariance
    wanted = torch.linalg.inv(precision[2:, 2:])
    assert torch.allclose(covariance, wanted, atol=1e-8)
    away = torch.tensor([0.4, -0.7], dtype=torch.float64)
    assert torch.allclose(mean, law.mean[2:] - wanted @ precision[2:, :2] @ away, atol=1e-8)


def test_the_conditional_law_of_a_singular_covariance():
    """Invert a singular covariance: some pixels of 8x8 digits never change.

    A least-squares solver returned nothing for them at times.
    """
    law = editing.load_gaussian("digits")
    free = torch.arange(64) >= 32
    x = law.mean.flatten() + law.eigenvectors @ law.eigenvalues.sqrt()
    first, again = (editing.conditional(law, x, free)[0] for _ in range(2))
    assert torch.equal(first, again)
    C = (law.eigenvectors * law.eigenvalues) @ law.eigenvectors.T
    solved = np.linalg.lstsq(C[~free][:, ~free].numpy(), C[~free][:, free].numpy(), rcond=1e-10)[0]
    wanted = law.mean.flatten()[free].numpy() + solved.T @ (x - law.mean.flatten())[~free].numpy()
    assert np.allclose(first.numpy(), wanted, atol=1e-6)


def test_steps_across_the_edge_and_inside():
    x = torch.tensor([0.0, 0.0, 3.0, 4.0])[:, None].expand(1, 1, 4, 4)
    assert editing._steps(x) == (3.0, 1.0)
    assert torch.equal(editing.lower_half(x)[:, 0], torch.tensor([0.0, 0.0, 1.0, 1.0]))


def test_inversion_is_measured_and_shown():
    model = Model(lambda x, t: 0.1 * x, sample_shape=(1, 2, 2), clip=None)
    x = torch.linspace(-1, 1, 8).reshape(2, 1, 2, 2)
    rows = editing.inversion({"toy": (model, x)}, (4, 8))
    assert len(rows) == 2 * len(editing.REVERSED)
    assert all(grey > 0 for row in rows for grey in row["grey"])
    shown = editing.inversion_table({"rows": rows})
    assert "| toy, clipped | `heun` |" in shown
    assert shown.splitlines()[0] == "| model | solver | 4 calls | 8 calls | observed order |"


def test_tables_of_inpainting():
    rows = [{"steps": k, "resample": r, "mean": k / r, "covariance": 0.5} for k in (20, 50) for r in editing.RESAMPLES]
    exact = {"steps": 0, "resample": 0, "mean": 0.02, "covariance": 0.1}
    assert "| 20 | 20.00, 0.50 | 10.00, 0.50 |" in editing.gaussian_table({"rows": [exact, *rows]})
    row = {"model": "digits", "solver": "gms", "resample": 2, "edge": [1.0, 2.0], "inside": [1], "frechet": [3]}
    assert "| digits | `gms` | 2 | 1.50 ± 0.71 | 1.00 | 3.00 |" in editing.seams_table({"rows": [row]})


@pytest.mark.slow(20)
def test_seams_and_gaussians_are_measured(one_thread, monkeypatch):
    monkeypatch.setattr(editing, "RESAMPLES", (1, 2))
    exact, *rows = editing.gaussian(100, (5,))
    assert [row["resample"] for row in rows] == [1, 2]
    assert 0 < exact["mean"] < 0.5
    first, second = editing.seams({"digits": (66, ("ddim",), (1, 2))}, 1)
    assert (first["resample"], second["resample"]) == (1, 2)
    assert first["edge"][0] > 0.5
