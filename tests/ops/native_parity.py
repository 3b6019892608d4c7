"""Bit comparison of a second build's C++ and CUDA kernels with the installed ones.

test_native.py runs this file. The second build has sanitizers, which end the process at the first bad address or
undefined operation. Its CUDA kernels run on the CPU, thread by thread (tests/cuda_shim).
"""

import importlib.util
import itertools
import math
import os

import pytest
import torch
from parity import (
    FITS,
    LINEAR,
    SEEN,
    UNSEEN,
    before_nan,
    linear_tensors,
    network_moments,
    run_linear,
    run_step,
    skewed,
    spoiled,
    weights_by_element,
)

from bench.faults import random_fits
from bench.gpu.rehearsal import OnDevice
from gms_fast import ops
from gms_fast.ops import native
from gms_fast.ops.types import Draws
from gms_fast.schedules import VPLinear
from gms_fast.steps import StepCoefficients

STEP = StepCoefficients.between(VPLinear(), 400, 300)
SHAPES = [
    (1, 1),
    (3, 63),
    (300, 5),
    (2, 3, 5, 7),
    (2, 1000),
    (2, 3, 8, 8),
    (40, 512),
]  # the last two in 16-byte accesses
LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "channels": lambda t: torch.cat([t, t], dim=1)[:, :3],
}


def second_build():
    spec = importlib.util.spec_from_file_location("_C", os.environ["GMS_FAST_SECOND_BUILD"])
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SECOND = second_build()
native.introduce(SECOND)


def forget():
    """Clear the prepared steps, of which each build has its own."""
    native._schemes.clear()
    native.linear.cache_clear()


@pytest.fixture(params=["cpp", "cuda"])
def same(request, monkeypatch):
    """A function of an op and its arguments: its result, the same bits in both builds."""
    device = OnDevice(SECOND, request.param == "cuda")

    def check(op, *arguments, out=None, **options):
        """Compare both builds, with a given `out` that starts as NaN for each."""

        def given():
            return options if out is None else {**options, "out": torch.full_like(out, math.nan)}

        want = op(*arguments, **given())
        with monkeypatch.context() as patch:
            patch.setattr(native, "compiled", device)
            patch.setattr(torch, "empty_like", lambda like, **options: like.clone().fill_(math.nan))
            forget()
            got = op(*arguments, **given())
        forget()
        for g, w in zip(*[r if isinstance(r, tuple) else (r,) for r in (got, want)], strict=True):
            assert g.dtype == w.dtype
            assert torch.equal(g.isnan(), w.isnan())
            assert torch.equal(g.masked_fill(g.isnan(), 0), w.masked_fill(w.isnan(), 0))  # -0 and 0 are one number
        return want

    return check


CASES = list(itertools.product(FITS, ["cumulant", "released"], [False, True], ["sample", "element"]))


@pytest.mark.parametrize(("fit", "moments", "central", "component"), CASES)
def test_gms_step(same, fit, moments, central, component):
    options = {"fit": fit, "moments": moments, "central": central, "component": component, "iterations": 9}
    options |= {"seed": 3 + (1 << 63), "step_index": 2, "sample_offset": 5 + (1 << 40)}
    for shape in SHAPES:
        same(ops.gms_step, *network_moments(shape, 400, central), STEP, **options)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_narrow_and_mixed_dtypes(same, shape, dtype, fit):
    x, *moments = network_moments(shape, 400)
    moments = [t.to(dtype) for t in moments]
    same(ops.gms_step, x.to(dtype), *moments, STEP, fit=fit)
    same(ops.gms_step, x, *moments, STEP, fit=fit, out=torch.empty(shape, dtype=dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layouts(same, layout, dtype):
    inputs = [LAYOUTS[layout](t.to(dtype)) for t in network_moments((2, 3, 5, 7), 400)]
    same(ops.gms_step, *inputs, STEP, component="element")
    same(ops.gms_step, inputs[0].contiguous(), *inputs[1:], STEP)
    same(ops.affine_noise, inputs[0], inputs[1:], [1.0, 0.5, -2.0, 0.25], 0.5)
    same(ops.affine_noise, inputs[0], inputs[1:], LAYOUTS[layout](weights_by_element(3, inputs[0])), 0.5)
    same(ops.fit_mixture, *(t.abs() for t in inputs[:3]))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("shape", SHAPES)
def test_fit_and_sample_mixture(same, shape, fit):
    mean, var, third = (torch.randn(shape) for _ in range(3))  # negative variances are defined too
    same(ops.fit_mixture, mean, var.abs(), third, 0.05, fit=fit)
    same(ops.sample_mixture, mean, var.abs(), third, 0.05, fit=fit, seed=4)
    same(ops.sample_mixture, mean, var, third, fit=fit, component="sample")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_affine_noise_with_weights_by_element(same, shape, dtype):
    x, *terms = network_moments(shape, 400)
    for count in (0, 5):
        terms_ = [terms[i % 3].to(dtype) for i in range(count)]
        weights = weights_by_element(count, x)
        same(ops.affine_noise, x, terms_, weights, 0.3, seed=torch.tensor(-5), step_index=torch.tensor(7))
        same(ops.affine_noise, x.to(dtype), terms_, weights)
        unaligned = torch.cat([weights.flatten(), weights.flatten()[:1]])[1:].view_as(weights)
        same(ops.affine_noise, x, terms_, unaligned, 0.3)


@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_in_tensors_given_draws_and_absent_moments(same, shape):
    x, e1, e2, _ = inputs = network_moments(shape, 400)
    numbers = {"seed": torch.tensor(-5), "step_index": torch.tensor(7)}
    same(ops.gms_step, *inputs, STEP.as_tensor(), **numbers)
    same(ops.gms_step, *inputs, STEP, seed=torch.arange(len(x)) * 7919)
    same(ops.affine_noise, x, [e1], torch.tensor([0.5, -2.0, 0.25]), **numbers)
    same(ops.affine_noise, x, [e1], [0.5, 2.0])
    same(ops.gms_step, x, e1, None, None, STEP, fit="gaussian")
    same(ops.gms_step, *inputs, STEP, noise=(e1, torch.rand(len(x))))
    same(ops.gms_step, *inputs, STEP, noise=(e1, e2), component="element")
    same(ops.philox_normal, shape, seed=9, sample_offset=1 << 50)
    same(ops.philox_uniform, shape, seed=9, stream=2, dtype=torch.float16)


@pytest.mark.parametrize("fit", FITS)
def test_extremes(same, fit):
    """Check that both builds give the same defined results for senseless moments."""
    odd = torch.tensor([0.0, -0.0, 1e-45, -1e-38, 1e-30, 2e-5, -0.3, 7.0, 1e20, -3e38, math.inf, -math.inf, math.nan])
    grid = [t.flatten()[None] for t in torch.meshgrid(odd, odd, odd, indexing="ij")]
    same(ops.fit_mixture, *grid, fit=fit)
    same(ops.sample_mixture, *grid, fit=fit)
    same(ops.gms_step, grid[0], *grid, STEP, fit=fit)


# The quick kernels of csrc/cuda take dense samples of 512 elements and more, a multiple of four: a whole block, a quad
# too many, a last block with one thread, and a few blocks.
QUICK_SHAPES = [(3, 512), (2, 516), (2, 1, 14, 74), (2, 3, 32, 32)]
PAIRS = [  # of the state, the moments and the output
    (torch.float32, torch.float32, torch.float32),
    (torch.float32, torch.bfloat16, torch.float32),
    (torch.float32, torch.float16, torch.bfloat16),
    (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16, torch.float16),
]
SEEDS = {
    "number": {"seed": 3 + (1 << 63), "step_index": 2, "sample_offset": (1 << 40) - 1},  # its low word wraps
    "tensors": {"seed": torch.tensor(-5), "step_index": torch.tensor(7), "sample_offset": (1 << 32) - 2},
    "step": {"seed": 5, "step_index": torch.tensor(7)},
}


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize(("state", "moments", "output"), PAIRS)
@pytest.mark.parametrize("component", ["sample", "element"])
@pytest.mark.parametrize("fit", FITS)
def test_quick_steps(same, fit, component, state, moments, output, seeds):
    for shape, central in itertools.product(QUICK_SHAPES, [False, True]):
        x, *rest = network_moments(shape, 400, central)
        inputs = [x.to(state), *(t.to(moments) for t in rest)]
        out = torch.empty(shape, dtype=output)
        same(ops.gms_step, *inputs, STEP, fit=fit, component=component, central=central, iterations=3, out=out, **seeds)


@pytest.mark.parametrize("component", ["sample", "element"])
def test_quick_steps_with_a_seed_for_each_sample(same, component):
    for shape in QUICK_SHAPES:
        inputs, seeds = network_moments(shape, 400), [(1 << 64) - 1, 5, 11][: shape[0]]
        same(ops.gms_step, *inputs, STEP, seed=seeds, component=component)
        same(ops.affine_noise, inputs[0], inputs[1:], [0.5, -2.0, 0.25, 1.0], 0.3, seed=seeds)
        same(ops.philox_normal, shape, seed=seeds, sample_offset=7)


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize(("first", "others", "output"), PAIRS)
def test_quick_draws_and_updates(same, first, others, output, seeds):
    for shape in QUICK_SHAPES:
        mean, third, var, extra = network_moments(shape, 400)
        mean, third, var, extra = mean.to(first), *(t.to(others) for t in (third, var, extra))
        out = torch.empty(shape, dtype=output)
        for fit, component in itertools.product(FITS, ["sample", "element"]):
            options = {"fit": fit, "component": component, **_step_named(seeds)}
            same(ops.sample_mixture, mean, var.abs(), third, 0.05, **options)
        terms = [third, var, extra, third]
        for count, std in itertools.product(range(5), [0.0, 0.3]):
            numbers = [0.5, -2.0, 0.25, 1.0, 3.0][: count + 1]
            for weights in (numbers, weights_by_element(count, mean).float()):
                same(ops.affine_noise, mean, terms[:count], weights, std, out=out, **seeds)


@pytest.mark.parametrize("form", LINEAR)
@pytest.mark.parametrize(("state", "network", "_"), PAIRS)
def test_linear_step(same, form, state, network, _):
    step = LINEAR[form]
    for shape, guided in itertools.product([*SHAPES[:5], *QUICK_SHAPES], [False, True]):
        tensors, numbers = linear_tensors(step, shape, state, network, guided)
        for seeds in SEEDS.values() if step.noisy else [{}]:
            *_, seen = same(run_linear, step, [before_nan(t) for t in tensors], numbers, Draws(**_step_named(seeds)))
            assert seen == UNSEEN


@pytest.mark.parametrize("form", [name for name, step in LINEAR.items() if not step.present])
def test_linear_step_with_numbers_on_the_device(same, form):
    step = LINEAR[form]
    numbers = torch.tensor([*(step.reading[:2] if step.reading is not None else ()), *step.weights])
    for shape in (SHAPES[1], QUICK_SHAPES[1]):
        tensors, _ = linear_tensors(step, shape)
        same(run_linear, step._replace(weights=(0.0,) * len(step.weights)), tensors, numbers)
        same(run_linear, step, tensors, numbers, Draws(z=torch.randn(shape)))


@pytest.mark.parametrize("form", LINEAR)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_a_linear_step(same, layout, form):
    tensors, numbers = linear_tensors(LINEAR[form], (2, 3, 5, 7), torch.float32, torch.bfloat16)
    x, *rest = tensors
    same(run_linear, LINEAR[form], [x, *(t if t is None else LAYOUTS[layout](t) for t in rest)], numbers)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("state", "network", "_"), PAIRS)
@pytest.mark.parametrize("form", ["three terms, noisy", "by element, three results"])
def test_a_linear_step_tells_what_it_saw_first(same, form, state, network, _, value):
    step = LINEAR[form]
    for shape, at in itertools.product([(3, 63), *QUICK_SHAPES], [0, 9, -1]):
        tensors, numbers = linear_tensors(step, shape, state, network)
        for which, code in ((0, 3), (1, 0), (2, 0), (3, 3)):  # x, output, unconditional, a term
            *_, seen = same(run_linear, step, spoiled(tensors, which, value, at), numbers)
            assert seen == SEEN + code


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 63), *QUICK_SHAPES])
def test_results_are_watched_in_their_own_type(same, shape, dtype):
    """Use the least float32 that rounds to infinity, and the one below it."""
    info = torch.finfo(dtype)
    power = 2.0 ** math.floor(math.log2(info.max))
    least = 2.0 - info.eps / 2  # halfway from the largest number to a next one
    x, output = spoiled([torch.zeros(shape, dtype=dtype)], 0, power)[0], torch.zeros(shape, dtype=dtype)
    for factor, seen in ((least, SEEN + 3), (least - 2.0**-23, UNSEEN)):
        step = LINEAR["no terms"]._replace(weights=(factor, 0.0, 0.0))
        assert same(run_linear, step, [x, output, None])[-1] == seen
        reading = step.reading._replace(of_x=factor, lo=-math.inf, hi=math.inf)
        kept = LINEAR["the estimate alone"]._replace(reading=reading)
        assert same(run_linear, kept, [x, output, None])[-1] == seen


@pytest.mark.parametrize("seeds", SEEDS.values(), ids=SEEDS)
@pytest.mark.parametrize(("state", "moments", "output"), PAIRS)
@pytest.mark.parametrize("fit", FITS)
def test_guided_steps(same, fit, state, moments, output, seeds):
    draws = Draws(**_step_named(seeds))
    for shape, central in itertools.product([(3, 63), *QUICK_SHAPES], [False, True]):
        x, *rest = network_moments(shape, 400, central)
        tensors = [before_nan(t) for t in (x.to(state), *(t.to(moments) for t in (*rest, rest[0].flip(0))))]
        options = {"draws": draws, "central": central, "moments": "released" if shape == (3, 63) else "cumulant"}
        out = torch.empty(shape, dtype=output)
        assert same(run_step, *tensors, STEP, fit, out=out, **options)[1] == UNSEEN
        same(run_step, *tensors[:4], None, STEP, fit, **options)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fit", FITS)
def test_a_step_tells_what_it_saw_first(same, fit, moments, value):
    for shape, at, central in itertools.product([(3, 63), *QUICK_SHAPES], [0, 9, -1], [False, True]):
        x, *rest = network_moments(shape, 400, central)
        tensors = [x, *(t.to(moments) for t in (*rest, rest[0].flip(0)))]
        for which, code in ((1, 0), (2, 1), (3, 2), (4, 0)):
            _, seen = same(run_step, *spoiled(tensors, which, value, at), STEP, fit, central=central)
            assert seen == SEEN + code
        _, seen = same(run_step, *spoiled(spoiled(tensors, 3, value, at), 2, value), STEP, fit, central=central)
        assert seen == SEEN + 1  # the smaller code of two
        if fit == "gaussian":
            assert same(run_step, *tensors[:2], None, None, None, STEP, fit, central=central)[1] == UNSEEN


@pytest.mark.parametrize("shape", [(3, 63), *QUICK_SHAPES])
def test_a_step_watches_its_result_in_its_own_type(same, shape):
    x, *rest = network_moments(shape, 400)
    (huge,) = spoiled([x], 0, 1e6)
    for dtype, seen in ((torch.float32, UNSEEN), (torch.bfloat16, UNSEEN), (torch.float16, SEEN + 3)):
        assert same(run_step, huge, *rest, None, STEP, out=torch.empty(shape, dtype=dtype))[1] == seen


def _step_named(seeds):
    """Return the keyword for the step's index, which sample_mixture names differently."""
    return {"step" if name == "step_index" else name: value for name, value in seeds.items()}


@pytest.mark.parametrize("repeats", [1, 2])  # the quick kernels take the longer
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_skewness_of_either_sign(same, floor, repeats):
    given = [t.repeat(1, repeats) for t in skewed(0.3, 0.25, floor)]
    same(ops.fit_mixture, *given, floor, fit="free")
    same(ops.sample_mixture, *given, floor, fit="free", seed=4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [250, 1000])  # the quick kernels take the larger
def test_random_fits(same, fit, dtype, size):
    for seed in range(8):  # a weight and a floor each
        given = random_fits.problem(seed, fit, dtype, size)
        same(ops.fit_mixture, *given.moments, given.floor, **given.options)
        same(ops.sample_mixture, *given.moments, given.floor, **given.options, seed=seed)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", QUICK_SHAPES)
def test_other_quick_kernels(same, shape, dtype):
    mean, third, var, _ = (t.to(dtype) for t in network_moments(shape, 400))
    for fit in FITS:
        same(ops.fit_mixture, mean, var.abs(), third, 0.05, fit=fit)
    same(ops.gms_step, mean, third, None, None, STEP, fit="gaussian")
    same(ops.gms_step, mean, third, var, None, STEP, fit="gaussian", central=True)
    for draw in (ops.philox_normal, ops.philox_uniform):
        same(draw, shape, seed=9, stream=2, dtype=dtype)


# Zero, numbers around the ends of what `Quick` takes, of float32 and of each of its own bounds, and ordinary ones.
ODD = [0.0, -0.0, 1e-45, -1e-38, 2.0**-126, 2.0**-101, 2.0**-61, 2.0**-60, 1e-30, 2e-5, -0.3, 7.0, 2.0**59, 2.0**60]
ODD += [1e20, 2.0**126, -3e38, math.inf, -math.inf, math.nan]


@pytest.mark.parametrize("clip", [None, (-1.0, 1.0), (0.0, 1.0), (-(2.0**62), 2.0**62)])
@pytest.mark.parametrize("weight", [1 / 3, 0.5 + 2**-12, 1e-6])
@pytest.mark.parametrize("fit", FITS)
def test_quick_kernels_at_extremes(same, fit, weight, clip):
    """Put each number among three ordinary ones, whose results must not change with it."""
    odd = torch.tensor(ODD)
    triples = torch.cartesian_prod(odd, odd, odd)
    ordinary = torch.rand((len(triples), 3, 3), generator=torch.Generator().manual_seed(0))
    grid = torch.cat([triples[:, None], ordinary], 1).flatten(0, 1).T.contiguous()
    a, b, c = (t.reshape(4, -1) for t in grid)
    options = {"fit": fit, "weight": weight, "iterations": 2}
    same(ops.fit_mixture, a, b, c, **options)
    options.pop("iterations")
    same(ops.sample_mixture, a, b, c, **options)
    options["central"] = True
    for x, e1, e2, e3 in ((a, a, b, c), (a.flip(1), b, c, a)):
        same(ops.gms_step, x, e1, e2, e3, STEP, clip=clip, **options)


@pytest.mark.parametrize("shape", [(65537, 512), (65537 * 64, 3)])
def test_more_samples_than_a_grid_has_rows(same, shape):
    same(ops.philox_uniform, shape, seed=9, dtype=torch.float16)
