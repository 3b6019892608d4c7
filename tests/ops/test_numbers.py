"""Numbers, seeds, given draws and devices as arguments of the public ops."""

import numpy as np
import pytest
import torch

import gms_fast
from gms_fast import StepCoefficients, ops, statistics
from gms_fast.measure import empirical
from gms_fast.models import GaussianMixture1D
from gms_fast.schedules import VPLinear

STEP = StepCoefficients.between(VPLinear(), 400, 300)
X = torch.rand(2, 3, generator=torch.Generator().manual_seed(0))
MIXTURE, MOMENTS = (X, X + 0.5, X), (X, X, X * X + 0.5, X**3)
KINDS = {  # of a number, with the same value
    "tensor ()": lambda v: torch.tensor(v),
    "tensor (1,)": lambda v: torch.tensor([v]),
    "numpy's number": lambda v: np.asarray(v)[()],
    "array (1,)": lambda v: np.array([v]),
}


def same(got, want):
    got, want = (v if isinstance(v, tuple) else (v,) for v in (got, want))
    assert all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


FLOATS = {
    "floor": (lambda v: ops.fit_mixture(*MIXTURE, v), 0.25),
    "floor of a draw": (lambda v: ops.sample_mixture(*MIXTURE, v), 0.25),
    "weight": (lambda v: ops.sample_mixture(*MIXTURE, weight=v), 0.25),
    "weight of a step": (lambda v: ops.gms_step(*MOMENTS, STEP, weight=v), 0.25),
    "lr": (lambda v: ops.gms_step(*MOMENTS, STEP, fit="adan", iterations=2, lr=v), 0.125),
    "eps": (lambda v: ops.fit_mixture(*MIXTURE, fit="adan", iterations=2, eps=v), 0.125),
    "noise_std": (lambda v: ops.affine_noise(X, [X], [0.5, 2.0], v), 0.25),
    "weights": (lambda v: ops.affine_noise(X, [X], [v, v]), 0.25),
}
INTEGERS = {
    "iterations": (lambda v: ops.fit_mixture(*MIXTURE, fit="adan", iterations=v), 2),
    "step index": (lambda v: ops.affine_noise(X, [], [1.0], 1.0, step_index=v), 2),
    "step index of a mixture": (lambda v: ops.sample_mixture(*MIXTURE, step=v), 2),
    "sample_offset": (lambda v: ops.gms_step(*MOMENTS, STEP, sample_offset=v), 2),
    "sample_offset of draws": (lambda v: ops.philox_normal((2, 3), seed=0, sample_offset=v), 2),
    "stream": (lambda v: ops.philox_uniform((2, 3), seed=0, stream=v), 2),
    "shape": (lambda v: ops.philox_uniform((v, 3), seed=0), 2),
}
NUMBERS = FLOATS | INTEGERS


# A tensor for the step index is read by the kernel, and must be (): one of shape (1,) is refused by name.
CASES = [(n, k) for n in NUMBERS for k in KINDS if not (n.startswith("step index") and k == "tensor (1,)")]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_one_number_of_any_kind_is_that_number(name, kind):
    call, value = NUMBERS[name]
    same(call(KINDS[kind](value)), call(value))


@pytest.mark.parametrize("bad", [torch.ones(2), np.ones(2), "0.25", None, 1j, [0.25]], ids=repr)
@pytest.mark.parametrize("name", FLOATS)
def test_what_is_no_number_is_named(name, bad):
    with pytest.raises(TypeError, match=f"^{name.split()[0]} must be a number: got "):
        FLOATS[name][0](bad)


@pytest.mark.parametrize("bad", [torch.tensor([1, 2]), np.ones(2, int), 2.5, torch.tensor(2.5), "2", [2]], ids=repr)
@pytest.mark.parametrize("name", INTEGERS)
def test_what_is_no_integer_is_named(name, bad):
    with pytest.raises((TypeError, ValueError), match=f"^{name.split()[0]}( index)? must be "):
        INTEGERS[name][0](bad)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ops.affine_noise(X, X, [1.0, 1.0]), "terms must be a sequence of tensors: got Tensor"),
        (lambda: ops.affine_noise(X, [], 1.0), "weights must be a sequence of numbers: got 1.0"),
        (lambda: ops.philox_normal(3, seed=0), "shape must be a sequence of integers: got 3"),
        (lambda: ops.fit_mixture(*[X.to_sparse()] * 3), "mean must be a dense tensor.* got torch.sparse_coo"),
        (lambda: ops.gms_step(*MOMENTS, STEP, noise=(X,)), r"noise must be a tensor z, or \(z, u\).* got Tensor$"),
        (lambda: ops.gms_step(*MOMENTS, STEP, noise=0.5), r"noise must be a tensor z, or \(z, u\).* got float"),
        (lambda: ops.affine_noise(X, [], [1.0], 1.0, noise=(0.5, None)), "noise must be .* got float, NoneType"),
    ],
)
def test_other_arguments_are_named_too(call, message):
    with pytest.raises(TypeError, match=message):
        call()


SEEDS = {  # what stands for what
    "np.int64": (np.int64(-3), -3),
    "np.uint64": (np.uint64((1 << 64) - 3), -3),
    "array ()": (np.array(7), 7),
    "array of a seed per sample": (np.array([5, -3]), [5, -3]),
    "array of uint64": (np.array([5, (1 << 64) - 3], dtype=np.uint64), [5, -3]),
    "array of int32": (np.array([5, -3], dtype=np.int32), [5, -3]),
    "list of numpy's integers": ([np.int64(5), np.uint64((1 << 64) - 3)], [5, -3]),
    "list of tensors": ([torch.tensor(5), torch.tensor(-3)], [5, -3]),
    "range": (range(5, 7), [5, 6]),
    "int32 tensor": (torch.tensor([5, -3], dtype=torch.int32), [5, -3]),
    "uint8 tensor ()": (torch.tensor(200, dtype=torch.uint8), 200),
    "uint64 tensor": (torch.tensor([5, (1 << 64) - 3], dtype=torch.uint64), [5, -3]),
    "2^63": (1 << 63, -(1 << 63)),
}


@pytest.mark.parametrize(("given", "meant"), SEEDS.values(), ids=SEEDS)
def test_seeds_are_64_bits_as_a_signed_integer(given, meant):
    seed = ops.as_seed(given)
    assert (seed.tolist() if isinstance(seed, torch.Tensor) else seed) == meant
    assert not isinstance(seed, torch.Tensor) or seed.dtype == torch.int64
    same(ops.philox_normal((2, 3), seed=given), ops.philox_normal((2, 3), seed=meant))
    same(ops.gms_step(*MOMENTS, STEP, seed=given), ops.gms_step(*MOMENTS, STEP, seed=meant))


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (torch.tensor([1.0, 2.0]), TypeError),
        (torch.tensor([True, False]), TypeError),
        (torch.ones(2, 2, dtype=torch.int64), TypeError),
        (np.array([1.0, 2.0]), TypeError),
        (np.float64(1.0), TypeError),
        (np.ones((2, 2), dtype=np.int64), TypeError),
        ([1.5, 2], TypeError),
        ([[1, 2]], TypeError),
        ("12", TypeError),
        (b"12", TypeError),
        (None, TypeError),
        ([1 << 64, 0], ValueError),
        (-(1 << 63) - 1, ValueError),
    ],
    ids=repr,
)
def test_what_is_no_seed_is_named(given, error):
    with pytest.raises(error, match=r"^seed must "):
        ops.as_seed(given)


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("component", ["element", "sample"])
def test_either_of_two_draws_may_be_given(component, backend):
    """Check that a draw that is not given equals the one drawn when none is given."""
    shape = (4, 6)
    inputs = [t[:1, :1].expand(shape) for t in MOMENTS]
    counters = {"seed": 3, "sample_offset": 5}
    z = ops.philox_normal(shape, step=2, stream=0, **counters)
    u = ops.philox_uniform(shape if component == "element" else (4, 1), step=2, stream=1, **counters)
    u = u if component == "element" else u[:, 0]
    other = -z, 1 - u
    calls = [
        lambda noise: ops.gms_step(*inputs, STEP, step_index=2, noise=noise, component=component, **counters),
        lambda noise: ops.sample_mixture(*inputs[1:], step=2, noise=noise, component=component, **counters),
    ]
    gms_fast.set_backend(backend)
    try:
        for call in calls:
            want = call((z, u))
            for noise in ((z, None), (None, u), [z, u], z, None, (None, None)):
                torch.testing.assert_close(call(noise), want, rtol=1e-5, atol=1e-5)  # draws that were rounded again
            assert not torch.allclose(call((other[0], None)), want, atol=1e-2)
            assert not torch.allclose(call((None, other[1])), want, atol=1e-2)
        drawn = ops.affine_noise(X, [], [1.0], 1.0, noise=(None, X))
        assert torch.equal(drawn, ops.affine_noise(X, [], [1.0], 1.0))
    finally:
        gms_fast.set_backend(None)


def test_a_step_does_not_repeat_what_the_caller_drew():
    model = GaussianMixture1D([1.0], [0.0], [0.1], sample_shape=(8,))
    z = []
    gms_fast.sample(model, 2, n=2, seed=5, solver="ddpm", callback=lambda i, t, x, x0: z.append(x))
    own = ops.philox_normal((2, 8), seed=5, dtype=z[0].dtype)
    assert not torch.allclose(z[0], own * z[0].norm() / own.norm(), atol=1e-3)
    assert torch.equal(ops.affine_noise(X, [], [0.0], 1.0, seed=5), ops.philox_normal((2, 3), seed=5, step=0))


CALLS = {
    "fit_mixture": lambda: ops.fit_mixture(*MIXTURE, fit="free"),
    "adan": lambda: ops.fit_mixture(*MIXTURE, fit="adan", iterations=2),
    "sample_mixture": lambda: ops.sample_mixture(*MIXTURE, seed=[3, 4]),
    "gms_step": lambda: ops.gms_step(*MOMENTS, STEP, seed=np.array([3, 4]), component="element"),
    "released": lambda: ops.gms_step(*MOMENTS, STEP, moments="released"),
    "gaussian": lambda: ops.gms_step(X, X, None, None, STEP, fit="gaussian"),
    "affine_noise": lambda: ops.affine_noise(X, [X], [0.5, 2.0], 0.3, seed=1 << 63),
    "float64": lambda: ops.affine_noise(X.double(), [X], [0.5, 2.0], 0.3),
    "layout": lambda: ops.gms_step(*(t.t().contiguous().t() for t in MOMENTS), STEP),
    "philox": lambda: ops.philox_normal((2, 3), seed=[1, 2], device="cpu"),
    "statistics": lambda: statistics.gaussian(DATA, rank=3, flips=True).draw(X[:, :2].repeat(1, 2)),
    "pilot": lambda: torch.tensor(statistics.pilot(MODEL, DATA, statistics.gaussian(DATA), levels=3).r2, device="cpu"),
    "samples to measure": lambda: empirical._chosen(MODEL, DATA, 12, 0),
}
MODEL = GaussianMixture1D([1.0], [0.0], [0.1], sample_shape=(4,))
DATA = torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("backend", [None, "torch"])
@pytest.mark.parametrize("name", CALLS)
def test_a_default_device_moves_nothing_that_has_a_place(name, backend):
    gms_fast.set_backend(backend)
    try:
        want = CALLS[name]()
        with torch.device("meta"):
            same(CALLS[name](), want)
        torch.set_default_device("meta")
        same(CALLS[name](), want)
    finally:
        torch.set_default_device(None)
        gms_fast.set_backend(None)


def test_draws_without_a_device_are_on_the_default_one():
    for draw in (ops.philox_normal, ops.philox_uniform):
        assert draw((2, 3), seed=0).device.type == "cpu"
        with torch.device("meta"):
            drawn = draw((2, 3), seed=[1, 2])
            assert (drawn.device.type, drawn.shape) == ("meta", (2, 3))
            assert draw((2, 3), seed=0, device="cpu").device.type == "cpu"
