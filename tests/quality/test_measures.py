"""Sample-quality measures against closed forms and brute force, and their errors."""

import math

import pytest
import torch

from gms_fast.quality import measures

MEASURES = ("sliced_wasserstein", "energy_distance", "frechet_distance", "kernel_distance", "precision_recall")


def points(n, d, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_wasserstein_of_a_shift_is_the_shift():
    x = points(500, 1)
    assert measures.wasserstein(x + 0.25, x) == pytest.approx(0.25, abs=1e-12)


def test_sliced_wasserstein_of_a_shift():
    """Compare with a closed form: the mean square of (a, u) over directions u is |a|^2/D."""
    x, a = points(300, 4), torch.tensor([3.0, -1.0, 0.5, 2.0], dtype=torch.float64)
    found = measures.sliced_wasserstein(x + a, x, projections=4000)
    # (a, u)^2/|a|^2 is Beta(1/2, 3/2) for D = 4: mean 1/4, variance 1/16; the root halves the relative error
    error = 5 * (0.25 / 0.25) / math.sqrt(4000) / 2
    assert found == pytest.approx(float(a.norm()) / 2, rel=error)


def test_energy_distance_of_two_normals():
    """Compare with 2 E|N(1, 2)| - 2 E|N(0, 2)|, within the spread over 20 pairs of sets."""
    shifted = 2 * (math.sqrt(4 / math.pi) * math.exp(-0.25) + math.erf(0.5))
    values = [measures.energy_distance(points(300, 1, i) + 1, points(300, 1, 100 + i)) for i in range(20)]
    mean, width = torch.tensor(values).mean(), torch.tensor(values).std() / math.sqrt(20)
    assert abs(mean - (shifted - 4 / math.sqrt(math.pi))) < 4 * width
    equal = torch.tensor([measures.energy_distance(points(300, 3, i), points(300, 3, 100 + i)) for i in range(20)])
    assert abs(equal.mean()) < 4 * equal.std() / math.sqrt(20)  # without bias


def test_frechet_distance_of_a_shift_and_of_a_scale():
    """Compare with |a|^2 for a shift, and with tr(S + 4S - 4S) = tr S for y = 2x about the mean."""
    x = points(400, 6) @ torch.diag(torch.arange(1.0, 7.0, dtype=torch.float64))
    a = torch.arange(6.0, dtype=torch.float64)
    assert measures.frechet_distance(x + a, x) == pytest.approx(float(a @ a), rel=1e-6)
    doubled = 2 * x - x.mean(0)
    assert measures.frechet_distance(doubled, x) == pytest.approx(float(torch.trace(torch.cov(x.T))), rel=1e-6)


def torchmetrics_frechet(x, y):
    from torchmetrics.image.fid import _compute_fid

    (mu, S), (nu, T) = ((z.mean(0), torch.cov(z.T).view(z.shape[1], -1)) for z in (x, y))
    return float(_compute_fid(mu, S, nu, T))


@pytest.mark.parametrize("width", [1, 3, 64])
def test_frechet_distance_is_that_of_torchmetrics(width):
    x, y = points(200, width, 1) @ points(width, width, 4), points(300, width, 2) + 0.1
    assert measures.frechet_distance(x, y) == pytest.approx(torchmetrics_frechet(x, y), rel=1e-9)


def test_frechet_distance_of_flat_data_keeps_its_digits():
    """Rotate flat data: the distance must keep its digits.

    Roots of the eigenvalues of S S' near zero would be off by 1e-8 of the largest.
    """
    x, y = points(300, 44, 1).relu(), 2 * points(300, 44, 2)
    turn = torch.linalg.qr(points(64, 64, 3)).Q
    turned = [torch.cat([z, torch.zeros(300, 20).double()], 1) @ turn for z in (x, y)]
    assert measures.frechet_distance(*turned) == pytest.approx(measures.frechet_distance(x, y), rel=1e-12)
    assert measures.frechet_distance(x, y) == pytest.approx(torchmetrics_frechet(x, y), rel=1e-9)
    one = torch.ones(100, 3).double()
    assert measures.frechet_distance(one, one + 2) == pytest.approx(12)
    assert measures.frechet_distance(x, x) < 1e-12


def test_kernel_distance_is_the_unbiased_mean_discrepancy():
    x, y = points(60, 5, 1), points(60, 5, 2) + 0.5
    kernel = [(a @ b.T / 5 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y))]
    inside = sum((k.sum() - k.trace()) / (60 * 59) for k in kernel[:2])
    assert measures.kernel_distance(x, y) == pytest.approx(float(inside - 2 * kernel[2].mean()), rel=1e-9)


def test_precision_and_recall_count_points_within_manifolds():
    x, y = points(70, 2, 3), 0.5 * points(80, 2, 4)

    def share(inner, outer):
        hits = 0
        for p in inner:
            radii = [sorted(float((q - r).norm()) for r in outer)[3] for q in outer]
            hits += any(float((p - q).norm()) <= r for q, r in zip(outer, radii, strict=True))
        return hits / len(inner)

    assert measures.precision_recall(x, y) == pytest.approx((share(x, y), share(y, x)))
    assert measures.precision_recall(x, x) == (1, 1)
    assert measures.precision_recall(x, y + 100) == (0, 0)


def test_faithfulness_is_the_mean_distance_to_the_guide():
    guide = points(10, 12).view(10, 3, 2, 2)
    x = guide.clone()
    x[:5, 0, 0, 0] += 3
    x[:5, 1, 1, 0] -= 4
    assert measures.faithfulness(x, guide) == pytest.approx(2.5)
    assert measures.faithfulness(guide, guide) == 0
    with pytest.raises(ValueError, match=r"x and guide must be of one shape: got \(10, 3, 2, 2\) and \(9, 3, 2, 2\)"):
        measures.faithfulness(x, guide[1:])


def test_moment_errors_of_a_shift_and_of_a_mirror():
    x = points(500, 3) ** 2
    mean, variance, third = measures.moment_errors(x + 2, x)
    assert (mean, variance, third) == pytest.approx((2, 0, 0), abs=1e-12)
    central = ((x - x.mean(0)) ** 3).mean(0)
    assert measures.moment_errors(-x, x)[1:] == pytest.approx(
        (0, float((2 * central).square().mean().sqrt())), abs=1e-12
    )


@pytest.mark.parametrize("name", MEASURES)
def test_bad_samples_are_refused_with_the_counts(name):
    measure, x = getattr(measures, name), points(200, 4)
    with pytest.raises(ValueError, match="x must have at least 50 rows: got 49"):
        measure(x[:49], x)
    with pytest.raises(ValueError, match="reference must have at least 50 rows: got 3"):
        measure(x, x[:3])
    broken = x.clone()
    broken[3, 1], broken[9] = math.nan, math.inf
    with pytest.raises(ValueError, match="x must be finite: 2 of 200 rows"):
        measure(broken, x)
    with pytest.raises(ValueError, match="one width: got 4 and 3"):
        measure(x, x[:, :3])
    with pytest.raises(ValueError, match=r"x must be \(N, D\)"):
        measure(x.view(50, 4, 4), x)


def test_a_covariance_needs_more_rows_than_columns():
    with pytest.raises(ValueError, match="reference must have more than 64 rows for a covariance: got 64"):
        measures.frechet_distance(points(100, 64), points(64, 64))


def test_numbers_alone_have_a_wasserstein_distance():
    with pytest.raises(ValueError, match=r"x must be \(N, 1\)"):
        measures.wasserstein(points(60, 2), points(60, 2))
