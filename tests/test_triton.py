"""The Triton kernels: parity in the interpreter and on a GPU (triton_parity.py), and compilation without one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

PARITY = Path(__file__).with_name("triton_parity.py")
COMPILER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
COUNTERS = ("seed_low", "seed_high", "sample_offset", "step", "stream")
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
    """In a process of its own, because triton reads TRITON_INTERPRET when it is imported."""
    command = [sys.executable, "-m", "pytest", "-q", "--color=no", "-p", "no:cacheprovider", str(PARITY)]
    # From elsewhere: in the repository's root, `python -m` would put gms_fast without its kernels on the path.
    done = subprocess.run(command, cwd=directory, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{PARITY.name} failed with {environment}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
def test_parity_in_the_interpreter(tmp_path):
    run_parity(tmp_path, TRITON_INTERPRET="1")


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
def test_parity_on_the_gpu(tmp_path):
    run_parity(tmp_path, TRITON_INTERPRET="0")


def compile_kernel(kernel, architecture, warps=8, element="fp32", **constants):
    """Ahead of time, with the options and the alignment that the launcher's arguments have."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from gms_fast.kernels.mixture import FitParameters
    from gms_fast.kernels.moments import StepCoefficients

    scalars = {
        "k": StepCoefficients(*["fp32"] * len(StepCoefficients._fields)),
        "p": FitParameters(*["fp32"] * len(FitParameters._fields)),
        "seeds": "*i64",
        **dict.fromkeys(("elements", *COUNTERS), "i32"),
        **dict.fromkeys(("z", "u"), "*fp32"),
        "floor": "fp32",
        **dict.fromkeys(constants, "constexpr"),
    }
    signature = {name: scalars.get(name, f"*{element}") for name in kernel.arg_names}
    aligned = [i for i, name in enumerate(kernel.arg_names) if signature[name] == f"*{element}" or name == "elements"]
    attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    return triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def check_compiled(compiled, directory):
    """A cubin that keeps its state in registers and whose arithmetic is IEEE: no approximation, no flush to zero."""
    path = directory / "kernel.cubin"
    path.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run([COMPILER / "cuobjdump", "-res-usage", path], capture_output=True, text=True, check=True)
    spilled = {name: int(size) for name, size in re.findall(r"(STACK|LOCAL):(\d+)", usage.stdout)}
    assert spilled == {"STACK": 0, "LOCAL": 0}
    assert not re.findall(r"\S+\.(?:ftz|approx|full)\S*", compiled.asm["ptx"])


@compiles
@pytest.mark.parametrize("architecture", [80, 90])
@pytest.mark.parametrize(("fit", "moments", "central", "component"), VARIANTS)
def test_step_compiles_without_spilling(fit, moments, central, component, architecture, tmp_path):
    from gms_fast.kernels.step import step_kernel

    switches = {"FIT": fit, "MOMENTS": moments, "CENTRAL": central, "ELEMENT": component == "element", "BLOCK": 1024}
    drawn = {"seeds": None, "z": None, "u": None, "ITERATIONS": 70}
    compiled = compile_kernel(step_kernel, architecture, **switches, **drawn)
    check_compiled(compiled, tmp_path)
    assert "ld.global.v4" in compiled.asm["ptx"]
    assert "convert_layout" not in compiled.asm["ttgir"]  # the draws come out of Philox in the order of the loads


@compiles
@pytest.mark.parametrize("architecture", [80, 90])
def test_other_kernels_and_arguments_compile(architecture, tmp_path):
    from gms_fast.kernels.step import fit_kernel, philox_kernel, sample_kernel, step_kernel

    free, drawn = {"FIT": "free", "ITERATIONS": 0}, {"z": None, "u": None}
    step = {**free, "MOMENTS": "cumulant", "CENTRAL": False, "ELEMENT": False}
    cases = [
        (sample_kernel, {**free, **drawn, "seeds": None, "ELEMENT": True}),
        (fit_kernel, free),
        (philox_kernel, {"seeds": None, "NORMAL": True}),
        (step_kernel, {**step, **drawn, "element": "bf16"}),  # with a seed for each sample
        (step_kernel, {**step, "seeds": None, "element": "fp16"}),  # with given z and u
        (step_kernel, {**step, **drawn, "seeds": None, "e2": None, "e3": None}),
    ]
    for kernel, constants in cases:
        check_compiled(compile_kernel(kernel, architecture, warps=1, BLOCK=128, **constants), tmp_path)


@compiles
def test_counters_do_not_compile_a_kernel_anew():
    from gms_fast.kernels.step import philox_kernel, sample_kernel, step_kernel

    for kernel in (step_kernel, sample_kernel, philox_kernel):
        named = [p for p in kernel.params if p.name in COUNTERS]
        assert len(named) >= 4
        assert all(p.do_not_specialize for p in named)
