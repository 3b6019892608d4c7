"""Bit comparison of the CUDA kernels on a GPU with the C++ kernels on the CPU.

Without a GPU, test_native.py runs the CUDA kernels.
"""

import itertools

import pytest
import torch
from parity import (
    FITS,
    LINEAR,
    SEEN,
    UNSEEN,
    linear_tensors,
    network_moments,
    run_linear,
    run_step,
    skewed,
    spoiled,
    weights_by_element,
)

import gms_fast
from gms_fast import ops
from gms_fast.schedules import VPLinear
from gms_fast.steps import StepCoefficients

WHY_NOT = gms_fast.backends()["missing"].get("cuda", "")
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]
STEP = StepCoefficients.between(VPLinear(), 400, 300)
SHAPES = [(1, 1), (3, 63), (300, 5), (2, 3, 5, 7), (40, 512), (64, 3, 32, 32)]
CASES = list(itertools.product(FITS, ["cumulant", "released"], [False, True], ["sample", "element"]))


@pytest.fixture(autouse=True)
def _cuda():
    gms_fast.set_backend(None)
    assert gms_fast.backends()["chosen"]["cuda"] == "cuda"


def same(op, *tensors, **options):
    want = op(*tensors, **options)
    got = op(*(t.cuda() for t in tensors), **options)
    for g, w in zip(*[r if isinstance(r, tuple) else (r,) for r in (got, want)], strict=True):
        assert torch.equal(g.cpu(), w)


@pytest.mark.parametrize(("fit", "moments", "central", "component"), CASES)
@pytest.mark.parametrize("shape", SHAPES)
def test_gms_step(shape, fit, moments, central, component):
    options = {"fit": fit, "moments": moments, "central": central, "component": component, "iterations": 9, "seed": 5}
    same(lambda *t: ops.gms_step(*t, STEP, **options), *network_moments(shape, 400, central))


@pytest.mark.parametrize("repeats", [1, 2])  # the quick kernels take the longer
def test_skewness_of_either_sign(repeats):
    given = [t.repeat(1, repeats) for t in skewed(0.3, 0.25, 0.1)]
    same(lambda *t: ops.fit_mixture(*t, 0.1, fit="free"), *given)
    same(lambda *t: ops.sample_mixture(*t, 0.1, fit="free", seed=4), *given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_dtypes_and_layouts(shape, dtype):
    x, *moments = network_moments(shape, 400)
    strided = [torch.stack([t, t], dim=-1)[..., 0] for t in moments]
    for inputs in ([x, *(t.to(dtype) for t in moments)], [t.to(dtype) for t in (x, *moments)], [x, *strided]):
        same(lambda *t: ops.gms_step(*t, STEP), *inputs)
        same(lambda *t: ops.affine_noise(t[0], t[1:], [0.5, -2.0, 0.25, 1.0], 0.3), *inputs)
        weights = weights_by_element(3, x)
        same(lambda *t: ops.affine_noise(t[0], t[1:-1], t[-1], 0.3), *inputs, weights)
        same(lambda *t: ops.affine_noise(t[0], t[1:-1], t[-1]), *inputs, weights)
    same(lambda *t: ops.fit_mixture(t[0], t[1].abs(), t[2]), *moments)
    same(lambda *t: ops.sample_mixture(t[0], t[1].abs(), t[2]), *moments)


def here_and_there(run, *arguments):
    """Check that a watched step reports the same, and has the same results, on both devices."""
    move = lambda t: t.cuda() if isinstance(t, torch.Tensor) else [*map(move, t)] if isinstance(t, list) else t  # noqa: E731
    want, got = run(*arguments), run(*map(move, arguments))
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g.cpu().nan_to_num(), w.nan_to_num())
    return want[-1]


@pytest.mark.parametrize(
    ("state", "network"),
    [(torch.float32, torch.float32), (torch.float32, torch.bfloat16), (torch.float16, torch.float16)],
)
@pytest.mark.parametrize("form", LINEAR)
def test_linear_step(form, state, network):
    for shape, guided in itertools.product(SHAPES, [False, True]):
        tensors, numbers = linear_tensors(LINEAR[form], shape, state, network, guided)
        assert here_and_there(run_linear, LINEAR[form], tensors, numbers) == UNSEEN


@pytest.mark.parametrize("shape", [(3, 63), (2, 516), (64, 3, 32, 32)])
def test_what_is_not_finite_is_noted(shape):
    tensors, _ = linear_tensors(LINEAR["three terms"], shape)
    x, *rest = network_moments(shape, 400)
    for at, value in itertools.product([0, 9, -1], [float("nan"), float("inf")]):
        for which, code in ((0, 3), (1, 0), (2, 0), (3, 3)):
            assert here_and_there(run_linear, LINEAR["three terms"], spoiled(tensors, which, value, at)) == SEEN + code
        for which, code in ((1, 0), (2, 1), (3, 2), (4, 0)):
            given = spoiled([x, *rest, rest[0].flip(0)], which, value, at)
            assert here_and_there(run_step, *given, STEP, "free") == SEEN + code


@pytest.mark.parametrize("fit", FITS)
def test_guided_steps(fit):
    for shape in SHAPES:
        x, *rest = network_moments(shape, 400)
        assert here_and_there(run_step, x, *rest, rest[0].flip(0), STEP, fit) == UNSEEN
