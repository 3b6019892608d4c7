"""Compiled kernels against the float64 reference.

The tests cover every fit, clipping, component, dtype and instruction set.
"""

import itertools
import math

import pytest
import torch
from parity import (
    FITS,
    NARROW,
    check,
    check_light_component,
    check_mirrored_steps,
    check_missing,
    check_missing_in_steps,
    network_moments,
    weights_by_element,
)

from gms_fast import ops
from gms_fast.ops import native
from gms_fast.schedules import VPLinear
from gms_fast.steps import StepCoefficients

pytestmark = pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")

STEP = StepCoefficients.between(VPLinear(), 400, 300)
SHAPES = [(1, 1), (3, 63), (2, 3, 5, 7), (2, 1000), (4, 1, 28, 28), (300, 5)]


@pytest.fixture(params=native.instruction_sets() if native.available else [])
def instruction_set(request):
    before = native.instruction_set()
    native.set_instruction_set(request.param)
    yield request.param
    native.set_instruction_set(before)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Fill outputs with NaN first, so that an element that no kernel writes is detected."""
    monkeypatch.setattr(torch, "empty_like", lambda like, **options: torch.full_like(like, math.nan))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("moments", ["cumulant", "released"])
@pytest.mark.parametrize("central", [False, True])
def test_gms_step(instruction_set, fit, moments, central):
    for shape, (t, s), component in zip(
        SHAPES,
        [(999, 899), (500, 400), (300, 100), (99, 0), (999, 0), (600, 500)],
        ["sample", "element"] * 3,
        strict=True,
    ):
        step = StepCoefficients.between(VPLinear(), t, s)
        options = {"fit": fit, "moments": moments, "central": central, "component": component}
        options |= {"seed": 3, "step_index": 2, "sample_offset": 5, "iterations": 4}
        check(lambda i, step=step, o=options: ops.gms_step(*i, step, **o), network_moments(shape, t, central), fit=fit)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("dtype", NARROW)
def test_gms_step_dtypes(fit, dtype):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    inputs = network_moments((3, 2, 5, 5), 400, central=True)
    check(lambda i: ops.gms_step(*i, step, fit=fit, iterations=4, central=True), inputs, dtype, fit=fit)


def test_gms_step_takes_a_float32_state_with_bfloat16_moments():
    step = StepCoefficients.between(VPLinear(), 400, 300)
    x, *moments = network_moments((3, 2, 5, 5), 400)
    moments = [m.bfloat16() for m in moments]
    assert torch.equal(ops.gms_step(x, *moments, step), ops.gms_step(x, *(m.float() for m in moments), step))


@pytest.mark.parametrize("component", ["sample", "element"])
def test_gms_step_with_given_noise(component):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    z, u = torch.randn(2, 3, 9), torch.rand((2, 3, 9) if component == "element" else (2,))
    run = lambda i: ops.gms_step(*i, step, noise=(z.to(i[0]), u.to(i[0])), component=component)  # noqa: E731
    check(run, network_moments((2, 3, 9), 400))


@pytest.mark.parametrize("absent", [(), ("e3",), ("e2",), ("e2", "e3")])
def test_gaussian_step_without_higher_moments(absent):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    x, e1, e2, e3 = network_moments((2, 77), 400)
    inputs = [x, e1, None if "e2" in absent else e2, None if "e3" in absent else e3]
    check(lambda i: ops.gms_step(*i, step, fit="gaussian"), inputs)


@pytest.mark.parametrize("fit", FITS)
def test_fit_and_sample_mixture(instruction_set, fit):
    torch.manual_seed(0)
    for shape in SHAPES:
        mean, var = torch.randn(shape), 0.1 + torch.rand(shape)
        inputs = (mean, var, torch.randn(shape) * var**1.5)
        options = {"fit": fit} | ({"iterations": 4} if fit == "adan" else {})
        check(lambda i, o=options: tuple(ops.fit_mixture(*i, 0.05, **o)), inputs, scale=2.0, fit=fit)
        if fit != "adan":  # 70 iterations amplify rounding past any budget
            check(lambda i, f=fit: ops.sample_mixture(*i, 0.05, fit=f, seed=4), inputs, scale=2.0)


def test_skewness_of_either_sign(instruction_set):
    for mean, floor in itertools.product((0.0, 0.3), (0.0, 0.1)):
        check_light_component(mean, floor)
    check_mirrored_steps()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("terms", [0, 1, 5, 8])
def test_affine_noise_with_weights_by_element(instruction_set, terms, dtype):
    for shape in SHAPES:
        inputs = [t for _ in range(3) for t in network_moments(shape, 400)][: terms + 1]
        weights = weights_by_element(terms, inputs[0])
        for std in (0.0, 0.3):
            check(
                lambda i, w=weights, std=std: ops.affine_noise(i[0], i[1:], w, std, seed=4), inputs, dtype, scale=16.0
            )


CALLS = {
    **{f"gms_step {fit}": lambda i, fit=fit: ops.gms_step(*i, STEP, fit=fit, iterations=9) for fit in FITS},
    **{f"sample_mixture {fit}": lambda i, fit=fit: ops.sample_mixture(i[0], i[1].abs(), i[3], fit=fit) for fit in FITS},
    **{f"fit_mixture {fit}": lambda i, fit=fit: ops.fit_mixture(i[0], i[1].abs(), i[3], fit=fit) for fit in FITS},
    "affine_noise": lambda i: ops.affine_noise(i[0], i[1:], [0.5, -2.0, 0.25, 1.0], 0.3),
    "affine_noise by element": lambda i: ops.affine_noise(i[0], i[1:], weights_by_element(3, i[0]), 0.3),
    "philox_normal": lambda i: ops.philox_normal(i[0].shape, seed=1, dtype=torch.float16),
    "philox_uniform": lambda i: ops.philox_uniform(i[0].shape, seed=1, dtype=torch.bfloat16),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("shape", [(5, 3, 64, 65), (9001, 3)])
def test_all_instruction_sets_and_thread_counts_give_the_same_bits(call, shape):
    inputs = network_moments(shape, 400)
    before, threads, results = native.instruction_set(), torch.get_num_threads(), []
    try:
        for name, count in itertools.product(native.instruction_sets(), (1, 2, 3)):
            native.set_instruction_set(name)
            torch.set_num_threads(count)
            result = CALLS[call](inputs)
            results.append(torch.stack(result) if isinstance(result, tuple) else result)
    finally:
        native.set_instruction_set(before)
        torch.set_num_threads(threads)
    assert all(torch.equal(results[0], r) for r in results[1:])


@pytest.mark.parametrize("component", ["sample", "element"])
def test_sample_has_the_same_bits_in_any_batch_and_order(component):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    inputs = network_moments((64, 3, 5, 5), 400)
    options = {"component": component, "seed": 9, "step_index": 3}
    whole = ops.gms_step(*inputs, step, **options)
    for size in (1, 7):
        batches = [(i, [t[i : i + size] for t in inputs]) for i in range(0, 64, size)]
        parts = [ops.gms_step(*batch, step, sample_offset=i, **options) for i, batch in batches]
        assert torch.equal(torch.cat(parts), whole)
    seeds = torch.arange(64) * 7919
    by_seed = ops.gms_step(*inputs, step, **(options | {"seed": seeds}))
    order = torch.randperm(64)
    reordered = ops.gms_step(*(t[order] for t in inputs), step, **(options | {"seed": seeds[order]}))
    assert torch.equal(reordered, by_seed[order])


@pytest.mark.parametrize("shape", [(64, 3, 5, 5), (64, 1000)])
def test_weights_by_element_are_those_of_every_sample(shape):
    """Use blocks that hold several samples or parts of one; all read the same rows."""
    x, *terms = network_moments(shape, 400)
    weights = weights_by_element(3, x)
    whole = ops.affine_noise(x, terms, weights, 0.3, seed=9)
    for size in (1, 7):
        parts = [
            ops.affine_noise(x[i : i + size], [t[i : i + size] for t in terms], weights, 0.3, seed=9, sample_offset=i)
            for i in range(0, 64, size)
        ]
        assert torch.equal(torch.cat(parts), whole)


def test_missing_moments(instruction_set):
    check_missing()
    check_missing_in_steps()


def test_nan_stays_in_its_element():
    step = StepCoefficients.between(VPLinear(), 400, 300)
    for fit in FITS:
        inputs = network_moments((2, 50), 400)
        clean = ops.gms_step(*inputs, step, fit=fit)
        inputs[1] = inputs[1].clone()
        inputs[1][1, 7] = math.nan
        got = ops.gms_step(*inputs, step, fit=fit)
        where = torch.isnan(got)
        assert where[1, 7]
        assert where.sum() == 1
        assert torch.equal(got[~where], clean[~where])
