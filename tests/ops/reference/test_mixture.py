"""Reference fits: moments of the mixtures, and the recorded numbers of the released one."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from parity import check_light_component, check_missing, check_missing_in_steps
from places import VECTORS

import gms_fast
from bench.faults.random_fits import Problem, in_units_of_the_bound
from gms_fast import ops
from gms_fast.ops import native

DTYPES = [torch.float64, torch.float32]  # the reference itself, and the compiled kernels


def moments_of(mixture):
    """Return mean, variance and third central moment of a mixture, in float64."""
    w, a, b, v = (t.double() for t in mixture)
    mean = w * a + (1 - w) * b
    p, q = a - mean, b - mean
    var = w * p**2 + (1 - w) * q**2 + v
    return mean, var, w * (p**3 + 3 * p * v) + (1 - w) * (q**3 + 3 * q * v)


def tensors(dtype, *values):
    return [torch.tensor([[v]], dtype=dtype) for v in values]


scales = st.floats(-12, 6).map(lambda e: 10.0**e)
skews = st.one_of(st.floats(-3, 3), st.floats(-1e4, 1e4), st.just(0.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fit", ["exact", "free"])
@given(mean=st.floats(-1, 1), scale=scales, skew=skews, floor=st.sampled_from([0.0, 0.1, 0.9, 1.0]))
@settings(max_examples=200, deadline=None)
def test_fit_matches_mean_and_variance_and_third_moment_where_feasible(dtype, fit, mean, scale, skew, floor):
    var = scale**2
    moments = tensors(dtype, mean * scale, var, skew * (var - floor * var) ** 1.5)
    floor = torch.tensor(floor * var, dtype=dtype).item()
    mixture = ops.fit_mixture(*moments, floor, fit=fit)
    given = Problem(fit, 1 / 3, floor, *moments)
    assert all(float(error) <= 1 for error in in_units_of_the_bound(mixture, given).values())
    assert (mixture.var >= floor).all()


@pytest.mark.parametrize("backend", ["torch", *["cpp"] * native.available])
@pytest.mark.parametrize("mean", [0.0, 0.3])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_free_keeps_all_digits_of_the_light_component_on_either_side(backend, mean, floor):
    gms_fast.set_backend(backend)
    try:
        check_light_component(mean, floor)
    finally:
        gms_fast.set_backend(None)


def test_missing_moments_on_plain_torch():
    gms_fast.set_backend("torch")
    try:
        check_missing()
        check_missing_in_steps()
    finally:
        gms_fast.set_backend(None)


@pytest.mark.parametrize("fit", ["exact", "free", "gaussian", "adan"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fit_is_finite_at_the_edges(fit, dtype):
    tiny = torch.finfo(dtype).smallest_normal
    values = [0.0, tiny, tiny / 2**10, 1e-12, 1.0, 1e6]
    grid = [(m, v, t) for m in (0.0, -1.0, 1e6) for v in values for s in values for t in (s, -s)]
    mean, var, third = torch.tensor(grid, dtype=dtype).T.contiguous()
    for floor in (0.0, 1e-3):
        for field in ops.fit_mixture(mean[None], var[None], third[None], floor, fit=fit, iterations=3):
            assert torch.isfinite(field).all()


def test_fit_at_the_floor_is_one_gaussian():
    mean, var, third = tensors(torch.float64, 0.3, 0.25, 7.0)
    for fit in ("exact", "free"):
        mixture = ops.fit_mixture(mean, var, third, 0.25, fit=fit)
        assert mixture.mean_a == mixture.mean_b == mean
        assert mixture.var == var


def test_fit_below_the_floor_keeps_the_variance():
    mixture = ops.fit_mixture(*tensors(torch.float64, 0.3, 0.1, 7.0), 0.25)
    assert mixture.var.item() == 0.1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fit", ["exact", "free", "gaussian", "adan"])
def test_negative_variance_counts_as_zero(fit, dtype):
    mean, var, third = tensors(dtype, 0.3, -1e-9, 7.0)
    for floor in (0.0, 0.1):
        want = ops.fit_mixture(mean, 0 * var, third, floor, fit=fit)
        assert all(map(torch.equal, ops.fit_mixture(mean, var, third, floor, fit=fit), want))
        drawn = ops.sample_mixture(mean, var, third, floor, fit=fit)
        assert torch.equal(drawn, ops.sample_mixture(mean, 0 * var, third, floor, fit=fit))


@pytest.mark.parametrize("weight", [1e-6, 1 - 1e-6, 0.5 - 2.0**-20, 0.5 + 2.0**-20])
@pytest.mark.parametrize("fit", ["exact", "free"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_moments_are_of_the_weight_that_is_stored(dtype, fit, weight):
    """Fit with a weight that float32 rounds, so that 1 - w or 1 - 2w changes by a hundredth."""
    moments = tensors(dtype, 0.0, 1.0, -1e-7)
    given = Problem(fit, weight, 0.0, *moments)
    mixture = ops.fit_mixture(*moments, fit=fit, weight=weight)
    assert all(float(error) <= 1 for error in in_units_of_the_bound(mixture, given).values())


def test_exact_keeps_as_much_skewness_as_the_weight_allows():
    mixture = ops.fit_mixture(*tensors(torch.float64, 0.0, 1.0, 5.0))
    assert mixture.var.item() == 0
    assert moments_of(mixture)[2].item() == pytest.approx((1 - 2 / 3) / math.sqrt(2 / 9), rel=1e-12)


@pytest.mark.parametrize("weight", [0.1, 1 / 3, 0.8])
def test_exact_reproduces_three_moments_for_any_weight(weight):
    mixture = ops.fit_mixture(*tensors(torch.float64, 0.1, 0.5, 0.05), weight=weight)
    assert [m.item() for m in moments_of(mixture)] == pytest.approx([0.1, 0.5, 0.05], rel=1e-12)


def test_free_and_exact_agree_where_exact_is_feasible():
    arguments = tensors(torch.float64, 0.1, 0.5, 0.05)
    for a, b in zip(ops.fit_mixture(*arguments, fit="free"), ops.fit_mixture(*arguments), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("iterations", "key", "tolerance"), [(30, "after_30", 1e-11), (70, "after_70", 1e-5)])
def test_adan_reproduces_the_released_optimiser(iterations, key, tolerance):
    vectors = json.loads((VECTORS / "gms_fit_vectors.json").read_text())
    mean, var, raw = (torch.tensor(vectors[k], dtype=torch.float64)[None] for k in ("mean", "var", "third_raw"))
    third = raw - 3 * mean * var - mean**3
    fit = ops.fit_mixture(mean, var, third, fit="adan", iterations=iterations, eps=1e-8 * vectors["n"])
    for got, name in ((fit.mean_a, "mu_a"), (fit.mean_b, "mu_b"), (fit.var / var, "beta")):
        want = torch.tensor(vectors[key][name], dtype=torch.float64)[None]
        torch.testing.assert_close(got, want, atol=tolerance, rtol=0)


def test_adan_gradients_are_those_of_autograd():
    torch.manual_seed(0)
    mean, var, third = torch.randn(1, 20).double(), torch.rand(1, 20).double() + 0.1, torch.randn(1, 20).double()
    w, eps, lr = 1 / 3, 1e-8, 0.06
    a, b, beta = (t.requires_grad_() for t in (mean.clone(), mean - 1e-3, torch.full_like(mean, 0.998)))
    v = var * beta.clamp(0.1, 1.2)
    e0 = w * a + (1 - w) * b - mean
    e1 = w * (a**2 + v) + (1 - w) * (b**2 + v) - (mean**2 + var)
    e2 = w * (a**3 + 3 * a * v) + (1 - w) * (b**3 + 3 * b * v) - (third + 3 * mean * var + mean**3)
    (e0**2 + e1**2 + e2**2).sum().backward()
    # Adan's first step moves each unknown by lr g / (|g| + eps) (its three averages are then g, 0 and |g|).
    moved = [(t - lr * t.grad / (t.grad.abs() + eps)).detach() for t in (a, b, beta)]
    got = ops.fit_mixture(mean, var, third, fit="adan", iterations=1)
    torch.testing.assert_close(got.mean_a, moved[0], atol=1e-9, rtol=0)
    torch.testing.assert_close(got.mean_b, moved[1], atol=1e-9, rtol=0)
    torch.testing.assert_close(got.var, var * moved[2].clamp(0.1, 1.2), atol=1e-9, rtol=0)
