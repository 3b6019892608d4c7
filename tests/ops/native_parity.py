"""The C++ and CUDA kernels of a second build against the installed ones, bit for bit; test_native.py runs this.

The second build has sanitizers, which end the process at the first bad address or undefined operation, and its CUDA
kernels run on the CPU, thread by thread (tests/cuda_shim).
"""

import importlib.util
import itertools
import math
import os

import pytest
import torch
from parity import FITS, network_moments, skewed, weights_by_element

from bench.faults import random_fits
from bench.gpu.rehearsal import OnDevice
from gms_fast import ops
from gms_fast.ops import native
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


@pytest.fixture(params=["cpp", "cuda"])
def same(request, monkeypatch):
    """same(op, ...): the op's result has the same bits in both builds."""
    device = OnDevice(SECOND, request.param == "cuda")

    def check(op, *arguments, out=None, **options):
        """A given `out` is a tensor of NaN for each build."""

        def given():
            return options if out is None else {**options, "out": torch.full_like(out, math.nan)}

        want = op(*arguments, **given())
        with monkeypatch.context() as patch:
            patch.setattr(native, "compiled", device)
            patch.setattr(torch, "empty_like", lambda like, **options: like.clone().fill_(math.nan))
            native._schemes.clear()
            got = op(*arguments, **given())
        native._schemes.clear()
        for g, w in zip(*[r if isinstance(r, tuple) else (r,) for r in (got, want)], strict=True):
            assert g.dtype == w.dtype
            assert torch.equal(g.isnan(), w.isnan())
            assert torch.equal(g.masked_fill(g.isnan(), 0), w.masked_fill(w.isnan(), 0))  # -0 and 0 are one number

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
    """Defined results, in both builds the same, for all that is no sensible moment."""
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


def _step_named(seeds):
    """The step's index under the name that sample_mixture gives it."""
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
    """Each number in a quad of ordinary ones, which must not be redone wrongly with it."""
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
