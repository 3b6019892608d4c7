"""The Triton kernels: parity in the interpreter and on a GPU, and compilation without one.

The parity tests are in triton_parity.py.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity import FITS

from gms_fast import StepCoefficients, ops
from gms_fast.ops import fused
from gms_fast.ops.checks import rows_of
from gms_fast.ops.types import DEFAULT, Draws, Linear, Reading, Watch
from gms_fast.schedules import VPLinear

triton = pytest.importorskip("triton")

PARITY = Path(__file__).with_name("triton_parity.py")
COMPILER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
STEP = StepCoefficients.between(VPLinear(), 400, 300)
VARIANTS = [  # fit, moments, central, component: each fit with both of each switch
    ("exact", "cumulant", False, "sample"),
    ("exact", "released", True, "element"),
    ("free", "cumulant", False, "element"),
    ("free", "released", True, "sample"),
    ("adan", "cumulant", True, "element"),
    ("adan", "released", False, "sample"),
    ("gaussian", "cumulant", False, "element"),
    ("gaussian", "released", True, "sample"),
]
interpreted = os.environ.get("TRITON_INTERPRET") == "1"
compiles = pytest.mark.skipif(interpreted or not COMPILER.exists(), reason="triton here does not compile for NVIDIA")


def run_parity(directory, **environment):
    """Run in a new process, because triton reads TRITON_INTERPRET when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", str(PARITY)]
    # From elsewhere: in the repository's root, `python -m` would put gms_fast without its kernels on the path.
    done = subprocess.run(command, cwd=directory, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{PARITY.name} failed with {environment}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow(120)
def test_parity_in_the_interpreter(tmp_path):
    run_parity(tmp_path, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.slow(120)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
def test_parity_on_the_gpu(tmp_path):
    run_parity(tmp_path, TRITON_INTERPRET="0")


@pytest.fixture
def compiled(monkeypatch):
    """Return the launches that call() would make on a GPU, each with its compiled kernel."""
    from gms_fast import kernels
    from gms_fast.kernels.ahead import compile_ahead, launches

    monkeypatch.setattr(ops.fused, "backend_of", lambda *_: kernels)
    return lambda call, architecture: [(found, compile_ahead(found, architecture)) for found in launches(call)]


def check_compiled(compiled, directory):
    """Check that a cubin keeps its state in registers and uses IEEE arithmetic.

    It has no approximation and no flush to zero, except for the guess that `root_of_log` starts from.
    """
    path = directory / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([COMPILER / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
    used = {name: int(size) for name, size in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}
    assert used["STACK"] == used["LOCAL"] == 0
    assert used["REG"] <= 128  # two blocks of 256 threads a multiprocessor at least
    rough = re.findall(r"\S+\.(?:ftz|approx|full)\S*", compiled.asm["ptx"])
    assert set(rough) <= {"rsqrt.approx.ftz.f32"}
    assert len(rough) <= 4  # a root for two normals, of eight elements a thread


def watched(unconditional):
    return {"unconditional": unconditional, "watch": Watch(torch.zeros(1, dtype=torch.int32), 8)}


def guided_and_watched(unconditional):
    return {**watched(unconditional), "guidance": 2.0}


# Two terms, three results and what is kept, with weights by element.
LINEAR = Linear(Reading(1.0, 0.5, -1.0, 1.0, 2.0), (0.0,) * 4 + (0.5,), 2, 3, True, True, rows_of(3, [1, 2, 3]))


def moments(dtype=torch.float32):
    return [torch.rand(2, 2048).to(dtype) for _ in range(4)]


@compiles
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("fit", "moments_", "central", "component"), VARIANTS)
def test_step_compiles_without_spilling(fit, moments_, central, component, architecture, compiled, tmp_path):
    options = {"fit": fit, "moments": moments_, "central": central, "component": component}
    ((_, kernel),) = compiled(lambda: ops.gms_step(*moments(), STEP, **options), architecture)
    check_compiled(kernel, tmp_path)
    assert "ld.global.v4" in kernel.asm["ptx"]
    assert "convert_layout" not in kernel.asm["ttgir"]  # the draws come out of Philox in the order of the loads


@compiles
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("state", "out"), [(torch.float32, None), (torch.float32, torch.bfloat16), (torch.half, None)])
def test_narrow_moments_do_not_change_places(state, out, architecture, compiled):
    x, *rest = moments(torch.bfloat16)
    out = torch.empty(2, 2048, dtype=out or state)
    ((_, kernel),) = compiled(lambda: ops.gms_step(x.to(state), *rest, STEP, out=out), architecture)
    assert "convert_layout" not in kernel.asm["ttgir"]
    loads = re.findall(r"ld\.global\S*", kernel.asm["ptx"])
    assert len(loads) == 8
    assert all("v2" in load or "v4" in load for load in loads)


@compiles
@pytest.mark.parametrize(("elements", "predicates"), [(2048, 0), (2000, 8)])
def test_whole_blocks_are_loaded_without_a_mask(elements, predicates, compiled):
    tensors = [torch.rand(2, elements) for _ in range(4)]
    ((_, kernel),) = compiled(lambda: ops.gms_step(*tensors, STEP), 90)
    assert len(re.findall(r"@%p\d+ ld\.global", kernel.asm["ptx"])) == predicates


@compiles
@pytest.mark.parametrize("architecture", [80, 90])
def test_other_kernels_and_arguments_compile(architecture, compiled, tmp_path):
    x, e1, e2, e3 = moments()
    seeds, seed, index = torch.tensor([3, 4]), torch.tensor(3), torch.tensor(7)
    strided = [torch.rand(2, 2048, 2)[..., 0] for _ in range(4)]

    def calls():
        ops.sample_mixture(x, e1, e2, fit="free")
        ops.fit_mixture(x, e1, e2, fit="free")
        ops.affine_noise(x, [e1, e2], [1.0, 2.0, 3.0], 0.5)
        ops.affine_noise(x, [e1], torch.ones(3), seed=seed, step_index=index)
        ops.affine_noise(x, [e1, e2, e3, x, e1], torch.ones(7, 2048), 0.5, seed=seed, step_index=index)
        ops.affine_noise(strided[0], [e1.half(), e2.bfloat16()], torch.ones(4, 2048))
        ops.library.philox_normal([2, 64], seeds=seeds)
        ops.library.philox_uniform([2, 63], step_at=index)
        ops.gms_step(*moments(torch.bfloat16), STEP, seed=seeds)
        ops.gms_step(*moments(torch.float16), STEP, noise=(x.half(), e1[:, 0]), component="sample")
        ops.gms_step(x, e1, None, None, STEP, fit="gaussian")
        ops.gms_step(x, e1, e2, e3, STEP.as_tensor(), seed=seed, step_index=index)
        ops.gms_step(*strided, STEP)
        ops.linear_step(
            x, e1, [e2, e3, x], [1.0, 2.0, 3.0, 4.0, 5.0], 0.5, data=(1.0, 2.0), unconditional=e2, guidance=2
        )
        ops.linear_step(x, e1.half(), [], torch.ones(5), seed=seed, step_index=index)
        ops.linear_step(*strided[:2], strided[2:], torch.ones(5, 2048), data=(1.0, 2.0))
        for fit in FITS:
            fused.gms_step(x, e1, e2, e3, STEP, DEFAULT._replace(kind=fit), Draws(), **guided_and_watched(e3))
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            given, terms = [t.to(dtype) for t in (x, e1)], [t.to(dtype) for t in (e2, e3)]
            weights = torch.ones(LINEAR.present.bit_count(), 2048)
            fused.linear_step(*given, terms, LINEAR, Draws(), numbers=weights, **watched(e3.to(dtype)))

    found = compiled(calls, architecture)
    assert len(found) == 23
    for _, kernel in found:
        check_compiled(kernel, tmp_path)


@compiles
@pytest.mark.parametrize("architecture", [80, 90])
def test_weights_by_element_are_read_in_whole_vectors(architecture, compiled):
    x, *terms = moments()
    ((_, kernel),) = compiled(lambda: ops.affine_noise(x, terms, torch.rand(5, 2048), 0.5), architecture)
    loads = re.findall(r"ld\.global\S*", kernel.asm["ptx"])
    assert loads
    assert all("v4" in load for load in loads)


@compiles
def test_counters_do_not_compile_a_kernel_anew(monkeypatch):
    """Check that Triton does not specialise marked arguments.

    It specialises others for 1 and for multiples of 16, also inside a tuple.
    """
    from gms_fast import kernels
    from gms_fast.kernels.ahead import launches

    monkeypatch.setattr(ops.fused, "backend_of", lambda *_: kernels)
    counters, watch = {"seed_low", "seed_high", "sample_offset", "step"}, {"code"}
    x = moments()[0]
    calls = [
        (lambda: ops.gms_step(*moments(), STEP), counters | watch),
        (lambda: ops.sample_mixture(*moments()[:3]), counters),
        (lambda: ops.affine_noise(x, [x], [1.0, 1.0], 1.0), counters | watch),
        (lambda: ops.philox_normal((2, 8), seed=1), counters),
    ]
    for call, varying in calls:
        (found,) = launches(call)
        marked = {p.name for p in found.kernel.params if p.do_not_specialize}
        arguments = dict(zip(found.kernel.arg_names, found.arguments, strict=False))
        assert varying <= marked
        assert all(type(arguments[name]) is int for name in varying)
        assert not [v for v in arguments.values() if isinstance(v, tuple) and any(type(n) is int for n in v)]
