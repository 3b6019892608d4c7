"""The installed build is the one of this checkout."""

import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT

import gms_fast
from bench.gpu import predict
from gms_fast.ops import native

SETUP = runpy.run_path(str(ROOT / "setup.py"), run_name="setup")


def test_the_compiled_module_is_there_unless_declined():
    assert native.available != (os.environ.get("GMS_FAST_PURE") == "1"), native.reason


@pytest.mark.skipif(not native.available, reason="no compiled module was asked for (GMS_FAST_PURE=1)")
def test_cuda_kernels_were_compiled_where_they_are_wanted():
    assert native.with_cuda == SETUP["wants_cuda"]()
    assert bool(native.cuda_architectures) == native.with_cuda


@pytest.mark.parametrize(
    ("choice", "nvcc", "for_cpus", "wanted"),
    [
        ("auto", "nvcc", False, True),
        ("auto", "nvcc", True, False),
        ("auto", None, False, False),
        ("1", "nvcc", True, True),
        ("0", "nvcc", False, False),
    ],
)
def test_cuda_is_compiled_for_a_torch_that_can_use_it_or_on_request(
    choice, nvcc, for_cpus, wanted, monkeypatch, capsys
):
    monkeypatch.setenv("GMS_FAST_CUDA", choice)
    monkeypatch.setitem(SETUP["wants_cuda"].__globals__, "nvcc", lambda: nvcc)
    monkeypatch.setitem(SETUP["wants_cuda"].__globals__, "torch_is_for_cpus", lambda: for_cpus)
    assert SETUP["wants_cuda"]() == wanted
    assert ("left out" in capsys.readouterr().out) == (choice == "auto" and nvcc is not None and for_cpus)


@pytest.mark.parametrize(
    ("choice", "message"), [("1", "there is no nvcc on PATH"), ("yes", "must be auto, 0 or 1: got 'yes'")]
)
def test_a_build_that_cannot_be_is_one_clear_line(choice, message, monkeypatch):
    monkeypatch.setenv("GMS_FAST_CUDA", choice)
    monkeypatch.setitem(SETUP["wants_cuda"].__globals__, "nvcc", lambda: None)
    with pytest.raises(SystemExit, match=message):
        SETUP["wants_cuda"]()


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        ("cmake", "cmake is missing: pip install cmake"),
        ("ninja", "ninja is missing: pip install ninja"),
        (("c++", "g++", "clang++", "icpx", "cl"), "a C.. compiler is missing: install one"),
    ],
)
def test_a_missing_tool_is_named(tool, message, monkeypatch):
    which = SETUP["shutil"].which
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(SETUP["shutil"], "which", lambda name: None if name in (tool, *tool) else which(name) or name)
    assert re.match(message, SETUP["missing_tool"]())


@pytest.mark.parametrize("compiler", ["/nonexistent/c++", "ccache-of-nobody g++"])
def test_a_compiler_that_is_named_and_missing_is_one_clear_line(compiler, tmp_path):
    done = build(tmp_path / "made", CXX=compiler)
    last = done.stderr.strip().splitlines()
    assert done.returncode == 1
    assert not (tmp_path / "made").exists()  # the error comes before anything is copied
    assert last == [
        f"the C++ compiler that CXX names is missing, {compiler.split()[0]}: install it, or name another; "
        "or set GMS_FAST_PURE=1 to do without the compiled kernels"
    ]


def test_a_compiler_that_fails_is_heard(tmp_path):
    """The output has the compiler's own message, and one line of ours at the end."""
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho the compiler is out of order >&2\nexit 1\n")
    compiler.chmod(0o755)
    done = build(tmp_path / "made", CXX=str(compiler))
    assert done.returncode == 1
    assert "the compiler is out of order" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("configuring the compiled kernels failed, as said above")
    assert "GMS_FAST_PURE=1" in last


def test_a_compiler_that_is_there_lacks_nothing(monkeypatch):
    monkeypatch.setenv("CXX", f"{sys.executable} -O2")
    monkeypatch.setattr(SETUP["shutil"], "which", lambda name: name)
    assert SETUP["missing_tool"]() is None


def build(folder, **environment):
    """Run setup.py in its own process, with its build folder outside the checkout."""
    if any(shutil.which(tool) is None for tool in ("cmake", "ninja")):
        pytest.skip("cmake or ninja is not installed")
    arguments = ["-q", "build", "-b", str(folder), "-t", str(folder)]
    code = f"import runpy, sys; sys.argv[1:] = {arguments}; runpy.run_path('setup.py', run_name='__main__')"
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True)


def test_setup_knows_this_torch_without_importing_it():
    import torch

    assert SETUP["torch_is_for_cpus"]() == (torch.version.cuda is None)


def test_package_and_kernels_are_those_of_this_checkout():
    assert Path(gms_fast.__file__).parent == ROOT / "gms_fast"
    kernels = subprocess.run(
        [sys.executable, "-c", "import importlib.util as u; print(u.find_spec('gms_fast.kernels').origin)"],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    assert Path(kernels.stdout.strip()) == ROOT / "kernels" / "__init__.py"


def test_bare_kernels_folder_is_empty():
    """Libraries such as transformers import any package of that name to ask for its version."""
    code = (
        "import sys, kernels; print(getattr(kernels, '__version__', None), 'triton' in sys.modules); kernels.gms_step"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.split() == ["None", "False"]
    assert "import gms_fast.kernels, not the bare folder, for gms_step" in done.stderr


def test_baseline_objects_hold_no_wide_code():
    """No function is shared between instruction sets, which would crash an old processor."""
    objects = sorted(ROOT.glob("build/**/cpu_*.dir/**/*.o"))
    if not objects or shutil.which("nm") is None:
        pytest.skip("the build folder was not kept (pip builds in a temporary one)")
    for path in objects:
        symbols = subprocess.run(["nm", "-C", str(path)], capture_output=True, text=True, check=True).stdout
        assert not [line for line in symbols.splitlines() if " W " in line], path


@pytest.mark.parametrize("compiler", [["g++"], ["nvcc", "-x", "cu"]], ids=["g++", "nvcc"])
def test_the_double_instantiation_of_the_headers_equals_the_oracle(compiler, tmp_path):
    """The same source in double has no rounding that could hide a wrong formula."""
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"{compiler[0]} is not installed")
    binary, program = str(tmp_path / "double"), str(ROOT / "tests" / "architecture" / "double.cpp")
    subprocess.run([*compiler, "-std=c++17", "-O1", f"-I{ROOT / 'csrc'}", program, "-o", binary], check=True)
    compare_with_oracle(subprocess.run([binary], capture_output=True, text=True, check=True).stdout)


@pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")
def test_roots_and_quotients_without_branches_are_those_of_ieee(tmp_path):
    """Check all mantissas of a root, and the quotients that are hardest to round."""
    includes = [f"-I{ROOT / folder}" for folder in ("tests/cuda_shim", "csrc")]
    wide = ["-mavx2", "-mfma"] if "avx2" in native.instruction_sets() else []
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", *wide, *includes]
    program = str(tmp_path / "quick")
    subprocess.run(["g++", *flags, str(ROOT / "tests" / "architecture" / "quick.cpp"), "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert int(done.stdout.split()[0]) > 100_000_000


@pytest.mark.slow(90)
@pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
@pytest.mark.parametrize("source", ["step", "mixture", "linear"])
def test_cuda_kernels_keep_their_state_in_registers(source, tmp_path):
    """No kernel has a stack frame on either generation, so none spills registers.

    A quick kernel takes 80 registers at most.
    """
    architectures = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90)]
    path, target = str(ROOT / "csrc" / "cuda" / f"{source}.cu"), tmp_path / "kernels.o"
    command = ["nvcc", *predict.CUDA_FLAGS, *architectures, "--threads", "2", "-Xptxas", "-v", "-c", path, "-o"]
    report = subprocess.run([*command, str(target)], capture_output=True, text=True, check=True).stderr
    frames = re.findall(r"(\d+) bytes stack frame, (\d+) bytes spill stores", report)
    assert set(frames) == {("0", "0")}
    entries = re.findall(r"Compiling entry function '(\w+)'(?:.*\n)*?.*Used (\d+) registers", report)
    assert len(entries) > 2 * 40  # one per fit, dtype, kind of draw and kind of access
    assert all(int(used) <= 80 for name, used in entries if "quick" in name and "weighted" not in name)
    if source == "step":
        check_instructions(predict.disassemble(target, "sm_90"))


def check_instructions(kernels) -> None:
    """Bound the instructions of a warp per element.

    An H200 issues about 148 while it moves the 20 bytes of an element.
    """
    bars = {
        ("exact", "sample", "float32"): 116,
        ("exact", "sample", "bfloat16 moments and output"): 121,
        ("free", "element", "float32"): 205,
    }
    counts = {case: predict.cuda_instructions(kernels, *case) for case in bars}
    assert all(counts[case] <= bars[case] for case in bars), counts


def compare_with_oracle(output: str) -> None:
    import torch

    from gms_fast.ops import reference

    rows = torch.tensor([[float(v) for v in line.split()] for line in output.splitlines()], dtype=torch.float64)
    x, e1, e2, e3 = rows[:, :4].T
    step = (0.6, 0.8, 0.5, 0.3, 0.04)
    column = 4
    for fit in ("exact", "free", "adan", "gaussian"):
        # third = difference of terms of size |e1|^3 <= 60, divided by r2^1.5 >= 0.03: 60/0.03 eps = 5e-13, and its
        # cube root is no worse; adan divides by small sums, which amplifies rounding about tenfold an iteration.
        tolerance = 1e-9 if fit == "adan" else 4e-12
        mean, base, excess, third, _ = reference.step_moments(x, e1, e2, e3, step)
        options = {"fit": fit, "weight": 1 / 3, "iterations": 5, "lr": 0.06, "eps": 1e-8}
        wanted = [*reference.fit_mixture(mean, base, excess, third, **options)]
        for u in (0.2, 0.5):
            for moments in ("cumulant", "released"):
                draws = torch.full_like(x, 0.7), torch.full_like(x, u)
                options |= {"moments": moments, "central": False, "clip": (-1.0, 1.0)}
                wanted.append(reference.gms_step(x, e1, e2, e3, (*step, torch.inf), *draws, **options))
        for want in wanted:
            # Where rounding decides between two branches with different results (clipping, component), both are right.
            far = (rows[:, column] - want).abs() > tolerance * (1 + want.abs())
            assert far.double().mean() < 1e-3
            column += 1
