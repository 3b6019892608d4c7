"""The ops as PyTorch sees them: schemas, fakes, compilation, layouts, `out=`, refusals, and the laws they draw from."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

import gms_fast
from gms_fast import ops
from gms_fast.ops import native
from gms_fast.schedules import VPLinear

STEP = gms_fast.StepCoefficients.between(VPLinear(), 400, 300)
# Bits are a promise of the compiled kernels: plain torch rounds as its own vectors happen to lie.
compiled = pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "expanded": lambda t: t[:, :1].expand(-1, 3, -1, -1),
    "channels": lambda t: torch.cat([t, t], dim=1)[:, :3],  # of a network with more outputs
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "no_samples": lambda t: t[:0],
    "no_elements": lambda t: t[:, :0],
}
INPUTS = {
    "fit_mixture": 3,
    "sample_mixture": 3,
    "gms_step": 4,
    "gms_step_out": 4,
    "affine_noise": 3,
    "affine_noise_out": 3,
}


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
    if op.startswith("affine_noise"):
        arguments = [arguments[0], arguments[1:], [0.5, -2.0, 0.25], 0.3]
    if op.endswith("_out"):
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


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["channels_last", "strided", "expanded", "channels", "transposed"])
def test_values_do_not_depend_on_the_layout(layout, dtype):
    moved = tensors(4, dtype, layout)
    plain = [t.contiguous() for t in moved]
    assert not moved[0].is_contiguous()
    for fit in ("exact", "free"):
        assert torch.equal(gms_step(*moved, fit=fit), gms_step(*plain, fit=fit))
        assert torch.equal(ops.sample_mixture(*moved[:3], fit=fit), ops.sample_mixture(*plain[:3], fit=fit))
        for a, b in zip(ops.fit_mixture(*moved[:3], fit=fit), ops.fit_mixture(*plain[:3], fit=fit), strict=True):
            assert torch.equal(a, b)
            assert a.stride() == torch.empty_like(moved[0]).stride()
            assert a.dtype == dtype
        mixed = [moved[0], plain[1], moved[2], plain[3]]
        assert torch.equal(gms_step(*mixed, fit=fit), gms_step(*plain, fit=fit))
    terms, weights = moved[1:], [0.5, -2.0, 0.25, 1.0]
    got = ops.affine_noise(moved[0], terms, weights, 0.3, seed=4)
    assert torch.equal(got, ops.affine_noise(plain[0], plain[1:], weights, 0.3, seed=4))


def test_layouts_of_many_dimensions_are_copied():
    """Where no three strides tell where elements lie."""
    x = torch.rand(2, 3, 4, 5, 6, 2)[..., 0].permute(0, 4, 2, 3, 1)
    moved = [x, *(torch.rand(2, 6, 4, 5, 3) for _ in range(3))]
    assert torch.equal(gms_step(*moved), gms_step(*(t.contiguous() for t in moved)))
    out = torch.empty(2, 3, 4, 5, 6, 2)[..., 0].permute(0, 4, 2, 3, 1)
    assert torch.equal(gms_step(*moved, out=out), gms_step(*moved))


@pytest.mark.parametrize("into", DTYPES)
def test_out_of_another_dtype_is_rounded_once(into):
    x, *moments = tensors(4)
    out = torch.empty_like(x, dtype=into)
    gms_step(x, *moments, out=out)
    want = gms_step(*(t.double() for t in (x, *moments))) if into == torch.float64 else gms_step(x, *moments).to(into)
    assert torch.equal(out, want)


def test_negative_bit_is_resolved():
    x, e1, e2, e3 = tensors(4)
    for negated in (torch.complex(e1, -x).conj().imag, torch._neg_view(-x)):
        assert negated.is_neg()
        assert torch.equal(gms_step(negated, e1, e2, e3), gms_step(x, e1, e2, e3))
        assert torch.equal(gms_step(e1, e1, e2, e3, noise=negated), gms_step(e1, e1, e2, e3, noise=x))
        with pytest.raises(ValueError, match="out must not be a lazy negation"):
            gms_step(x, e1, e2, e3, out=negated)


def test_out_over_anything_that_is_read_gives_the_same_result():
    """Whatever storage holds it: inputs and draws that `out` lies over are copied first."""
    x, e1, e2, e3 = (t.flatten(1) for t in tensors(4, shape=(2, 300)))
    z, u = torch.randn(2, 300), torch.rand(2, 300)
    want = gms_step(x, e1, e2, e3, noise=(z, u), component="element")
    for read in range(6):
        memory = np.zeros((2, 301), dtype=np.float32)
        over, out = torch.from_numpy(memory[:, :300]), torch.from_numpy(memory[:, 1:])
        arguments = [x, e1, e2, e3, z, u]
        arguments[read] = over.copy_(arguments[read])
        gms_step(*arguments[:4], noise=tuple(arguments[4:]), component="element", out=out)
        assert torch.equal(out, want)
    seeds = torch.tensor([3, 4])
    want = gms_step(x[:, :2], e1[:, :2], e2[:, :2], e3[:, :2], seed=seeds)
    out = seeds.view(torch.float32).view(2, 2)
    assert torch.equal(gms_step(x[:, :2], e1[:, :2], e2[:, :2], e3[:, :2], seed=seeds, out=out), want)


def test_writing_to_out_is_seen_by_autograd():
    x, *moments = tensors(4)
    w, out = torch.rand_like(x, requires_grad=True), torch.rand_like(x)
    y = (w * out).sum()
    gms_step(x, *moments, out=out)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    with torch.inference_mode():
        gms_step(*tensors(4), out=torch.empty(2, 3, 4, 5))


def test_numbers_that_are_tensors_are_read_at_every_call():
    mean, var, third = tensors(3)
    weight = torch.tensor(0.3)
    first = ops.fit_mixture(mean, var, third, weight=weight)
    weight.fill_(0.2)
    assert not torch.equal(ops.fit_mixture(mean, var, third, weight=weight).weight, first.weight)


def test_transforms_of_torch_func_reach_the_registered_op():
    inputs = tensors(4)
    batched = torch.func.vmap(lambda *t: gms_step(*t), randomness="same")(*(t[None] for t in inputs))
    assert torch.equal(batched[0], gms_step(*inputs))


def test_affine_noise_is_the_weighted_sum():
    x, y, w, z = tensors(4)
    got = ops.affine_noise(x, [y, w], [0.5, -2.0, 0.25], 0.3, noise=z)
    want = 0.5 * x.double() - 2 * y.double() + 0.25 * w.double() + 0.3 * z.double()
    torch.testing.assert_close(got.double(), want, rtol=0, atol=4 * 4 * 2**-23)  # four roundings of numbers below 4
    drawn = ops.affine_noise(x, [], [1.0], 1.0, seed=3, step_index=2, sample_offset=1)
    z = ops.philox_normal(x.shape, seed=3, step=2, sample_offset=1)
    assert torch.equal(drawn, x + z)  # fma(1, z, 1 x) rounds once
    assert torch.equal(ops.affine_noise(x, [y], [0.0, 1.0]), y)
    assert torch.equal(ops.affine_noise(x, [y], [0.0, 1.0], out=x), y)


def by_element(terms, like, dtype=torch.float32):
    """Weights for every element of a sample: of x, of the terms, and what is added."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((terms + 2, *like.shape[1:]), generator=generator).to(dtype)


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 7), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("terms", [0, 3, 8])
def test_affine_noise_by_element_is_the_weighted_sum(terms, shape):
    """Element by element in Python's own float64, sum after sum."""
    x, z, *rest = tensors(2 + terms, torch.float64, shape=shape)
    weights = by_element(terms, x, torch.float64)
    got = ops.affine_noise(x, rest, weights, 0.3, noise=z).flatten(1)
    rows = weights.flatten(1).tolist()
    for b in range(shape[0]):
        for e in range(got.shape[1]):
            values = [t.flatten(1)[b, e].item() for t in (x, *rest)]
            want = math.fsum(row[e] * v for row, v in zip(rows, values, strict=False))
            want += rows[-1][e] + 0.3 * z.flatten(1)[b, e].item()
            assert abs(got[b, e].item() - want) < 64 * 2**-52  # a dozen roundings of numbers below 4


@compiled
def test_affine_noise_by_element_rounds_in_one_order():
    """W_0 x, then an fma for each term, then the constant, then an fma for the noise; each column tells one of these
    from its neighbours. p^2 = q + 2^-24 rounds to q, so that only an fma keeps the rest; 2^24 + 1 rounds to 2^24."""
    p, q, large = 1 + 2.0**-12, 1 + 2.0**-11, 2.0**24
    columns = {  # what is told: x, W_0, y, W_1, constant, z; the result
        "W_0 x is rounded": (p, p, -q, 1, 0, 0, 0),
        "the term's fma": (-q, 1, p, p, 0, 0, 2.0**-24),
        "the term before the constant": (1, 1, large, 1, -large, 0, 0),
        "the constant before the noise": (1, 1, 0, 1, large, -large, 0),
    }
    x, w_0, y, w_1, constant, z, want = torch.tensor([*columns.values()]).T[:, None]
    assert torch.equal(ops.affine_noise(x, [y], torch.cat([w_0, w_1, constant]), 1.0, noise=z), want)
    one = torch.ones(1, 1)
    got = ops.affine_noise(one, [], torch.tensor([[0.0], [-q]]), p, noise=p * one)
    assert got == 2.0**-24


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_equal_weights_by_element_are_the_weights(dtype):
    """The bits of scalar weights, with a constant of zero; and noise like theirs."""
    x, *terms = tensors(4, dtype)
    numbers = [0.5, -2.0, 0.25, 1.0]
    weights = torch.tensor([*numbers, 0.0])[:, None, None, None].expand(-1, *x.shape[1:])
    seed, index = torch.tensor(-5), torch.tensor(7)
    for std in (0.0, 0.3):
        want = ops.affine_noise(x, terms, numbers, std, seed=-5, step_index=7)
        assert torch.equal(ops.affine_noise(x, terms, weights, std, seed=seed, step_index=index), want)
    never_read = torch.full_like(x, math.nan)
    assert torch.equal(ops.affine_noise(x, terms, weights, noise=never_read), ops.affine_noise(x, terms, numbers))
    by_seed = ops.affine_noise(x, terms, weights, 0.3, seed=[4, 9])
    assert torch.equal(by_seed, ops.affine_noise(x, terms, numbers, 0.3, seed=[4, 9]))


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["channels_last", "strided", "channels", "transposed"])
def test_weights_by_element_follow_the_logical_index(layout, dtype):
    plain = tensors(4, dtype)
    moved = [LAYOUTS[layout](t) for t in plain]
    weights = by_element(3, plain[0])
    negated = torch._neg_view(-weights)
    want = ops.affine_noise(plain[0], plain[1:], weights, 0.3, seed=4)
    for x, *terms in (moved, [moved[0], *plain[1:]], [plain[0], *moved[1:]]):
        for w in (weights, LAYOUTS[layout](weights), negated, torch.complex(weights, -weights).conj().imag):
            assert torch.equal(ops.affine_noise(x, terms, w, 0.3, seed=4), want)


def test_weights_by_element_without_three_strides():
    """Tensors that must be copied, and weights with them."""
    x = torch.rand(2, 3, 4, 5, 6, 2)[..., 0].permute(0, 4, 2, 3, 1)
    weights = by_element(1, x)
    want = ops.affine_noise(x.contiguous(), [x.contiguous()], weights, 0.3)
    assert torch.equal(ops.affine_noise(x, [x], weights, 0.3), want)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["affine_noise", "affine_noise_out"])
def test_weights_by_element_pass_opcheck(op, dtype, layout):
    x, *terms = tensors(6, dtype, layout)
    options = {"numbers": by_element(5, x)}
    if op.endswith("_out"):
        options["out"] = torch.empty_like(x)
    torch.library.opcheck(getattr(torch.ops.gms_fast, op).default, (x, terms, [], 0.3), options)


def test_weights_by_element_compile_and_have_meta_results():
    def update(x, y, weights):
        return ops.affine_noise(x, [y, x * y], weights * 2, 0.3, seed=3) + 1

    x, y = tensors(2)
    weights = by_element(2, x)
    assert torch.equal(torch.compile(update, fullgraph=True, backend="aot_eager")(x, y, weights), update(x, y, weights))
    assert update(x.to("meta"), y.to("meta"), weights.to("meta")).shape == x.shape


def test_float64_weights_by_element_keep_their_digits():
    x, y = tensors(2, torch.float64)
    weights = by_element(1, x, torch.float64) / 3
    got = ops.affine_noise(x.float(), [y], weights, out=torch.empty_like(x))  # one term in float64 is enough
    want = weights[0] * x.float() + weights[1] * y + weights[2]
    torch.testing.assert_close(got, want, rtol=0, atol=8 * 2**-52)
    assert torch.equal(ops.affine_noise(x, [y], weights.float()), ops.affine_noise(x, [y], weights.float().double()))


def test_out_over_weights_by_element_gives_the_same_result():
    """Samples after the first would else read what the first has written."""
    x, y = (t.flatten(1) for t in tensors(2, shape=(4, 300)))
    weights = by_element(1, x)
    want = ops.affine_noise(x, [y], weights, 0.3)
    for offset in (0, 1, 300):
        memory = torch.empty(4 * 300 + offset)
        given, out = memory[:900].view(3, 300).copy_(weights), memory[offset:].view(4, 300)
        assert torch.equal(ops.affine_noise(x, [y], given, 0.3, out=out), want)


@compiled
@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_may_come_in_tensors(dtype):
    """As a CUDA graph needs them: seed, step index, coefficients and weights, read when the kernel runs."""
    inputs = tensors(4, dtype)
    seed, index = torch.tensor(-5), torch.tensor(7)
    want = gms_step(*inputs, seed=-5, step_index=7, sample_offset=3)
    got = gms_step(*inputs, STEP.as_tensor(), seed=seed, step_index=index, sample_offset=3)
    if dtype == torch.float64:  # the tensor is float32
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    else:
        assert torch.equal(got, want)
    shape = (3, 5)
    assert torch.equal(ops.philox_normal(shape, seed=seed, step=index), ops.philox_normal(shape, seed=-5, step=7))
    x, *terms = inputs
    weights = torch.tensor([0.5, -2.0, 0.25, 1.0, 0.5])
    got = ops.affine_noise(x, terms, weights, seed=seed, step_index=index)
    assert torch.equal(got, ops.affine_noise(x, terms, weights[:-1].tolist(), 0.5, seed=-5, step_index=7))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "transposed", "channels"])
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
        r"seeds must be \(2,\) or \(\) int64.* got \(3,\)",
    ),
    "seeds dtype": (lambda: gms_step(X, X, X, X, seed=torch.ones(2)), TypeError, "seed must be .* got torch.float32"),
    "seed": (lambda: gms_step(X, X, X, X, seed=0.5), TypeError, "seed must be an integer"),
    "seed range": (lambda: gms_step(X, X, X, X, seed=1 << 64), ValueError, "seed must fit in 64 bits"),
    "step": (lambda: gms_step(X, X, X, X, step_index=-1), ValueError, "step index must lie in"),
    "sample_offset": (lambda: gms_step(X, X, X, X, sample_offset=-1), ValueError, "sample_offset must lie in"),
    "out shape": (lambda: gms_step(X, X, X, X, out=torch.empty(3, 2)), ValueError, r"out must match x: got \(3, 2\)"),
    "out dtype": (lambda: gms_step(X, X, X, X, out=X.int()), TypeError, "out must be float32.* got torch.int32"),
    "out expanded": (
        lambda: gms_step(X, X, X, X, out=X[:1].expand(2, 3)),
        ValueError,
        "out must have a place of its own",
    ),
    "out over itself": (
        lambda: gms_step(X, X, X, X, out=torch.zeros(9).as_strided((2, 3), (1, 1))),
        ValueError,
        "out must have a place of its own",
    ),
    "z with a gradient": (
        lambda: gms_step(X, X, X, X, noise=torch.rand(2, 3, requires_grad=True)),
        RuntimeError,
        "forward only, but noise z requires a gradient",
    ),
    "u on another device": (
        lambda: gms_step(X, X, X, X, noise=(None, torch.empty(2, device="meta"))),
        ValueError,
        "noise u must be on the output's device",
    ),
    "integer u": (
        lambda: gms_step(X, X, X, X, noise=(None, torch.ones(2).int())),
        TypeError,
        "noise u must be float32",
    ),
    "weight in words": (lambda: ops.fit_mixture(X, X, X, weight="a"), TypeError, "weight must be a number: got 'a'"),
    "tiny weight": (lambda: ops.fit_mixture(X, X, X, weight=1e-50), ValueError, "weight must lie in .* got 1e-50"),
    "weight next to 1/2": (lambda: ops.fit_mixture(X, X, X, weight=0.5 + 2**-25), ValueError, "weight must not be 1/2"),
    "eps 0": (
        lambda: ops.fit_mixture(X, X, X, fit="adan", eps=0.0),
        ValueError,
        "eps must be at least 1e-20.* got 0.0",
    ),
    "array for x": (
        lambda: ops.affine_noise(X.numpy(), [], [1.0]),
        TypeError,
        r"x must be a tensor: got ndarray \(2, 3",
    ),
    "word for x": (lambda: gms_step("x", X, X, X, seed=[1, 2]), TypeError, "x must be a tensor: got 'x'"),
    "number for mean": (lambda: ops.fit_mixture(1.0, X, X), TypeError, "mean must be a tensor: got 1.0"),
    "word for dtype": (
        lambda: ops.philox_normal((2, 3), seed=0, dtype="float32"),
        TypeError,
        "dtype must be float32.* got float32",
    ),
    "step index on meta": (
        lambda: ops.philox_normal((2, 3), seed=0, step=torch.empty((), dtype=torch.int64, device="meta")),
        ValueError,
        "step index must hold numbers: got a tensor on meta",
    ),
    "seeds on meta": (
        lambda: gms_step(X, X, X, X, seed=torch.empty(2, dtype=torch.int64, device="meta")),
        ValueError,
        "seed must hold numbers: got a tensor on meta",
    ),
    "fit in a list": (lambda: ops.fit_mixture(X, X, X, fit=["exact"]), ValueError, "fit must be one of"),
    "iterations not whole": (lambda: ops.fit_mixture(X, X, X, iterations=2.5), TypeError, "iterations must be an int"),
    "many iterations": (lambda: ops.fit_mixture(X, X, X, iterations=1 << 31), ValueError, "iterations must be below"),
    "lr": (lambda: ops.fit_mixture(X, X, X, lr=NAN), ValueError, "lr must be finite"),
    "step_index not whole": (lambda: gms_step(X, X, X, X, step_index=2.5), TypeError, "step index must be an integer"),
    "clip half open": (
        lambda: gms_step(X, X, X, X, clip=(-math.inf, 1.0)),
        ValueError,
        "clip must be finite at both ends",
    ),
    "tiny alpha_t": (
        lambda: gms_step(X, X, X, X, replace(STEP, alpha_t=1e-120)),
        ValueError,
        "coefficients must have sigma_t/alpha_t whose cube is finite",
    ),
    "weights and noise_std": (
        lambda: ops.affine_noise(X, [X], torch.ones(3), 5.0),
        ValueError,
        "noise_std must not be given beside a tensor of weights",
    ),
    "step shape": (
        lambda: gms_step(X, X, X, X, torch.ones(6)),
        ValueError,
        r"step must be \(10,\) float32.* got \(6,\)",
    ),
    "step_index shape": (
        lambda: gms_step(X, X, X, X, step_index=torch.zeros(2, dtype=torch.int64)),
        ValueError,
        r"step index must be \(\) int64.* got \(2,\)",
    ),
    "terms shape": (
        lambda: ops.affine_noise(X, [X, X[:1]], [1, 1, 1]),
        ValueError,
        r"terms\[1\] must match x: got \(1",
    ),
    "e1 in a list": (lambda: gms_step(X, [1.0], X, X), TypeError, r"e1 must be a tensor: got \[1.0\]"),
    "terms": (lambda: ops.affine_noise(X, [None], [1, 1]), TypeError, r"terms\[0\] must be a tensor: got None"),
    "many terms": (
        lambda: ops.affine_noise(X, [X] * 9, [1] * 10),
        ValueError,
        "terms must be at most 8 tensors: got 9",
    ),
    "weights": (lambda: ops.affine_noise(X, [X], [1.0]), ValueError, "weights must be one of x and .*, 2: got 1"),
    "weights NaN": (lambda: ops.affine_noise(X, [X], [1.0, NAN]), ValueError, "weights must be finite: got"),
    "weights tensor": (
        lambda: ops.affine_noise(X, [X], torch.ones(2)),
        ValueError,
        r"weights must be \(3,\) float32.* got \(2,\)",
    ),
    "weights by element, shape": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 4)),
        ValueError,
        r"weights must be \(3, 3\) float32 on cpu: got \(3, 4\)",
    ),
    "weights by element, rows": (
        lambda: ops.affine_noise(X, [X], torch.ones(2, 3), 0.5),
        ValueError,
        r"weights must be \(3, 3\) float32.* got \(2, 3\)",
    ),
    "weights for every sample": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 2, 3)),
        ValueError,
        r"weights must be \(3, 3\) float32.* got \(3, 2, 3\)",
    ),
    "weights by element, dtype": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3).bfloat16()),
        ValueError,
        "weights must be .* float32.* got .* torch.bfloat16",
    ),
    "weights by element, float64": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3).double()),
        ValueError,
        "weights must be .* float32.* got .* torch.float64",
    ),
    "weights by element, device": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3, device="meta")),
        ValueError,
        "weights must be .* on cpu: got .* on meta",
    ),
    "weights by element with a gradient": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3, requires_grad=True)),
        RuntimeError,
        "forward only, but weights requires a gradient",
    ),
    "weights by element, noise_std": (
        lambda: ops.affine_noise(X, [X], torch.ones(3, 3), -1.0),
        ValueError,
        "noise_std must be .* got -1",
    ),
    "noise_std": (
        lambda: ops.affine_noise(X, [], [1.0], -1.0),
        ValueError,
        "noise_std must be .* got -1",
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
    """Components of two points 0.5 +- something, but for a floor of 1e-6^2, are told apart by their side."""
    return [torch.full(shape, v) for v in (0.5, 1.0, skew)] + [1e-12]


@pytest.mark.parametrize(("fit", "weight"), [("exact", 1 / 3), ("exact", 0.2), ("free", (1 - 9 / math.sqrt(85)) / 2)])
@pytest.mark.parametrize("side", [1, -1])
def test_component_frequencies_are_the_weights(fit, weight, side):
    """Component a, the light one on the side of the skew, is drawn with probability `weight`."""
    n = 1 << 18
    given = {} if fit == "free" else {"weight": weight}
    drawn = ops.sample_mixture(*narrow_mixture((16, n // 16), side * 9.0), fit=fit, seed=2, **given)
    light = side * (drawn - 0.5) > 0
    assert abs(float(light.double().mean()) - weight) < 5 * math.sqrt(weight * (1 - weight) / n)


@pytest.mark.parametrize("skew", [9.0, -9.0])
def test_free_draws_the_far_node_by_small_uniforms(skew):
    """The light one, below the mean for negative skew: with component a of fit="exact" it shares its uniforms."""
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
