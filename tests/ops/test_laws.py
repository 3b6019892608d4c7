"""Distributions that the ops draw from: moments, frequencies, and the use of each uniform."""

import math

import pytest
import torch

from gms_fast import ops


@pytest.mark.parametrize("fit", ["exact", "free", "gaussian"])
@pytest.mark.parametrize("component", ["element", "sample"])
def test_sample_mixture_has_the_wanted_moments(fit, component):
    """Compare three moments of 2^18 independent draws, each within 5 of its standard errors."""
    shape = (64, 4096) if component == "element" else (1 << 18, 1)
    mean, var, third = 0.3, 0.5, 0.2  # skewness 0.66 of var - floor: just below what weight 1/3 can carry, 0.71
    x = ops.sample_mixture(
        *(torch.full(shape, v) for v in (mean, var, third)), 0.05, fit=fit, seed=5, component=component
    )
    centred = x.double() - mean
    for k, want in ((1, 0.0), (2, var), (3, 0.0 if fit == "gaussian" else third)):
        powers = centred**k
        assert abs(float(powers.mean()) - want) < 5 * float(powers.std()) / math.sqrt(powers.numel())


def narrow_mixture(shape, skew=9.0):
    """Mixture of two points at 0.5 +- d with a floor of 1e-6^2, whose sides identify components."""
    return [torch.full(shape, v) for v in (0.5, 1.0, skew)] + [1e-12]


@pytest.mark.parametrize(("fit", "weight"), [("exact", 1 / 3), ("exact", 0.2), ("free", (1 - 9 / math.sqrt(85)) / 2)])
@pytest.mark.parametrize("side", [1, -1])
def test_component_frequencies_are_the_weights(fit, weight, side):
    """Check that component a, the light one on the side of the skew, has frequency `weight`."""
    n = 1 << 18
    given = {} if fit == "free" else {"weight": weight}
    drawn = ops.sample_mixture(*narrow_mixture((16, n // 16), side * 9.0), fit=fit, seed=2, **given)
    light = side * (drawn - 0.5) > 0
    assert abs(float(light.double().mean()) - weight) < 5 * math.sqrt(weight * (1 - weight) / n)


@pytest.mark.parametrize("skew", [9.0, -9.0])
def test_free_draws_the_far_node_by_small_uniforms(skew):
    """Check that small uniforms draw the light node, which is below the mean for negative skew.

    It then uses the same uniforms as component a of fit="exact".
    """
    u = ops.philox_uniform((1000, 1), seed=3, step=4, stream=1).expand(-1, 50)
    options = {"seed": 3, "step": 4, "component": "sample", "fit": "free"}
    light = skew * (ops.sample_mixture(*narrow_mixture((1000, 50), skew), **options) - 0.5) > 0
    assert torch.equal(light, u < (1 - 9 / math.sqrt(85)) / 2)


def test_component_sample_uses_one_uniform_per_sample():
    above = ops.sample_mixture(*narrow_mixture((1000, 50)), seed=3, step=4, component="sample") > 0.5
    assert (above == above[:, :1]).all()
    u = ops.philox_uniform((1000, 1), seed=3, step=4, stream=1)
    assert torch.equal(above[:, :1], u < 1 / 3)
    assert 0 < int(above[:, 0].sum()) < 1000


def test_component_element_uses_one_uniform_per_element():
    above = ops.sample_mixture(*narrow_mixture((1000, 50)), seed=3, step=4, component="element") > 0.5
    assert torch.equal(above, ops.philox_uniform((1000, 50), seed=3, step=4, stream=1) < 1 / 3)
