"""The ops as PyTorch sees them: schemas, fakes, compilation, layouts, `out=`, refusals, and the laws they draw from."""

import math
from dataclasses import replace

import pytest
import torch

import gms_fast
from gms_fast import ops
from gms_fast.schedules import VPLinear

STEP = gms_fast.StepCoefficients.between(VPLinear(), 400, 300)
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "expanded": lambda t: t[:, :1].expand(-1, 3, -1, -1),
    "no_samples": lambda t: t[:0],
    "no_elements": lambda t: t[:, :0],
}
INPUTS = {"fit_mixture": 3, "sample_mixture": 3, "gms_step": 4, "gms_step_out": 4}


def tensors(count, dtype=torch.float32, layout="contiguous", shape=(2, 3, 4, 5)):
    generator = torch.Generator().manual_seed(0)
    return [LAYOUTS[layout](torch.rand(shape, generator=generator).to(dtype)) for _ in range(count)]


def gms_step(x, e1, e2, e3, step=STEP, **options):
    return ops.gms_step(x, e1, e2, e3, step, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("op", INPUTS)
def test_op_passes_opcheck(op, layout, dtype):
    arguments, options = tensors(INPUTS[op], dtype, layout), {}
    if op.startswith("gms_step"):
        arguments.append(STEP.as_list())
    if op == "gms_step_out":
        options["out"] = torch.empty_like(arguments[0])
    torch.library.opcheck(getattr(torch.ops.gms_fast, op).default, tuple(arguments), options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["philox_normal", "philox_uniform"])
def test_philox_passes_opcheck(op, dtype):
    for shape, seeds in (([2, 3, 5], None), ([2, 5], torch.tensor([1, 2])), ([0, 5], None)):
        options = {"dtype": dtype, "seeds": seeds}
        torch.library.opcheck(getattr(torch.ops.gms_fast, op).default, (shape,), options)


def test_compiled_function_equals_eager():
    def update(x, e):
        x_s = gms_step(x, e, e * e + 0.5, e**3, seed=3, step_index=1)
        return x_s + ops.philox_normal(x.shape, seed=4)

    x, e = tensors(2)
    compiled = torch.compile(update, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, e), update(x, e))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded"])
def test_values_do_not_depend_on_the_layout(layout, dtype):
    moved = tensors(4, dtype, layout)
    plain = [t.contiguous() for t in moved]
    assert not moved[0].is_contiguous()
    for fit in ("exact", "free"):
        assert torch.equal(gms_step(*moved, fit=fit), gms_step(*plain, fit=fit))
        assert torch.equal(ops.sample_mixture(*moved[:3], fit=fit), ops.sample_mixture(*plain[:3], fit=fit))
        for a, b in zip(ops.fit_mixture(*moved[:3], fit=fit), ops.fit_mixture(*plain[:3], fit=fit), strict=True):
            assert torch.equal(a, b)
            assert a.is_contiguous()
            assert a.dtype == dtype


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided"])
def test_out_receives_the_result(layout, dtype):
    inputs = tensors(4, dtype)
    out = torch.full_like(LAYOUTS[layout](inputs[0]), math.nan)
    assert gms_step(*inputs, out=out) is out
    assert torch.equal(out, gms_step(*inputs))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
@pytest.mark.parametrize("target", [0, 1, 2, 3])
def test_out_may_be_any_input(layout, dtype, target):
    inputs = [t.clone() for t in tensors(4, dtype, layout)]
    want = gms_step(*inputs)
    assert torch.equal(gms_step(*inputs, out=inputs[target]), want)


def test_given_noise_is_used():
    x, e1, e2, e3, z = tensors(5)
    still, u = torch.zeros_like(x), torch.zeros(2)
    k = {"fit": "gaussian", "component": "sample", "clip": None}
    std = (STEP.c + STEP.B**2 * (STEP.sigma_t / STEP.alpha_t) ** 2 * (e2 - e1**2).clamp(min=0)).sqrt()
    moved = gms_step(x, e1, e2, e3, noise=(z, u), **k) - gms_step(x, e1, e2, e3, noise=(still, u), **k)
    torch.testing.assert_close(moved, std * z, rtol=0, atol=16 * 2**-23)  # a difference of numbers of size 2
    assert torch.equal(gms_step(x, e1, e2, e3, noise=(z, None), **k), gms_step(x, e1, e2, e3, noise=z, **k))


def test_gradients_are_refused():
    x, *moments = tensors(4)
    x.requires_grad_()
    for call in (
        lambda: gms_step(x, *moments),
        lambda: gms_step(moments[0], x, *moments[1:], out=torch.empty(2, 3, 4, 5)),
        lambda: ops.fit_mixture(x, *moments[:2]),
        lambda: ops.sample_mixture(moments[0], moments[1], x),
    ):
        with pytest.raises(RuntimeError, match="forward only"):
            call()
        with torch.no_grad():
            call()
    assert not gms_step(x.detach(), *moments).requires_grad


NAN = math.nan
X = torch.rand(2, 3)
REFUSALS = {
    "var shape": (
        lambda: ops.fit_mixture(X, X[:1], X),
        ValueError,
        r"var must match mean: got \(1, 3\), want \(2, 3\)",
    ),
    "third shape": (lambda: ops.sample_mixture(X, X, X[:, :2]), ValueError, r"third must match mean: got \(2, 2\)"),
    "e1 shape": (lambda: gms_step(X, X[0], X, X), ValueError, r"e1 must match x: got \(3,\)"),
    "e3 shape": (lambda: gms_step(X, X, X, X[:1]), ValueError, r"e3 must match x: got \(1, 3\)"),
    "integers": (lambda: ops.fit_mixture(X.int(), X, X), TypeError, "mean must be float32.* got torch.int32"),
    "complex": (lambda: gms_step(X, X, X + 0j, X), TypeError, "e2 must be float32.* got torch.complex64"),
    "scalar": (lambda: ops.fit_mixture(*[torch.tensor(1.0)] * 3), ValueError, r"mean must be \(B, \*\).* got a scalar"),
    "scalar x": (lambda: gms_step(*[torch.tensor(1.0)] * 4), ValueError, r"x must be \(B, \*\).* got a scalar"),
    "weight 0": (lambda: ops.fit_mixture(X, X, X, weight=0), ValueError, r"weight must lie in \(0, 1\): got 0"),
    "weight 1": (lambda: gms_step(X, X, X, X, weight=1), ValueError, r"weight must lie in \(0, 1\): got 1"),
    "weight NaN": (lambda: ops.sample_mixture(X, X, X, weight=NAN), ValueError, r"weight must lie in .* got nan"),
    "weight 1/2": (lambda: ops.fit_mixture(X, X, X, weight=0.5), ValueError, "weight must not be 1/2"),
    "weight 1/2, free": (lambda: gms_step(X, X, X, X, weight=0.5, fit="free"), ValueError, "weight must not be 1/2"),
    "fit": (lambda: ops.fit_mixture(X, X, X, fit="best"), ValueError, "fit must be one of exact, .* got 'best'"),
    "component": (
        lambda: gms_step(X, X, X, X, component="image"),
        ValueError,
        "component must be one of .* got 'image'",
    ),
    "moments": (lambda: gms_step(X, X, X, X, moments="raw"), ValueError, "moments must be one of .* got 'raw'"),
    "iterations": (
        lambda: ops.fit_mixture(X, X, X, iterations=-1),
        ValueError,
        "iterations must not be negative: got -1",
    ),
    "floor": (lambda: ops.fit_mixture(X, X, X, -1.0), ValueError, "floor must be finite and not negative: got -1"),
    "floor NaN": (lambda: ops.sample_mixture(X, X, X, NAN), ValueError, "floor must be .* got nan"),
    "floor infinite": (lambda: ops.fit_mixture(X, X, X, math.inf), ValueError, "floor must be .* got inf"),
    "clip": (
        lambda: gms_step(X, X, X, X, clip=(1, -1)),
        ValueError,
        r"clip must be \(lo, hi\) with lo < hi, or None: got \(1",
    ),
    "clip empty": (lambda: gms_step(X, X, X, X, clip=(0, 0)), ValueError, "clip must be"),
    "clip NaN": (lambda: gms_step(X, X, X, X, clip=(NAN, 1)), ValueError, "clip must be .* got"),
    "NaN numbers": (lambda: gms_step(X, X, X, X, replace(STEP, A=NAN)), ValueError, "coefficients .* finite: got"),
    "no e2": (lambda: gms_step(X, X, None, X), ValueError, "e2 must be given for fit='exact'"),
    "no e3": (lambda: gms_step(X, X, X, None, fit="free"), ValueError, "e3 must be given for fit='free'"),
    "no e2, released": (
        lambda: gms_step(X, X, None, None, fit="gaussian", moments="released"),
        ValueError,
        'e2 must be given for moments="released"',
    ),
    "z shape": (lambda: gms_step(X, X, X, X, noise=X[:1]), ValueError, r"noise z must match .* got \(1, 3\)"),
    "z dtype": (lambda: gms_step(X, X, X, X, noise=X.int()), TypeError, "noise z must be float32.* got torch.int32"),
    "u per sample": (lambda: gms_step(X, X, X, X, noise=(X, X)), ValueError, r"noise u .* one uniform per sample"),
    "u per element": (
        lambda: gms_step(X, X, X, X, component="element", noise=(X, X[:, 0])),
        ValueError,
        r"noise u must match .* got \(2,\), want \(2, 3\)",
    ),
    "seeds": (
        lambda: ops.sample_mixture(X, X, X, seed=[1, 2, 3]),
        ValueError,
        r"seeds must be \(2,\) int64.* got \(3,\)",
    ),
    "seeds dtype": (lambda: gms_step(X, X, X, X, seed=torch.ones(2)), TypeError, "seed must be .* got torch.float32"),
    "seed": (lambda: gms_step(X, X, X, X, seed=0.5), TypeError, "seed must be an integer"),
    "seed range": (lambda: gms_step(X, X, X, X, seed=1 << 64), ValueError, "seed must fit in 64 bits"),
    "step": (lambda: gms_step(X, X, X, X, step_index=-1), ValueError, "step must lie in"),
    "sample_offset": (lambda: gms_step(X, X, X, X, sample_offset=-1), ValueError, "sample_offset must lie in"),
    "out shape": (lambda: gms_step(X, X, X, X, out=torch.empty(3, 2)), ValueError, r"out must match x: got \(3, 2\)"),
    "out dtype": (
        lambda: gms_step(X, X, X, X, out=X.double()),
        TypeError,
        "out must have x's dtype: got torch.float64",
    ),
    "shape": (lambda: ops.philox_normal((), seed=0), ValueError, r"shape must be \(B, \*\)"),
    "negative size": (lambda: ops.philox_uniform((2, -1), seed=0), ValueError, r"shape must be .* got \(2, -1\)"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_argument_is_named(case):
    call, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        call()


def test_symmetric_weight_suits_fits_without_a_third_moment():
    for fit in ("gaussian", "adan"):
        assert torch.isfinite(gms_step(X, X, X, X, fit=fit, weight=0.5)).all()


def test_refused_out_is_left_alone():
    out = torch.full((2, 3), 7.0)
    with pytest.raises(ValueError, match="weight"):
        gms_step(X, X, X, X, weight=2, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("fit", ["exact", "free", "gaussian"])
@pytest.mark.parametrize("component", ["element", "sample"])
def test_sample_mixture_has_the_wanted_moments(fit, component):
    """Mean, variance and third central moment over 2^18 independent draws, each within 5 of its standard errors."""
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
    """Where the components are two points 0.5 +- something, but for a floor of 1e-6^2: `above` tells them apart."""
    return [torch.full(shape, v) for v in (0.5, 1.0, skew)] + [1e-12]


@pytest.mark.parametrize(("fit", "weight"), [("exact", 1 / 3), ("exact", 0.2), ("free", (1 - 9 / math.sqrt(85)) / 2)])
def test_component_frequencies_are_the_weights(fit, weight):
    """Component a, the one above the mean for positive skew, is drawn with probability `weight`."""
    n = 1 << 18
    given = {} if fit == "free" else {"weight": weight}
    above = ops.sample_mixture(*narrow_mixture((16, n // 16)), fit=fit, seed=2, **given) > 0.5
    assert abs(float(above.double().mean()) - weight) < 5 * math.sqrt(weight * (1 - weight) / n)


def test_component_sample_uses_one_uniform_per_sample():
    above = ops.sample_mixture(*narrow_mixture((1000, 50)), seed=3, step=4, component="sample") > 0.5
    assert (above == above[:, :1]).all()
    u = ops.philox_uniform((1000, 1), seed=3, step=4, stream=1)
    assert torch.equal(above[:, :1], u < 1 / 3)
    assert 0 < int(above[:, 0].sum()) < 1000


def test_component_element_uses_one_uniform_per_element():
    above = ops.sample_mixture(*narrow_mixture((1000, 50)), seed=3, step=4, component="element") > 0.5
    assert torch.equal(above, ops.philox_uniform((1000, 50), seed=3, step=4, stream=1) < 1 / 3)
