"""The experiment on moments in other bases: orthonormal bases, and clouds with the same law."""

import json
import statistics

import pytest
import torch
from places import ROOT

import gms_fast
from bench.experiments import bases
from gms_fast.models import PointCloud
from gms_fast.quality import cells, subjects
from gms_fast.solvers import DDIM, GMS, SNDDPM

MODEL = "exact-digits"  # 8x8: the same bases, in less time
NAMES = (bases.PIXELS, bases.HAAR, bases.DCT, bases.EIGENVECTORS)


def basis(name):
    return bases.matrices(cells.gaussian(MODEL))[name]


@pytest.fixture(scope="module")
def cloud():
    """Return a few digits, so that the law is far from a Gaussian."""
    exact = subjects.build(MODEL).model
    return PointCloud(exact.data[:40].view(-1, *exact.sample_shape), exact.bandwidth)


@pytest.mark.parametrize("name", NAMES)
def test_bases_are_orthonormal(name):
    for side in (8, 28):
        matrix = basis(name) if side == 8 else bases.matrices(cells.gaussian(bases.MODEL))[name]
        torch.testing.assert_close(matrix.T @ matrix, torch.eye(side**2).double(), rtol=0, atol=1e-13)


@pytest.mark.parametrize("block", [bases.haar_block(), bases.dct_block()])
def test_first_coefficient_of_a_block_is_its_mean_and_others_have_none(block):
    torch.testing.assert_close(block[0], torch.full((16,), 0.25).double())
    assert float(block[1:].sum(1).abs().max()) < 1e-14


def test_blocks_are_those_of_the_picture():
    """Transform an image that is constant on one block: it has one coefficient.

    Its neighbour in C order belongs to another row of blocks.
    """
    picture = torch.zeros(1, 8, 8, dtype=torch.float64)
    picture[:, 4:, :4] = 1
    for name in (bases.HAAR, bases.DCT):
        coefficients = bases.turned(picture, basis(name)).flatten()
        assert float(coefficients[32]) == pytest.approx(4)
        assert float(coefficients.abs().sum()) == pytest.approx(4)


def test_haar_of_a_pair_is_a_sum_and_a_difference():
    """Count pixels: the finest wavelets cover two, those of the second level four; one per side."""
    rows = bases.haar_block().view(16, 4, 4)
    assert sorted(int((row.abs() > 1e-12).sum()) for row in rows) == [4] * 12 + [16] * 4


def test_pixels_are_the_plain_run(cloud):
    options = {"timesteps": cloud.schedule.timesteps(4, "angle"), "clip": None, "dtype": torch.float64}
    for kind in (GMS(clip_pixel=None), SNDDPM(clip_pixel=None)):
        plain = gms_fast.sample(cloud, solver=kind, n=3, sample_offset=6, **options)
        assert torch.equal(bases.draw(cloud, kind, basis(bases.PIXELS), 5, 3, 2), plain)


@pytest.mark.parametrize("name", NAMES)
def test_deterministic_samples_depend_on_no_basis(name, cloud):
    """Rotate DDIM: from rotated noise it ends at rotated samples, as E[x_0|x_t] rotates too."""
    x_T, matrix = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64), basis(name)
    options = {"solver": DDIM(), "clip": None, "dtype": torch.float64}
    plain = gms_fast.sample(cloud, 10, x_T=x_T, **options)
    turned = gms_fast.sample(bases.rotated(cloud, matrix), 10, x_T=bases.turned(x_T, matrix), **options)
    torch.testing.assert_close(bases.turned(turned, matrix.T), plain, rtol=0, atol=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_variances_are_those_along_the_basis(name, cloud):
    """Compare with the diagonal of Q^T Cov[x_0|x_t] Q, computed from the points in pixels."""
    x, t, matrix = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.full((3,), 500.0), basis(name)
    level = cloud.schedule.from_network_time(t)
    alpha, sigma = (float(f(level)[0]) for f in (cloud.schedule.alpha, cloud.schedule.sigma))
    spread = (alpha * cloud.bandwidth) ** 2 + sigma**2
    _, found = bases.rotated(cloud, matrix).data_moments(bases.turned(x, matrix), t, 2)
    for p, variance in zip(cloud.posterior(x, t), found, strict=True):
        away = cloud.data - p @ cloud.data
        own = (sigma * cloud.bandwidth) ** 2 / spread * torch.eye(64).double()
        covariance = (sigma**2 / spread) ** 2 * (away.T * p) @ away + own
        torch.testing.assert_close(variance.flatten(), (matrix.T @ covariance @ matrix).diagonal())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("solver", ["GMS", "SN-DDPM"])
def test_one_gaussian_is_drawn_exactly_in_every_basis(name, solver):
    """Check mean and covariance within four standard deviations of the sampling error.

    Steps with two moments are exact for independent normal elements, at any number of calls.
    """
    point = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    matrix, n = basis(name), 4000
    kind = bases.solver(solver, cells.gaussian(MODEL), matrix)
    z = (bases.draw(PointCloud(point, 0.1), kind, matrix, 5, n, 0) - point).flatten(1) / 0.1
    assert float(z.mean(0).abs().max()) < 4.5 / n**0.5
    assert float((torch.cov(z.T) - torch.eye(64)).abs().max()) < 4.5 * (2 / n) ** 0.5


def test_covariance_turns_with_the_cloud():
    gaussian, matrix = cells.gaussian(MODEL), basis(bases.DCT)
    turned = bases.solver(bases.TOGETHER, gaussian, matrix).covariance
    z = torch.randn(2, 1, 8, 8, dtype=torch.float64)
    wanted = bases.turned(gaussian.draw(bases.turned(z, matrix.T)), matrix)
    torch.testing.assert_close(turned.draw(z), wanted)


@pytest.mark.parametrize(
    ("matrix", "got"),
    [(torch.eye(64).double() * 1.01, "0.02"), (torch.eye(63).double(), "shape"), (torch.eye(64).double()[:, :9], "9")],
)
def test_what_is_no_basis_is_refused(matrix, got, cloud):
    with pytest.raises(ValueError, match=f"Q must be an orthonormal basis, .64, 64.: got .*{got}"):
        bases.rotated(cloud, matrix)


def test_rows_are_scored_as_cells_are_and_shown(monkeypatch, capsys):
    monkeypatch.setattr(bases, "ROWS", (("GMS", bases.PIXELS), (bases.TOGETHER, bases.HAAR)))
    records = bases.compared(MODEL, [3], 80, 2)
    assert [(r["solver"], r["basis"], r["calls"], r["range"]) for r in records[2:4]] == [
        ("GMS", "pixels", 3, 0), ("GMS", "pixels", 3, 1),
    ]  # fmt: skip
    last, exact = records[3], subjects.build(MODEL)
    cell = cells.Cell(MODEL, "gms:fit=free,component=element,clip_pixel=None", "angle", 2, 1)
    wanted = cells.measure(cells.samples(cell, exact, 80)[0], exact)
    assert {m: last[m] for m in bases.DECIMALS} == pytest.approx({m: wanted[m] for m in bases.DECIMALS}, rel=1e-3)
    lines = bases.table(records, "frechet").splitlines()
    assert lines[0] == "| solver | basis | 3 calls |"
    assert [line.split("|")[1].strip() for line in lines[2:]] == [bases.REAL, "GMS", bases.TOGETHER]
    assert " ±" in lines[3]


def committed(solver, basis, calls, measure="frechet"):
    """Return the mean over the ranges of the committed record."""
    records = json.loads((ROOT / "bench" / "results" / "bases.json").read_text())["records"]
    found = [r[measure] for r in records if (r["solver"], r["basis"], r["calls"]) == (solver, basis, calls)]
    assert len(found) == 3
    return statistics.fmean(found)


def test_committed_record_is_of_a_commit_and_complete():
    record = json.loads((ROOT / "bench" / "results" / "bases.json").read_text())
    assert "dirty" not in record["environment"]["commit"]
    assert {(r["solver"], r["basis"]) for r in record["records"]} == {*bases.ROWS, (bases.REAL, "")}


def test_local_bases_take_a_third_at_five_calls_and_the_covariance_most():
    pixels, haar, dct, eigenvectors = (committed("GMS", name, 5) for name in NAMES)
    assert max(haar, dct) < 0.7 * pixels
    assert min(haar, dct) > 0.6 * pixels
    assert eigenvectors < 0.25 * pixels


@pytest.mark.parametrize("calls", [3, 5, 10, 20])
def test_no_basis_beats_the_covariance_alone_or_behind_it(calls):
    alone = committed(bases.TOGETHER, bases.PIXELS, calls)
    rivals = [row for row in bases.ROWS if row[0] != "SN-DDPM" and row != (bases.TOGETHER, bases.PIXELS)]
    assert alone < min(committed(*row, calls) for row in rivals)
