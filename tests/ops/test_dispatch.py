"""Choice of a backend: the report, forcing, and an import without side effects."""

import os
import subprocess
import sys

import pytest
import torch

import gms_fast
from gms_fast import cli, ops
from gms_fast.ops import dispatch, native
from gms_fast.schedules import VPLinear

EPS = 2.0**-23
STEP = gms_fast.StepCoefficients.between(VPLinear(), 400, 300)


@pytest.fixture(autouse=True)
def _unforced(monkeypatch):
    """Reset the choice of backend before and after every test."""
    monkeypatch.delenv(dispatch.VARIABLE, raising=False)
    gms_fast.set_backend(None)
    yield
    monkeypatch.undo()
    gms_fast.set_backend(None)


def python(code, **environment):
    """Run code in a fresh interpreter, whose modules no other test has imported."""
    inherited = {k: v for k, v in os.environ.items() if k not in (dispatch.VARIABLE, "TRITON_INTERPRET")}
    return subprocess.run([sys.executable, "-c", code], env=inherited | environment, capture_output=True, text=True)


def test_backends_accounts_for_every_name():
    report = gms_fast.backends()
    assert sorted([*report["available"], *report["missing"]]) == sorted(dispatch.NAMES)
    assert all(isinstance(why, str) and why for why in report["missing"].values())
    assert "torch" in report["available"]
    assert report["chosen"]["cpu"] == ("cpp" if native.available else "torch")
    assert report["chosen"]["cuda"] in ([*report["available"]] if torch.cuda.is_available() else [None])
    assert report["instruction_set"] in (("avx512", "avx2", "baseline") if native.available else (None,))


def test_set_backend_is_reported_and_undone():
    gms_fast.set_backend("torch")
    assert gms_fast.backends()["chosen"]["cpu"] == "torch"
    gms_fast.set_backend(None)
    assert gms_fast.backends()["chosen"]["cpu"] == ("cpp" if native.available else "torch")


def test_set_backend_refuses_an_unknown_name():
    with pytest.raises(ValueError, match="backend must be one of cpp, cuda, triton, torch: got 'bogus'"):
        gms_fast.set_backend("bogus")


@pytest.mark.parametrize("name", ["cuda", "triton", "cpp"])
def test_set_backend_refuses_a_missing_one_with_the_reason(name, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(native, "reason", "the compiled module is missing")
    gms_fast.set_backend("torch")
    reason = gms_fast.backends()["missing"][name]
    with pytest.raises(RuntimeError, match=f"backend '{name}' is not available: ") as refusal:
        gms_fast.set_backend(name)
    assert str(refusal.value).endswith(reason)
    assert gms_fast.backends()["chosen"]["cpu"] == "torch"  # the choice before stays


def test_forced_backend_refuses_tensors_it_cannot_take(monkeypatch):
    monkeypatch.setattr(dispatch, "_forced", "cuda")
    dispatch.chosen.cache_clear()
    assert gms_fast.backends()["chosen"]["cpu"] is None
    with pytest.raises(RuntimeError, match="backend 'cuda' is forced, but it does not run on cpu tensors"):
        ops.philox_normal((2, 3), seed=0)


@pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")
@pytest.mark.parametrize("fit", ["exact", "free", "gaussian"])
def test_forced_torch_equals_cpp(fit):
    """Compare two float32 evaluations of the same formulas.

    The third cumulant of eps is at least 0.5. It is a sum of terms up to 14 in total, hence off by 3 EPS 14. The cube
    root takes a third of that, relatively: d <= 2.5 changes by at most 2.5/3 (42 EPS)/0.5 = 70 EPS.
    """
    generator = torch.Generator().manual_seed(0)
    x, e1, spread, skew = (torch.rand(3, 2, 9, 5, generator=generator) for _ in range(4))
    inputs = x, e1, e1**2 + 0.2 + spread, e1**3 + 3 * e1 * (0.2 + spread) + 0.5 + skew
    results = {}
    for name in ("torch", "cpp"):
        gms_fast.set_backend(name)
        results[name] = ops.gms_step(*inputs, STEP, fit=fit, clip=(-3.0, 3.0), seed=1)
    torch.testing.assert_close(results["torch"], results["cpp"], rtol=0, atol=128 * EPS)
    assert results["cpp"].std() > 0.1


def test_environment_variable_forces_a_backend():
    run = python("import gms_fast; print(gms_fast.backends()['chosen']['cpu'])", GMS_FAST_BACKEND="torch")
    assert run.stdout.strip() == "torch", run.stderr


def test_environment_variable_with_an_unknown_name_is_an_error():
    run = python("import gms_fast", GMS_FAST_BACKEND="bogus")
    assert run.returncode != 0
    last = run.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError")
    assert "cpp, cuda, triton, torch" in last
    assert "'bogus'" in last


def test_import_is_lean():
    """Check that an import loads no optional dependency and touches no device."""
    heavy = [
        "triton",
        "diffusers",
        "scipy",
        "sklearn",
        "matplotlib",
        "PIL",
        "mlxtend",
        "gms_fast.kernels",
        "gms_fast.cli",
    ]
    run = python(
        f"import sys, gms_fast, torch\nprint([m for m in {heavy} if m in sys.modules], torch.cuda.is_initialized())"
    )
    assert run.stdout.strip() == "[] False", run.stderr


CARDS = {  # compute capabilities, what is compiled: what is chosen, and a word of the reason why not CUDA
    "same generation": ([(8, 6)], "80-real;90", "cuda", ""),
    "its own": ([(9, 0)], "80-real;90", "cuda", ""),
    "later, by PTX": ([(12, 0)], "80-real;90", "cuda", ""),
    "later, without PTX": ([(12, 0)], "80-real;90-real", "triton", "CUDAARCHS=120"),
    "earlier than all code": ([(8, 0)], "90", "triton", "compiled for 90: install with CUDAARCHS=80"),
    "PTX alone": ([(8, 9)], "80-virtual", "cuda", ""),
    "a minor version too early": ([(8, 0)], "86-real", "triton", "CUDAARCHS=80"),
    "too old": ([(7, 5)], "75;80-real;90", "torch", "compute capability 7.5, and the kernels need 8.0"),
    "of whoever compiled it": ([(9, 0)], "native", "cuda", ""),
    "two cards, one without code": ([(9, 0), (8, 0)], "90", "triton", "Card 1 has compute capability 8.0"),
    "two cards": ([(9, 0), (8, 0)], "80-real;90", "cuda", ""),
}


@pytest.mark.parametrize(("capabilities", "compiled", "chosen", "why"), CARDS.values(), ids=CARDS)
def test_the_card_decides(capabilities, compiled, chosen, why, monkeypatch):
    """Check that a backend without code for a GPU is never chosen, and that the error helps."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())
    monkeypatch.setattr(native, "with_cuda", True)
    monkeypatch.setattr(native, "cuda_architectures", tuple(compiled.split(";")))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: f"Card {i}")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: capabilities[i])
    dispatch.chosen.cache_clear()
    report = gms_fast.backends()
    assert report["chosen"]["cuda"] == chosen
    assert why in report["missing"].get("cuda", "")
    assert ("cuda" in report["available"]) == (not why)
    if why:
        with pytest.raises(RuntimeError, match="backend 'cuda' is not available: Card"):
            gms_fast.set_backend("cuda")


def test_an_older_triton_is_refused(monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())
    monkeypatch.setattr(dispatch, "version", lambda name: "3.4.0")
    assert "triton 3.4 is older than 3.6" in gms_fast.backends()["missing"]["triton"]
    monkeypatch.setattr(dispatch, "version", lambda name: "3.10.1+git")
    assert "older" not in gms_fast.backends()["missing"].get("triton", "")


@pytest.fixture
def rocm(monkeypatch):
    """A torch for ROCm with one GPU, called "cuda", and a library compiled for NVIDIA GPUs."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "hip", "6.4.43482")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(dispatch, "find_spec", lambda name: object())
    monkeypatch.setattr(dispatch, "version", lambda name: "3.6.0")
    monkeypatch.setattr(native, "with_cuda", True)
    monkeypatch.setattr(native, "cuda_architectures", ("80-real", "90"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda i: "AMD Instinct")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (9, 4))  # code of 90 would run on such a card
    dispatch.chosen.cache_clear()


def test_on_rocm_the_cuda_library_never_runs(rocm):
    report = gms_fast.backends()
    assert report["missing"]["cuda"] == "this torch is for ROCm 6.4.43482, and the CUDA kernels are for NVIDIA's GPUs"
    assert report["chosen"]["cuda"] == "triton"
    with pytest.raises(RuntimeError, match="backend 'cuda' is not available: this torch is for ROCm"):
        gms_fast.set_backend("cuda")


def test_on_rocm_nothing_asks_for_nvidias_compute_capability(rocm, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (7, 0))
    assert "triton" in gms_fast.backends()["available"]
    gms_fast.set_backend("triton")


def test_on_rocm_without_triton_the_torch_path_runs(rocm, monkeypatch):
    monkeypatch.setattr(dispatch, "find_spec", lambda name: None)
    assert gms_fast.backends()["chosen"]["cuda"] == "torch"


def test_info_names_rocm(rocm, capsys):
    assert cli.main(["info"]) == 0
    shown = capsys.readouterr().out
    assert "ROCm 6.4.43482, 1 x AMD Instinct" in shown
    assert "triton on cuda" in shown


def test_other_devices_are_accounted_for(capsys):
    assert gms_fast.backends()["chosen"]["other"] == "torch"
    assert dispatch.chosen("mps") == dispatch.chosen("privateuseone") == "torch"
    assert cli.main(["info"]) == 0
    assert "torch on every other device" in capsys.readouterr().out
    gms_fast.set_backend("torch")
    assert dispatch.chosen("xpu") == "torch"


def test_the_accelerator_of_the_machine_is_named(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert gms_fast.backends()["chosen"]["mps"] == "torch"


@pytest.mark.parametrize("name", ["cuda", "triton", "cpp"])
def test_a_forced_backend_refuses_other_devices(name, monkeypatch):
    monkeypatch.setattr(dispatch, "_forced", name)
    dispatch.chosen.cache_clear()
    assert gms_fast.backends()["chosen"]["other"] is None
    with pytest.raises(RuntimeError, match=f"backend '{name}' is forced, but it does not run on mps tensors"):
        dispatch.chosen("mps")


def test_a_module_that_was_not_built_is_told_from_a_broken_one(tmp_path):
    hide = "import sys; sys.modules['gms_fast._C'] = None\n"
    run = python(f"{hide}import gms_fast; print(gms_fast.backends()['missing']['cpp'])")
    assert run.stdout.startswith("the compiled module was not built for this Python (GMS_FAST_PURE=1"), run.stderr
    assert "without GMS_FAST_PURE" in run.stdout
    broken = tmp_path / "_C.py"
    broken.write_text("raise ImportError('libstdc++.so.6: version GLIBCXX_3.4.32 not found')")
    load = (
        "import importlib.abc, importlib.util, sys\n"
        "class Finder(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'gms_fast._C':\n"
        f"            return importlib.util.spec_from_file_location(name, {str(broken)!r})\n"
        "sys.meta_path.insert(0, Finder())\n"
    )
    run = python(f"{load}import gms_fast; print(gms_fast.backends()['missing']['cpp'])")
    assert "is there, but cannot be loaded (libstdc++.so.6: version GLIBCXX_3.4.32 not found)" in run.stdout, run.stderr
    assert "circular" not in run.stdout
