"""Compiled kernels against the float64 oracle: every fit, clipping, component, dtype and instruction set.

The budget is twice the error that the same formulas make in plain float32 torch, plus a few roundings of the result,
plus what the oracle itself moves by when its inputs move by a few roundings (the released clipping jumps).
"""

import itertools
import math

import pytest
import torch

import gms_fast
from gms_fast import _native, ops
from gms_fast.schedules import VPLinear
from gms_fast.steps import StepCoefficients

pytestmark = pytest.mark.skipif(not _native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")

EPS = 2.0**-23
SHAPES = [(1, 1), (3, 63), (2, 3, 5, 7), (2, 1000), (4, 1, 28, 28)]
FITS = ["exact", "free", "gaussian", "adan"]
NARROW = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture(params=_native.instruction_sets() if _native.available else [])
def instruction_set(request):
    before = _native.instruction_set()
    _native.set_instruction_set(request.param)
    yield request.param
    _native.set_instruction_set(before)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    """Outputs start as NaN, so that an element no kernel writes is seen."""
    monkeypatch.setattr(ops.library, "_new", lambda like: torch.full(like.shape, math.nan, dtype=like.dtype))


def network_moments(shape, t, central=False, seed=0):
    """Noise moments like a network's: consistent but for an error of one percent."""
    torch.manual_seed(seed)
    schedule = VPLinear()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x_0, spread = torch.rand(shape) * 2 - 1, 0.2 * torch.rand(shape)
    eps = torch.randn(shape)
    x = alpha * x_0 + sigma * eps
    r2, r3 = (alpha / sigma * spread) ** 2, (alpha / sigma * spread) ** 3 * torch.randn(shape)
    e2, e3 = (r2, r3) if central else (r2 + eps**2, r3 + 3 * eps * r2 + eps**3)
    return x, eps * (1 + 0.01 * torch.randn(shape)), e2, e3


def shaken(t):
    """t in float64, each element moved by up to four roundings."""
    return None if t is None else t.double() * (1 + 4 * EPS * (2 * torch.rand(t.shape) - 1))


def check(run, inputs, dtype=torch.float32, scale=1.0):
    """run(tensors) on the kernels against float64, with plain float32 torch as the measure of what rounding costs."""
    narrow = [None if t is None else t.to(dtype) for t in inputs]
    want = run([None if t is None else t.double() for t in narrow])

    gms_fast.set_backend("torch")
    try:
        eager = run([None if t is None else t.float() for t in narrow])
    finally:
        gms_fast.set_backend(None)
    got = run(narrow)
    moved = [run([shaken(t) for t in narrow]) for _ in range(16)]
    as_tuples = [r if isinstance(r, tuple) else (r,) for r in (got, eager, want, *moved)]
    for g, e, w, *others in zip(*as_tuples, strict=True):
        assert g.dtype == dtype
        unstable = torch.stack([(o - w).abs() for o in others]).amax(0)
        budget = 2 * (e.double() - w).abs() + 2 * unstable + 8 * EPS * (w.abs() + scale) + NARROW[dtype] * w.abs()
        worst = 2 * (e.double() - w).abs().max() + 8 * EPS * scale
        assert torch.isfinite(g).all()
        assert ((g.double() - w).abs() <= budget.clamp(min=worst)).all()


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("moments", ["cumulant", "released"])
@pytest.mark.parametrize("central", [False, True])
def test_gms_step(instruction_set, fit, moments, central):
    for shape, (t, s), component in zip(
        SHAPES, [(999, 899), (500, 400), (300, 100), (99, 0), (999, 0)], ["sample", "element"] * 3, strict=False
    ):
        step = StepCoefficients.between(VPLinear(), t, s)
        options = {"fit": fit, "moments": moments, "central": central, "component": component}
        options |= {"seed": 3, "step_index": 2, "sample_offset": 5, "iterations": 4}
        check(lambda i, step=step, o=options: ops.gms_step(*i, step, **o), network_moments(shape, t, central))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("dtype", NARROW)
def test_gms_step_dtypes(fit, dtype):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    inputs = network_moments((3, 2, 5, 5), 400, central=True)
    check(lambda i: ops.gms_step(*i, step, fit=fit, iterations=4, central=True), inputs, dtype)


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


@pytest.mark.parametrize("absent", [(), ("e3",), ("e2", "e3")])
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
        check(lambda i, o=options: tuple(ops.fit_mixture(*i, 0.05, **o)), inputs, scale=2.0)
        if fit != "adan":  # 70 iterations amplify rounding past any budget
            check(lambda i, f=fit: ops.sample_mixture(*i, 0.05, fit=f, seed=4), inputs, scale=2.0)


def test_all_instruction_sets_and_thread_counts_give_the_same_bits():
    step = StepCoefficients.between(VPLinear(), 400, 300)
    inputs = network_moments((5, 3, 64, 65), 400)
    before, threads, results = _native.instruction_set(), torch.get_num_threads(), []
    try:
        for name, count, fit in itertools.product(_native.instruction_sets(), (1, 2, 3), ("exact", "free")):
            _native.set_instruction_set(name)
            torch.set_num_threads(count)
            results.append((fit, ops.gms_step(*inputs, step, fit=fit)))
    finally:
        _native.set_instruction_set(before)
        torch.set_num_threads(threads)
    for fit in ("exact", "free"):
        first, *rest = (r for f, r in results if f == fit)
        assert all(torch.equal(first, r) for r in rest)


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


def test_nan_stays_in_its_element():
    step = StepCoefficients.between(VPLinear(), 400, 300)
    for fit in FITS:
        inputs = list(network_moments((2, 50), 400))
        clean = ops.gms_step(*inputs, step, fit=fit)
        inputs[1] = inputs[1].clone()
        inputs[1][1, 7] = math.nan
        got = ops.gms_step(*inputs, step, fit=fit)
        where = torch.isnan(got)
        assert where[1, 7]
        assert where.sum() == 1
        assert torch.equal(got[~where], clean[~where])
