"""Launches without Triton's launcher: the kernel and the arguments that it would have used."""

import itertools
import os
import random
from unittest import mock

import pytest
import torch

from gms_fast import StepCoefficients, ops
from gms_fast.ops import fused
from gms_fast.ops.checks import rows_of
from gms_fast.ops.types import DEFAULT, Draws, Linear, Reading, Watch
from gms_fast.schedules import VPLinear

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="the interpreter compiles nothing")

SHAPES = ((1, 1), (2, 1), (2, 16), (2, 17), (3, 64), (1, 2048), (2, 3, 4, 5), (2, 4, 4, 4))
OFFSETS = (0, 1, 16, (1 << 31) - 1, 1 << 31, (1 << 31) + 16, 1 << 32, (1 << 40) + 1)
SEEDS = (0, 1, 16, 1 << 31, (1 << 31) + 16, (1 << 63) + 5, -1)
STEPS = tuple(StepCoefficients.between(VPLinear(), t, s) for t, s in ((999, 800), (400, 300)))


@pytest.fixture
def launched():
    """A function of a call: the launch, what ran it, and what Triton's launcher runs."""
    from bench.speed.triton_call import stand_in
    from gms_fast.kernels import direct, launch

    with stand_in() as runs, mock.patch.object(launch, "_run", mock.Mock(wraps=direct.run)) as run:

        def launched(call):
            call()
            found, _ = run.call_args.args
            ours = runs.pop()
            direct.run_by_triton(found)
            return found, ours, runs.pop()

        yield launched


def is_direct(run):
    """Return True for a direct launch; Triton's launcher passes chains of hooks, empty or not."""
    _, arguments = run
    return arguments[7] is arguments[8] is None


def check_same(ours, theirs):
    (kernel, arguments), (wanted, expected) = ours, theirs
    assert kernel is wanted
    assert arguments[:6] == expected[:6]  # grid, stream, function, metadata
    assert len(arguments) == len(expected)
    assert all(a is b for a, b in zip(arguments[9:], expected[9:], strict=True))


def chooser(seed, changed=None):
    """Function choose(*options): the same choices for one seed, except number `changed`."""
    numbers = itertools.count()

    def choose(*options):
        number = next(numbers)
        return random.Random(f"{seed} {number} {number == changed}").choice(options)

    return choose


def a_tensor(choose, shape, dtype=None, layouts=("dense", "dense", "every other", "expanded")):
    dtype = dtype or choose(torch.float32, torch.bfloat16, torch.float16)
    begin, layout = choose(0, 1, 4, 8), choose(*layouts)
    elements = torch.Size(shape).numel()
    if layout == "every other":
        return torch.zeros(2 * elements + 8, dtype=dtype)[begin : begin + 2 * elements].view(*shape, 2)[..., 0]
    dense = torch.zeros(elements + 8, dtype=dtype)[begin : begin + elements].view(shape)
    return dense[:1].expand(shape) if layout == "expanded" else dense


def counters(choose, samples, index="step_index"):
    seeds = torch.zeros(samples + 1, dtype=torch.int64)[choose(0, 1) :][:samples]
    at = torch.zeros(2, dtype=torch.int64)[choose(0, 1)]
    seed = choose(choose(*SEEDS), choose(*SEEDS), seeds, at)
    return {"seed": seed, index: choose(0, 1, 16, at), "sample_offset": choose(*OFFSETS)}


def fitting(choose):
    return {"fit": choose("exact", "free", "adan", "gaussian"), "iterations": choose(4, 5), "weight": choose(0.25, 0.4)}


def drawing(choose, shape):
    """Choose counters or given draws."""
    component = choose("element", "sample")
    z = a_tensor(choose, shape, torch.float32)
    u = a_tensor(choose, shape if component == "element" else shape[:1], torch.float32, ["dense"])
    return {"component": component, "noise": choose(None, None, (z, u), (z, None), (None, u))}


def gms_step(choose):
    shape = choose(*SHAPES)
    x, e1, e2, e3, out = (a_tensor(choose, shape) for _ in range(5))
    out = choose(None, out if out._is_view() and 0 not in out.stride() else None)
    options = {**fitting(choose), **counters(choose, shape[0]), **drawing(choose, shape)}
    options |= {"moments": choose("cumulant", "released"), "central": choose(False, True)}
    if options["fit"] == "gaussian" and options["moments"] == "cumulant":
        e2, e3 = choose((None, None), (e2, None), (None, e3), (e2, e3))
    numbers = a_tensor(choose, (10,), torch.float32, ["dense"])
    step = choose(*STEPS, numbers)
    ops.gms_step(x, e1, e2, e3, step, clip=choose(None, (-1, 1), (-0.5, 2.0)), out=out, **options)


def watched_step(choose):
    """Choose a watched step, with guidance or without."""
    shape = choose(*SHAPES)
    x, e1, e2, e3, unconditional = (a_tensor(choose, shape) for _ in range(5))
    unconditional = choose(None, unconditional)
    guidance = 1.0 if unconditional is None else choose(1.0, 2.0)
    fit, draws = choose(DEFAULT, DEFAULT._replace(kind="free")), Draws(choose(*SEEDS), choose(0, 1, 16))
    options = {"unconditional": unconditional, "guidance": guidance, "watch": watching(choose)}
    fused.gms_step(x, e1, e2, e3, choose(*STEPS), fit, draws, **options)


def sample_mixture(choose):
    shape = choose(*SHAPES)
    options = {**fitting(choose), **counters(choose, shape[0], "step"), **drawing(choose, shape)}
    del options["iterations"]
    ops.sample_mixture(*(a_tensor(choose, shape) for _ in range(3)), choose(0.0, 0.1), **options)


def fit_mixture(choose):
    shape = choose(*SHAPES)
    ops.fit_mixture(*(a_tensor(choose, shape) for _ in range(3)), choose(0.0, 0.1), **fitting(choose))


def affine_noise(choose):
    shape, terms = choose(*SHAPES), choose(0, 1, 3)
    x, *rest = (a_tensor(choose, shape) for _ in range(terms + 1))
    by_number = a_tensor(choose, (terms + 2,), torch.float32, ["dense"])
    by_element = a_tensor(choose, (terms + 2, *shape[1:]), torch.float32, ["dense"])
    weights = choose([0.5] * (terms + 1), [2] * (terms + 1), by_number, by_element)
    std = 0.0 if weights is by_number else choose(0.0, 0.5)
    noise = choose(None, None, a_tensor(choose, shape, torch.float32))
    ops.affine_noise(x, rest, weights, std, noise=noise, **counters(choose, shape[0]))


def linear_step(choose):
    """Choose a linear step that reads a network's output, with one sum or two."""
    shape, terms, results = choose(*SHAPES), choose(0, 1, 3), choose(0, 1, 2)
    x, output, *rest = (a_tensor(choose, shape) for _ in range(terms + 2))
    unconditional = choose(None, a_tensor(choose, shape))
    form, noisy = choose("given", "on device", "by element") if results == 1 else "by element", choose(False, True)
    numbers, present = None, 0
    if form == "on device":
        numbers = a_tensor(choose, (terms + 5,), torch.float32, ["dense"])
    elif form == "by element" and results:
        present = rows_of(results, choose([1], [*range(1, terms + 2)]))
        numbers = a_tensor(choose, (present.bit_count(), *shape[1:]), torch.float32, ["dense"])
    guidance = choose(1.0, 2.0) if unconditional is not None else 1.0
    reading = Reading(1.0, choose(0.5, 0.25), *choose((-1.0, 1.0), (-2.0, 2.0)), guidance=guidance)
    step = Linear(
        reading, (0.5,) * (terms + 3), terms, results, choose(True, results == 0), noisy and results > 0, present
    )
    given = counters(choose, shape[0])
    draws = Draws(given["seed"], given["step_index"], given["sample_offset"])
    fused.linear_step(
        x, output, rest, step, draws, numbers=numbers, unconditional=unconditional, watch=watching(choose)
    )


def watching(choose):
    return choose(None, Watch(torch.zeros(8, dtype=torch.int32)[choose(0, 1, 4) :][:1], choose(0, 1, 16)))


def philox(choose):
    shape, draw = choose(*SHAPES), choose(ops.philox_normal, ops.philox_uniform)
    dtype = choose(torch.float32, torch.bfloat16, torch.float16)
    draw(shape, dtype=dtype, stream=choose(0, 1, 2, 5), **counters(choose, shape[0], "step"))


@pytest.mark.parametrize(
    "call", [gms_step, watched_step, sample_mixture, fit_mixture, linear_step, affine_noise, philox]
)
def test_every_launch_is_that_of_triton(call, launched):
    """Compare calls that differ in one choice.

    If one key served two kernels, the second call would find the kernel of the first.
    """
    direct = 0
    for seed in range(30):
        for changed in (None, *range(50)):
            _, ours, theirs = launched(lambda seed=seed, changed=changed: call(chooser(seed, changed)))
            check_same(ours, theirs)
            direct += is_direct(ours)
    assert direct > 30 * 50 / 2


def test_it_matters_which_moment_is_absent(launched):
    x, e1, e2 = (torch.zeros(2, 64) for _ in range(3))
    for absent in ((e2, None), (None, e2), (None, None)):
        _, ours, theirs = launched(lambda absent=absent: ops.gms_step(x, e1, *absent, STEPS[0], fit="gaussian"))
        check_same(ours, theirs)


def test_large_samples_and_offsets_are_told_apart(launched):
    """Use sizes and sample offsets on either side of 2^31, of whole vectors and not."""
    from gms_fast import kernels

    sizes = [n + more for n in (1 << 30, 1 << 31, 1 << 32) for more in (-1, 0, 1, 16)]
    for elements, offset in itertools.product(sizes, OFFSETS):
        noise = Draws(sample_offset=offset)
        out = torch.empty((1, 1), dtype=torch.float32).expand(1, elements)
        strides = (elements, 0, 0, 0), None, None, None
        tensors, layout = (out, None, None, out), ((1, 1, elements), strides)
        for at in (None, layout):
            copy = Linear(None, (1.0, 0.0), terms=0)
            call = lambda at=at, n=noise, t=tensors, c=copy: kernels.linear_step(t, at, c, None, n, None)  # noqa: E731
            found = [launched(call) for _ in range(2)]
            assert [is_direct(ours) for _, ours, _ in found][1]
            for _, ours, theirs in found:
                check_same(ours, theirs)


def test_what_varies_from_step_to_step_finds_the_same_kernel(launched):
    x = [torch.zeros(2, 64) for _ in range(4)]
    kernels = set()
    for step, seed, index in itertools.product(STEPS, SEEDS, (0, 1, 16)):
        _, (kernel, _), _ = launched(lambda s=step, n=seed, i=index: ops.gms_step(*x, s, seed=n, step_index=i))
        kernels.add(kernel)
    assert len(kernels) == 1


def test_a_step_of_another_code_finds_the_same_kernel(launched):
    x, first = torch.zeros(2, 64), torch.zeros(1, dtype=torch.int32)
    reading, kernels = Reading(1.0, 0.5), set()
    for code in (0, 1, 4, 16, 4000):
        step = Linear(reading._replace(of_x=1.0 + code), (0.5, 0.5, 0.0), terms=0)
        call = lambda s=step, c=code: fused.linear_step(x, x, [], s, Draws(), watch=Watch(first, c))  # noqa: E731
        _, (kernel, _), _ = launched(call)
        kernels.add(kernel)
    assert len(kernels) == 1


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_profilers_are_told_of_launches(hook, launched):
    from triton import knobs

    call = lambda: ops.philox_normal((2, 8), seed=0)  # noqa: E731
    chain, profiler = getattr(knobs.runtime, hook), mock.Mock()
    assert [is_direct(launched(call)[1]) for _ in range(2)] == [False, True]
    chain.add(profiler)
    try:
        assert not is_direct(launched(call)[1])
    finally:
        chain.remove(profiler)
    assert is_direct(launched(call)[1])


def test_each_device_has_its_own_kernels(launched, monkeypatch):
    from bench.speed import triton_call
    from gms_fast.kernels import direct

    found, _, _ = launched(lambda: ops.philox_normal((2, 8), seed=0))
    kernels = []
    with triton_call.stand_in() as runs:
        for index in (0, 1, 0, 1):
            monkeypatch.setattr(triton_call.DRIVER, "get_current_device", lambda index=index: index)
            direct._run_on(index, found)
            kernels.append(runs.pop()[0])
    assert kernels[0] is kernels[2]
    assert kernels[1] is kernels[3]
    assert kernels[0] is not kernels[1]


@pytest.mark.parametrize("current", [-1, 1])
def test_the_device_of_the_tensors_is_made_current_where_it_is_not(current, launched, monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getDevice", lambda: current)
    with mock.patch.object(torch.cuda, "device") as guard:
        launched(lambda: ops.philox_normal((2, 8), seed=0))
    assert guard.call_args_list == ([] if current == -1 else [mock.call(-1)])


def test_on_rocm_triton_launches_all(launched, monkeypatch):
    from gms_fast.kernels import direct

    direct._kernels.clear()
    call = lambda: ops.philox_normal((2, 8), seed=0)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(torch.version, "hip", "6.4.43482")
        assert [is_direct(launched(call)[1]) for _ in range(3)] == [False] * 3
    assert [is_direct(launched(call)[1]) for _ in range(2)] == [False, True]
