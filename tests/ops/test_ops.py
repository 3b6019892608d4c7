"""Results of the ops: `out=`, rounding, weighted sums, given numbers and noise."""

import math

import numpy as np
import pytest
import torch
from op_inputs import DTYPES, LAYOUTS, STEP, by_element, compiled, gms_step, tensors

from gms_fast import ops


@pytest.mark.parametrize("into", DTYPES)
def test_out_of_another_dtype_is_rounded_once(into):
    x, *moments = tensors(4)
    out = torch.empty_like(x, dtype=into)
    gms_step(x, *moments, out=out)
    want = gms_step(*(t.double() for t in (x, *moments))) if into == torch.float64 else gms_step(x, *moments).to(into)
    assert torch.equal(out, want)


def test_out_over_anything_that_is_read_gives_the_same_result():
    """Let `out` overlap inputs and draws, which are then copied first."""
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


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (3, 7), (2, 3, 2, 2, 2)])
@pytest.mark.parametrize("terms", [0, 3, 8])
def test_affine_noise_by_element_is_the_weighted_sum(terms, shape):
    """Compare each element with sums in Python's float64."""
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
    """Check the order: w_0 x, an fma for each term, the constant, then an fma for the noise.

    Each column distinguishes one of these from its neighbours. p^2 = q + 2^-24 rounds to q, so only an fma keeps the
    rest; 2^24 + 1 rounds to 2^24.
    """
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
    """Compare bits with those of scalar weights, for a constant of zero, with and without noise."""
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


def test_float64_weights_by_element_keep_their_digits():
    x, y = tensors(2, torch.float64)
    weights = by_element(1, x, torch.float64) / 3
    got = ops.affine_noise(x.float(), [y], weights, out=torch.empty_like(x))  # one term in float64 is enough
    want = weights[0] * x.float() + weights[1] * y + weights[2]
    torch.testing.assert_close(got, want, rtol=0, atol=8 * 2**-52)
    assert torch.equal(ops.affine_noise(x, [y], weights.float()), ops.affine_noise(x, [y], weights.float().double()))


def test_out_over_weights_by_element_gives_the_same_result():
    """Let `out` overlap the weights, which later samples still read."""
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
    """Give seed, step index, coefficients and weights in tensors, read when the kernel runs.

    A CUDA graph needs this.
    """
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
