"""The Triton kernels against the float64 reference; test_triton.py runs this file.

With TRITON_INTERPRET=1 the kernels run on CPU tensors in Triton's interpreter, else on the GPU. triton reads the
variable when it is imported, so this file runs in a process of its own. The interpreter is made to compute as a GPU
does, and must then give the bits of the C++ kernels.
"""

import functools
import itertools
import math
import os

import parity
import pytest
import torch
from parity import FITS

import gms_fast
from bench.faults import random_fits
from bench.gpu import interpreter
from gms_fast import ops
from gms_fast.ops import native
from gms_fast.schedules import VPLinear
from gms_fast.steps import StepCoefficients

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
SHAPES = [(1, 1), (3, 63), (2, 3, 5, 7), (2, 1000)]
TIMES = [(999, 899), (500, 400), (300, 100), (99, 0)]

# The interpreter computes both branches of a `where` with NumPy, which warns of the branch not taken.
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _as_on_a_gpu(monkeypatch):
    for replacement in interpreter.replacements() if INTERPRETED else ():
        monkeypatch.setattr(*replacement)


@pytest.fixture(autouse=True)
def _triton(monkeypatch):
    """Force Triton for every op, and fill outputs with NaN first.

    An element that no kernel writes is then detected.
    """
    monkeypatch.setattr(torch, "empty_like", lambda like, **options: torch.full_like(like, math.nan))
    gms_fast.set_backend("triton")
    yield
    gms_fast.set_backend(None)


network_moments = functools.partial(parity.network_moments, device=DEVICE)
check = functools.partial(parity.check, backend="triton")
CASES = list(itertools.product(FITS, ["cumulant", "released"], [False, True], ["sample", "element"]))


@pytest.mark.parametrize(("fit", "moments", "central", "component"), CASES)
def test_gms_step(fit, moments, central, component):
    for shape, (t, s) in zip(SHAPES, TIMES, strict=True):
        step = StepCoefficients.between(VPLinear(), t, s)
        options = {"fit": fit, "moments": moments, "central": central, "component": component, "iterations": 4}
        options |= {"seed": 3 + (1 << 63), "step_index": 2, "sample_offset": 5 + (1 << 40)}
        check(lambda i, step=step, o=options: ops.gms_step(*i, step, **o), network_moments(shape, t, central), fit=fit)


@pytest.mark.parametrize("clip", [None, (-0.5, 2.0)])
def test_gms_step_with_another_data_range(clip):
    step = StepCoefficients.between(VPLinear(), 700, 400)
    check(lambda i: ops.gms_step(*i, step, fit="free", clip=clip), network_moments((2, 77), 700))


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gms_step_in_narrow_dtypes(fit, dtype):
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


@pytest.mark.parametrize("component", ["sample", "element"])
def test_gms_step_with_a_seed_for_each_sample(component):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    seeds, inputs = [11, 3, (1 << 64) - 1], network_moments((3, 63), 400)
    check(lambda i: ops.gms_step(*i, step, seed=seeds, component=component), inputs)
    reversed_ = ops.gms_step(*(t.flip(0) for t in inputs), step, seed=seeds[::-1], component=component)
    assert torch.equal(reversed_.flip(0), ops.gms_step(*inputs, step, seed=seeds, component=component))


@pytest.mark.parametrize("absent", [(), ("e3",), ("e2", "e3")])
def test_gaussian_step_without_higher_moments(absent):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    x, e1, e2, e3 = network_moments((2, 77), 400)
    inputs = [x, e1, None if "e2" in absent else e2, None if "e3" in absent else e3]
    check(lambda i: ops.gms_step(*i, step, fit="gaussian"), inputs)


@pytest.mark.parametrize("fit", FITS)
def test_fit_and_sample_mixture(fit):
    for shape in SHAPES:
        torch.manual_seed(0)
        mean, var = torch.randn(shape, device=DEVICE), 0.1 + torch.rand(shape, device=DEVICE)
        inputs = (mean, var, torch.randn(shape, device=DEVICE) * var**1.5)
        check(lambda i: tuple(ops.fit_mixture(*i, 0.05, fit=fit, iterations=4)), inputs, scale=2.0, fit=fit)
        if fit != "adan":  # 70 iterations amplify rounding past any budget
            check(lambda i: ops.sample_mixture(*i, 0.05, fit=fit, seed=4), inputs, scale=2.0)


def test_skewness_of_either_sign():
    for mean, floor in itertools.product((0.0, 0.3), (0.0, 0.1)):
        parity.check_light_component(mean, floor, DEVICE)
    parity.check_mirrored_steps(DEVICE)


def test_missing_moments():
    parity.check_missing(DEVICE)
    parity.check_missing_in_steps(DEVICE)


def test_exact_fit_takes_any_size_of_third_moment():
    """Test the cube root over its whole range: denormals, zero and the largest number."""
    third = torch.tensor([0.0, -0.0, 1e-45, -1e-38, 1e-30, 2e-5, -0.3, 7.0, 1e20, -3e38], device=DEVICE)[None]
    inputs = (torch.zeros_like(third), torch.ones_like(third), third)
    check(lambda i: tuple(ops.fit_mixture(*i)), inputs)


@pytest.mark.parametrize("words", [{"seed": 0}, {"seed": -1, "step": 7, "stream": 2, "sample_offset": (1 << 55) + 9}])
def test_philox_words_are_those_of_the_reference(words):
    """Compare uniforms bit for bit, and normals within float32.

    The first four uniforms have published words.
    """
    shape = (3, 5, 7)
    got, z = (draw(shape, device=DEVICE, **words) for draw in (ops.philox_uniform, ops.philox_normal))
    want = ops.philox_uniform(shape, device=DEVICE, dtype=torch.float64, **words)
    assert torch.equal(got.double(), want)
    if words == {"seed": 0}:
        published = torch.tensor([0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8], dtype=torch.float64)
        assert torch.equal(got.flatten()[:4].cpu(), published.float() * 2.0**-32 + 2.0**-33)
    check(lambda i: ops.philox_normal(shape, device=DEVICE, dtype=i[0].dtype, **words), [z])


LAYOUTS = {
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "channels": lambda t: torch.cat([t, t], dim=1)[:, :3],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_values_do_not_depend_on_the_layout(layout):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    plain = network_moments((2, 3, 5, 7), 400)
    moved = [LAYOUTS[layout](t) for t in plain]
    for inputs in (moved, [plain[0], *moved[1:]], [moved[0], *plain[1:]]):
        assert torch.equal(ops.gms_step(*inputs, step), ops.gms_step(*plain, step))
    weights = [0.5, -2.0, 0.25, 1.0]
    got = ops.affine_noise(moved[0], moved[1:], weights, 0.3)
    assert torch.equal(got, ops.affine_noise(plain[0], plain[1:], weights, 0.3))
    weights = parity.weights_by_element(3, plain[0])
    got = ops.affine_noise(moved[0], moved[1:], LAYOUTS[layout](weights), 0.3)
    assert torch.equal(got, ops.affine_noise(plain[0], plain[1:], weights, 0.3))
    for got, want in zip(ops.fit_mixture(*moved[:3]), ops.fit_mixture(*plain[:3]), strict=True):
        assert torch.equal(got, want)


@pytest.mark.parametrize("terms", [0, 1, 3])
def test_affine_noise(terms):
    x, *rest = network_moments((2, 77), 400)
    weights = [0.5, -2.0, 0.25, 1.0][: terms + 1]
    check(lambda i: ops.affine_noise(i[0], i[1:], weights, 0.3, seed=4, step_index=2), [x, *rest[:terms]], scale=4.0)
    check(lambda i: ops.affine_noise(i[0], i[1:], weights), [x, *rest[:terms]], scale=4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("terms", [0, 1, 5])
def test_affine_noise_with_weights_by_element(terms, dtype):
    for shape in SHAPES:
        inputs = [t for _ in range(2) for t in network_moments(shape, 400)][: terms + 1]
        weights = parity.weights_by_element(terms, inputs[0])
        for std in (0.0, 0.3):
            check(
                lambda i, w=weights, std=std: ops.affine_noise(i[0], i[1:], w, std, seed=4), inputs, dtype, scale=16.0
            )


def test_numbers_may_come_in_tensors():
    step = StepCoefficients.between(VPLinear(), 400, 300)
    x, *rest = network_moments((2, 77), 400)
    seed, index = (torch.tensor(v, device=DEVICE) for v in (-5, 7))
    got = ops.gms_step(x, *rest, step.as_tensor(DEVICE), seed=seed, step_index=index, sample_offset=3)
    assert torch.equal(got, ops.gms_step(x, *rest, step, seed=-5, step_index=7, sample_offset=3))
    got = ops.affine_noise(
        x, rest, torch.tensor([0.5, -2.0, 0.25, 1.0, 0.5], device=DEVICE), seed=seed, step_index=index
    )
    assert torch.equal(got, ops.affine_noise(x, rest, [0.5, -2.0, 0.25, 1.0], 0.5, seed=-5, step_index=7))
    got = ops.philox_uniform((3, 5), seed=seed, step=index, device=DEVICE)
    assert torch.equal(got, ops.philox_uniform((3, 5), seed=-5, step=7, device=DEVICE))


def test_nan_stays_in_its_element():
    step = StepCoefficients.between(VPLinear(), 400, 300)
    for fit in FITS:
        inputs = network_moments((2, 50), 400)
        clean = ops.gms_step(*inputs, step, fit=fit, iterations=4)
        inputs[1][1, 7] = math.nan
        got = ops.gms_step(*inputs, step, fit=fit, iterations=4)
        where = torch.isnan(got)
        assert where[1, 7]
        assert where.sum() == 1
        assert torch.equal(got[~where], clean[~where])


@pytest.mark.parametrize("elements", [4, 1100])
def test_more_samples_than_the_second_size_of_a_grid(elements, monkeypatch):
    """Use that many samples on the GPU; in the slow interpreter the limit is lowered instead."""
    from gms_fast.kernels import launch
    from gms_fast.kernels.ahead import launches

    if INTERPRETED:
        monkeypatch.setattr(launch, "_MOST_SAMPLES", 4)
    samples = launch._MOST_SAMPLES + 1
    tensors = [torch.rand(samples, elements, device=DEVICE) for _ in range(4)]
    step = StepCoefficients.between(VPLinear(), 500, 400)
    (found,) = launches(lambda: ops.gms_step(*tensors, step))
    assert found.grid[0] == samples
    last = ops.gms_step(*(t[-3:] for t in tensors), step, seed=1, sample_offset=samples - 3)
    assert torch.equal(ops.gms_step(*tensors, step, seed=1)[-3:], last)


def test_empty_tensors_are_not_launched():
    empty = torch.empty(0, 3, device=DEVICE)
    step = StepCoefficients.between(VPLinear(), 400, 300)
    assert ops.gms_step(empty, empty, empty, empty, step).shape == (0, 3)


@pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")
def test_affine_noise_and_cpp_give_the_same_bits():
    x, *rest = network_moments((2, 3, 9, 9), 400)
    got = ops.affine_noise(x, rest, [0.5, -2.0, 0.25, 1.0], 0.3, seed=5)
    gms_fast.set_backend("cpp")
    assert torch.equal(
        got.cpu(), ops.affine_noise(x.cpu(), [t.cpu() for t in rest], [0.5, -2.0, 0.25, 1.0], 0.3, seed=5)
    )


@pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")
@pytest.mark.parametrize("std", [0.0, 0.3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_by_element_and_cpp_give_the_same_bits(layout, std):
    x, *rest = network_moments((2, 3, 9, 9), 400)
    terms = [*rest, *(LAYOUTS[layout](t) for t in rest[:2])]
    weights = LAYOUTS[layout](parity.weights_by_element(5, x))
    got = ops.affine_noise(x, terms, weights, std, seed=5)
    gms_fast.set_backend("cpp")
    assert torch.equal(got.cpu(), ops.affine_noise(x.cpu(), [t.cpu() for t in terms], weights.cpu(), std, seed=5))


@pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")
@pytest.mark.parametrize(("fit", "moments", "central", "component"), CASES)
def test_kernels_and_cpp_give_the_same_bits(fit, moments, central, component):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    inputs = network_moments((2, 3, 9, 9), 400, central)
    options = {"fit": fit, "moments": moments, "central": central, "component": component, "seed": 5}
    got = ops.gms_step(*inputs, step, **options)
    gms_fast.set_backend("cpp")
    assert torch.equal(got.cpu(), ops.gms_step(*(t.cpu() for t in inputs), step, **options))


@pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fit", ["exact", "free", "gaussian"])
def test_random_fits_are_those_of_cpp(fit, dtype):
    for seed in range(8):  # a weight and a floor each
        given = random_fits.problem(seed, fit, dtype, 250)
        got = ops.fit_mixture(*(m.to(DEVICE) for m in given.moments), given.floor, **given.options)
        gms_fast.set_backend("cpp")
        want = ops.fit_mixture(*given.moments, given.floor, **given.options)
        gms_fast.set_backend("triton")
        for field, a, b in zip(want._fields, got, want, strict=True):
            assert torch.equal(a.cpu(), b), field


@pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")
@pytest.mark.parametrize("weight", [1 / 3, 1 - 1e-6, 0.5 + 2.0**-20])
@pytest.mark.parametrize("fit", ["exact", "free", "gaussian"])
def test_roots_of_zero_and_of_anything_else_are_those_of_cpp(fit, weight):
    """Use variances from zero to huge, and negative ones, below what the third moment needs."""
    sizes = torch.tensor([0.0, 1e-45, 1e-40, 1e-38, 1e-30, 1e-10, 0.3, 1e10, 1e30, 3e38, math.inf, math.nan])
    both = torch.cat([sizes, -sizes])
    var, third = (t.reshape(1, -1).to(DEVICE) for t in torch.meshgrid(both, sizes * 2, indexing="ij"))
    mean = torch.linspace(-2, 2, var.numel(), device=DEVICE).reshape(1, -1)
    options = {"fit": fit, "weight": weight, "seed": 3}
    got = *ops.fit_mixture(mean, var, third, fit=fit, weight=weight), ops.sample_mixture(mean, var, third, **options)
    gms_fast.set_backend("cpp")
    given = mean.cpu(), var.cpu(), third.cpu()
    want = *ops.fit_mixture(*given, fit=fit, weight=weight), ops.sample_mixture(*given, **options)
    for name, a, b in zip(("weight", "mean_a", "mean_b", "var", "draw"), got, want, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.fixture
def as_cpp():
    """A function of a watched step: the code that it reported.

    Triton and C++ must report the same, and give the same results.
    """

    def check(run, *arguments):
        move = lambda t: t.to(DEVICE) if isinstance(t, torch.Tensor) else [*map(move, t)] if isinstance(t, list) else t  # noqa: E731
        got = run(*map(move, arguments))
        gms_fast.set_backend("cpp")
        want = run(*arguments)
        gms_fast.set_backend("triton")
        for g, w in zip(got, want, strict=True):
            assert torch.equal(g.cpu().nan_to_num(), w.nan_to_num())
        return want[-1]

    if not native.available:
        pytest.skip("the compiled module was not built (GMS_FAST_PURE=1)")
    return check


PAIRS = [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float16)]


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("state", "network"), PAIRS)
@pytest.mark.parametrize("form", parity.LINEAR)
def test_linear_steps_and_cpp_give_the_same_bits(as_cpp, form, state, network, guided):
    step = parity.LINEAR[form]
    for shape in SHAPES[1:]:
        tensors, numbers = parity.linear_tensors(step, shape, state, network, guided)
        assert as_cpp(parity.run_linear, step, [*map(parity.before_nan, tensors)], numbers) == parity.UNSEEN


@pytest.mark.parametrize("form", ["three terms", "no terms, noisy", "no output, four terms"])
def test_linear_steps_with_numbers_on_the_device(as_cpp, form):
    step = parity.LINEAR[form]
    tensors, _ = parity.linear_tensors(step, (2, 77))
    numbers = torch.tensor([*(step.reading[:2] if step.reading is not None else ()), *step.weights])
    as_cpp(parity.run_linear, step._replace(weights=(0.0,) * len(step.weights)), tensors, numbers)


@pytest.mark.parametrize("fit", FITS)
def test_guided_steps_and_cpp_give_the_same_bits(as_cpp, fit):
    step = StepCoefficients.between(VPLinear(), 400, 300)
    for shape in SHAPES[1:]:
        x, *rest = parity.network_moments(shape, 400)
        tensors = [*map(parity.before_nan, (x, *rest, rest[0].flip(0)))]
        assert as_cpp(parity.run_step, *tensors, step, fit) == parity.UNSEEN


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("shape", [(3, 63), (2, 1000)])
def test_what_is_not_finite_is_noted(as_cpp, shape, value):
    linear, step = parity.LINEAR["three terms"], StepCoefficients.between(VPLinear(), 400, 300)
    tensors, _ = parity.linear_tensors(linear, shape)
    x, *rest = parity.network_moments(shape, 400)
    for at in (0, 9, -1):
        for which, code in ((0, 3), (1, 0), (2, 0), (3, 3)):
            seen = as_cpp(parity.run_linear, linear, parity.spoiled(tensors, which, value, at))
            assert seen == parity.SEEN + code
        for which, code in ((1, 0), (2, 1), (3, 2), (4, 0)):
            given = parity.spoiled([x, *rest, rest[0].flip(0)], which, value, at)
            assert as_cpp(parity.run_step, *given, step, "free") == parity.SEEN + code


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_results_are_watched_in_their_own_type(as_cpp, dtype):
    """Use the least float32 that rounds to infinity, and the one below it."""
    info = torch.finfo(dtype)
    power, least = 2.0 ** math.floor(math.log2(info.max)), 2.0 - info.eps / 2
    (x,), output = parity.spoiled([torch.zeros(2, 77, dtype=dtype)], 0, power), torch.zeros(2, 77, dtype=dtype)
    for factor, seen in ((least, parity.SEEN + 3), (least - 2.0**-23, parity.UNSEEN)):
        step = parity.LINEAR["no terms"]._replace(weights=(factor, 0.0, 0.0))
        assert as_cpp(parity.run_linear, step, [x, output, None]) == seen
