"""Gauss quadrature from moments: exactness, classical rules, degenerate and impossible laws."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gms_fast import ops
from gms_fast.ops import reference
from gms_fast.ops.reference.quadrature import pick, quadrature

pytestmark = pytest.mark.usefixtures("one_thread")


def tensor(values):
    return torch.as_tensor(values, dtype=torch.float64)


def central_moments(weights, points, order):
    """Return mean and central moments 2..order of discrete laws (*, n)."""
    mean = (weights * points).sum(-1, keepdim=True)
    return [mean[..., 0], *((weights * (points - mean) ** k).sum(-1) for k in range(2, order + 1))]


def law(points, masses):
    weights = tensor(masses)
    return weights / weights.sum(), tensor(points)


def assert_same_moments(rule, moments, rtol):
    """Compare central moments, to rtol on the scale of the law's std and its largest node."""
    got = central_moments(*rule, len(moments))
    for order, (g, w) in enumerate(zip(got, moments, strict=True), start=1):
        size = (rule[0] * (rule[1] - moments[0][..., None]).abs() ** order).sum(-1)
        slack = rtol * (size + moments[1].clamp(min=0) ** (order / 2)) + 1e-15 * moments[0].abs() ** order + 1e-300
        assert ((g - w).abs() <= slack).all(), (order, g, w)


LAWS = st.integers(2, 8).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(-1, 1), min_size=k, max_size=k),
        st.lists(st.floats(0.01, 1), min_size=k, max_size=k),
    )
)


@pytest.mark.parametrize("nodes", [2, 3, 4])
@given(law_=LAWS, shift=st.sampled_from([0.0, 10.0]), scale=st.sampled_from([1.0, 1e-3, 1e6]))
@settings(max_examples=300, deadline=None)
def test_polynomials_integrate_exactly(nodes, law_, shift, scale):
    """Test degrees up to 2n - 1, for laws of fewer than n points, nearly fewer, n and more."""
    weights, points = law(*law_)
    moments = central_moments(weights, scale * points, 2 * nodes - 1)
    moments[0] = moments[0] + shift * scale
    rule = quadrature(moments, nodes)
    assert torch.isfinite(rule[1]).all()
    assert (rule[0] >= 0).all()
    assert rule[0].sum().item() == pytest.approx(1, abs=1e-14)
    assert (rule[1].diff() >= 0).all()
    assert_same_moments(rule, moments, 1e-6 if nodes > 2 else 1e-10)


@given(law_=LAWS)
@settings(max_examples=300, deadline=None)
def test_nodes_lie_within_the_data(law_):
    """Check that nodes lie strictly inside, as theory says.

    A third node needs `node_range` where the law nearly has two points only.
    """
    weights, points = law(*law_)
    moments = central_moments(weights, points, 5)
    low, high = points.min().item(), points.max().item()
    _, nodes = quadrature(moments, 2)
    assert low - 1e-7 <= nodes.min() <= nodes.max() <= high + 1e-7
    weights, nodes = quadrature(moments, 3, node_range=(-1.0, 1.0))
    assert nodes.abs().max() <= 1
    assert_same_moments((weights, nodes), moments, 1e-6)


@pytest.mark.parametrize("nodes", [1, 2, 3, 4, 5])
def test_known_rules(nodes):
    """Compare with Legendre, for the uniform law on [-1, 1], and Hermite, for the normal law."""
    uniform = [tensor(0.0), *(tensor((k % 2 == 0) / (k + 1)) for k in range(2, 2 * nodes))]
    normal = [tensor(0.0), *(tensor((k % 2 == 0) * float(math.prod(range(k - 1, 0, -2)))) for k in range(2, 2 * nodes))]
    hermite = np.polynomial.hermite_e.hermegauss(nodes)
    for moments, (points, masses) in ((uniform, np.polynomial.legendre.leggauss(nodes)), (normal, hermite)):
        weights, got = quadrature(moments, nodes)
        torch.testing.assert_close(got, tensor(points), rtol=0, atol=1e-11)
        torch.testing.assert_close(weights, tensor(masses / masses.sum()), rtol=0, atol=1e-11)


@given(
    mean=st.floats(-1, 1),
    scale=st.floats(-6, 3).map(lambda e: 10.0**e),
    skew=st.floats(0.75, 1e4),
    up=st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_two_nodes_are_the_free_fit(mean, scale, skew, up):
    """Use laws that change the weight: those of skewness 0.71 and more."""
    moments = tensor([[mean * scale], [scale**2], [(skew if up else -skew) * scale**3]])
    free = ops.fit_mixture(*moments[:, None], fit="free")
    (w,), (nodes,) = quadrature(list(moments), 2)
    heavy, light = (0, 1) if up else (1, 0)
    ours = torch.cat([free.mean_b, free.mean_a])[:, 0]
    torch.testing.assert_close(nodes[[heavy, light]], ours, rtol=0, atol=1e-14 * scale * skew)
    torch.testing.assert_close(w[light], free.weight[0, 0], rtol=0, atol=1e-15)


def test_two_nodes_in_a_range_are_those_of_the_free_fit():
    """Compare the bounds: Bhatia-Davis for the variance, eq. 6 for the third moment."""
    torch.manual_seed(0)
    m, third = tensor(torch.rand(500) * 2 - 1), tensor(torch.randn(500))
    v = torch.minimum(tensor(torch.rand(500)), (m + 1) * (1 - m))
    rest = {"weight": 1 / 3, "iterations": 0, "lr": 0.0, "eps": 0.0}
    w, a, b, var = reference.fit_mixture(m, 0 * m, v, third, "free", node_range=(m + 1, 1 - m), **rest)
    two_points = var == 0
    assert two_points.sum() > 100
    weights, nodes = quadrature([m, v, third], 2, node_range=(-1.0, 1.0))
    want, order = torch.stack([a, b], -1).sort(-1)
    torch.testing.assert_close(nodes[two_points], want[two_points], rtol=0, atol=1e-7)
    torch.testing.assert_close((weights * nodes).sum(-1), m, rtol=0, atol=1e-14)
    ours = torch.stack([w, 1 - w], -1).gather(-1, order)
    torch.testing.assert_close(weights[two_points], ours[two_points], rtol=0, atol=1e-6)


@pytest.mark.parametrize("nodes", [2, 3, 4])
@pytest.mark.parametrize("mean", [0.0, -0.3, 1e6])
def test_no_variance_is_one_point(nodes, mean):
    weights, got = quadrature([tensor([mean]), *[tensor([0.0])] * (2 * nodes - 2)], nodes)
    assert (got == mean).all()
    assert weights.sum().item() == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize("nodes", [3, 4, 5])
@pytest.mark.parametrize("light", [0.5, 0.1, 1e-4])
def test_two_point_laws_keep_their_points(nodes, light):
    rule = law([-0.7, 0.4], [1 - light, light])
    weights, got = quadrature(central_moments(*rule, 2 * nodes - 1), nodes)
    seen = weights > 1e-9
    torch.testing.assert_close(got[seen], rule[1], rtol=0, atol=1e-9)
    torch.testing.assert_close(weights[seen], rule[0], rtol=0, atol=1e-9)


@pytest.mark.parametrize("nodes", [2, 3, 4])
def test_any_moments_give_a_law(nodes):
    """Use moments of no law, at the ends of float64.

    The nodes must be finite, and in the range if one is given; the mean is kept.
    """
    tiny, huge = 2.0**-1022, 1e60
    values = tensor([0.0, tiny, tiny / 2**20, 1e-30, 1e-3, 1.0, 3.0, huge])
    signed = torch.cat([values, -values])
    grid = torch.cartesian_prod(values, *[signed] * (min(nodes, 3) * 2 - 3))
    rest = [signed[torch.arange(len(grid)) % 16]] * (2 * nodes - 1 - grid.shape[1] - 1)
    moments = [tensor(torch.full((len(grid),), 0.25)), *grid.T, *rest]
    for node_range in (None, (-1.0, 1.0), (0.25, 1.0)):
        weights, got = quadrature(moments, nodes, node_range)
        assert torch.isfinite(got).all()
        assert torch.isfinite(weights).all()
        torch.testing.assert_close(weights.sum(-1), torch.ones(len(grid), dtype=torch.float64), rtol=0, atol=1e-14)
        if node_range is not None:
            assert ((got >= node_range[0]) & (got <= node_range[1])).all()
            torch.testing.assert_close((weights * got).sum(-1), moments[0], rtol=0, atol=1e-8)


def test_too_few_moments_are_refused():
    with pytest.raises(ValueError, match="3 nodes need nodes >= 1 and 5 moments: got 4"):
        quadrature([tensor([0.0])] * 4, 3)


def test_nodes_are_picked_with_their_weights():
    weights, nodes = tensor([0.2, 0.5, 0.3]).expand(1000, 3), tensor([-1.0, 0.0, 2.0]).expand(1000, 3)
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    got = pick(weights, nodes, u)
    assert [(got == node).sum().item() for node in (-1, 0, 2)] == [200, 500, 300]
    both = pick(weights.view(500, 2, 3), nodes.view(500, 2, 3), u[::2, None])
    assert torch.equal(both[:, 0], both[:, 1])  # one uniform a sample
    assert pick(weights[:1], nodes[:1], tensor([1.0])).item() == 2
