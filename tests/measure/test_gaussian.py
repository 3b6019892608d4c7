"""Mean and covariance of data, measured in one pass."""

import numpy as np
import pytest
import torch
from recorded_gaussian import VECTORS, close, tensor

from gms_fast.measure import gaussian as measured
from gms_fast.statistics import gaussian


def test_moments_of_a_table_of_bytes():
    v = VECTORS["moments"]
    g = gaussian(tensor(v["X_uint8"]) / 127.5 - 1)
    assert (g.rank, g.count) == (v["rank"], 5)
    close(g.mean, v["mean_net"], 1e-13)
    close(g.mean / 2 + 0.5, v["mean01"], 1e-13)
    close(g.eigenvalues, v["eigvals_net_desc"], 1e-13)
    close(g.eigenvectors @ g.eigenvalues.diag() @ g.eigenvectors.T, v["cov_net"], 1e-13)


def test_moments_are_numpys_however_the_data_comes():
    generator = torch.Generator().manual_seed(3)
    data = (torch.randn(301, 2, 5, generator=generator) * torch.linspace(0.1, 3, 5) + 100).double()
    whole = gaussian(data)
    covariance = np.cov(data.flatten(1).numpy(), rowvar=False)
    close(whole.eigenvectors @ whole.eigenvalues.diag() @ whole.eigenvectors.T, torch.from_numpy(covariance), 1e-12)
    close(whole.mean, data.mean(0), 1e-14)
    assert whole.count == 301
    assert whole.range == (float(data.min()), float(data.max()))
    for other in (gaussian(data, batch_size=7), gaussian(iter(data.split(100))), gaussian(list(data.float().split(3)))):
        close(other.eigenvalues, whole.eigenvalues, 1e-6)
        close(other.mean, whole.mean, 1e-7)


def test_flips_are_the_mirrored_images_beside_the_others():
    data = torch.randn(40, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + torch.arange(4)
    want, got = gaussian(torch.cat([data, data.flip(-1)])), gaussian(data, flips=True)
    assert got.count == want.count == 80
    close(got.eigenvalues, want.eigenvalues, 1e-12)
    close(got.mean, want.mean, 1e-13)


def test_low_rank_keeps_the_largest_and_all_of_the_variance():
    data = torch.randn(60, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    full, low = gaussian(data), gaussian(data, rank=4)
    close(low.eigenvalues, full.eigenvalues[:4], 1e-13)
    assert float(low.eigenvalues.sum() + 8 * low.residual) == pytest.approx(float(full.eigenvalues.sum()))
    assert full.residual == 0
    assert full.rank == 12


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_subspace_iteration_finds_what_the_dense_solver_finds(monkeypatch, power):
    """Eigenvalues fall as 1/k, the slowest decay for which accuracy is documented."""
    falling = torch.arange(1, 401, dtype=torch.float64) ** -power
    data = torch.randn(3000, 400, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * falling
    dense = gaussian(data, rank=50)
    state = torch.random.get_rng_state()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("seeds what it does not restore"))
    monkeypatch.setattr(measured, "DENSE", 0)
    iterated = gaussian(data, rank=50)
    assert torch.equal(torch.random.get_rng_state(), state)
    close(iterated.eigenvalues, dense.eigenvalues, 1e-6)
    assert float(iterated.eigenvalues.sum() / dense.eigenvalues.sum()) == pytest.approx(1, abs=1e-6)
    assert not torch.equal(iterated.eigenvalues, dense.eigenvalues)
    clear = slice(0, 20)  # eigenvectors before the edge
    assert float((iterated.eigenvectors * dense.eigenvectors).sum(0).abs()[clear].min()) > 1 - 1e-9


def test_fewer_samples_than_elements():
    data = torch.randn(5, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = gaussian(data)
    assert g.rank == 4
    assert g.residual == 0
    close(g.draw(torch.zeros(1, 12, dtype=torch.float64)), data.mean(0)[None], 1e-14)
