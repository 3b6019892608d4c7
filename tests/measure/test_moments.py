"""Mean and scatter from parts, against all rows at once."""

from fractions import Fraction

import pytest
import torch

from gms_fast.measure.moments import Moments

FAR = [(0.0, 1.0), (1e3, 1e-2), (-1e6, 1e-3)]  # mean and spread of the rows


def rows(count, width, mean, std, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64) * std + mean


def moments(parts, width):
    found = Moments(width)
    for part in parts:
        found.add(part)
    return found


def exact(x):
    """The scatter of rows (N, 1), without rounding."""
    values = [Fraction(v) for v in x[:, 0].tolist()]
    mean = sum(values) / len(values)
    return float(mean), float(sum((v - mean) ** 2 for v in values))


@pytest.mark.parametrize(("mean", "std"), FAR)
@pytest.mark.parametrize("size", [1, 7, 300])
def test_parts_have_the_moments_of_all_rows_far_from_zero_too(mean, std, size):
    x = rows(300, 1, mean, std)
    found, (wanted, scatter) = moments(x.split(size), 1), exact(x)
    assert found.count == 300
    assert float(found.mean) == pytest.approx(wanted, rel=1e-15)
    assert float(found.scatter) == pytest.approx(scatter, rel=1e-12)


@pytest.mark.parametrize(("mean", "std"), FAR)
def test_merging_in_any_order_and_partition_gives_the_same(mean, std):
    """Results agree to 1e-12 of the largest variance.

    The rounding of 1,000 sums is 1e-16 sqrt(1000).
    """
    x, whole = rows(1000, 5, mean, std), moments([rows(1000, 5, mean, std)], 5)
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(1000, generator=generator)
        cuts = torch.randint(1, 60, (40,), generator=generator).cumsum(0)
        parts = [moments([x[some]], 5) for some in order.tensor_split(cuts[cuts < 1000])]
        while len(parts) > 1:  # in a tree of any shape
            one, other = torch.randperm(len(parts), generator=generator)[:2].tolist()
            parts[one].merge(parts[other])
            del parts[other]
        (found,) = parts
        torch.testing.assert_close(found.mean, whole.mean, rtol=1e-12, atol=1e-12 * std)
        largest = float(whole.scatter.diagonal().max())
        torch.testing.assert_close(found.scatter, whole.scatter, rtol=0, atol=1e-12 * largest)


def test_an_empty_part_changes_nothing():
    x = rows(10, 3, 1, 1)
    found = moments([x], 3)
    found.merge(Moments(3))
    empty = Moments(3)
    empty.merge(found)
    for some in (found, empty):
        assert some.count == 10
        assert torch.equal(some.scatter, moments([x], 3).scatter)
    empty.add(x + 1)
    assert torch.equal(found.mean, moments([x], 3).mean)  # a merge shares no memory with its parts
