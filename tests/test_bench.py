"""The benchmarks start, measure tiny shapes, refuse wrong kernels, and the README shows their committed results."""

import importlib
import os
import runpy
import sys
from pathlib import Path

import cases
import gate
import gms_step
import predict
import pytest
import report
import torch

from gms_fast import ops

BENCH = Path(__file__).parent.parent / "bench"
SCRIPTS = sorted(file.name for file in BENCH.glob("*.py") if "__main__" in file.read_text())
OPS = ["gms_step", "sample_mixture", "fit_mixture", "philox", "affine_noise"]
interpreted = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_shows_its_help(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(BENCH / script), run_name="__main__")
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(cases.SHAPES, "tiny", (4, 1, 8, 8))
    return "tiny"


@pytest.mark.parametrize("op", OPS)
def test_benchmark_measures(op, tiny, monkeypatch):
    module = importlib.import_module(op)
    monkeypatch.setattr(module, "compiled", lambda *_: None, raising=False)  # a minute of compiler
    result = module.measure("cpu", tiny, 2)
    assert result["op"] == op
    names = [row["name"] for row in result["rows"]]
    assert names[:2] == ["torch.randn_like", "copy"]
    assert len(set(names)) == len(names) > 4
    for row in result["rows"]:
        low, median, high = row["over_randn"]
        assert 0 < low <= median <= high
        assert row["of_copy"] > 0
        assert "ms" not in row  # a CPU's times are kept as ratios only
    if op == "gms_step":
        assert len(gms_step.bars(result["rows"])) == 4


def spoiled(op, change):
    """The op, its first float32 result changed: the kernel's; the gate's yardstick comes second."""
    calls = []

    def wrapped(x, *args, **options):
        result = op(x, *args, **options)
        if x.dtype == torch.float32 and not calls:
            calls.append(1)
            change(result.view(-1))
        return result

    return wrapped


CHANGES = {
    "everywhere a little": lambda y: y.add_(1e-4),
    "one element": lambda y: y[7].add_(1.0),
    "not a number": lambda y: y[7].fill_(torch.nan),
}


@pytest.mark.parametrize("change", CHANGES)
def test_gate_refuses_a_wrong_kernel(change, monkeypatch):
    sets = [cases.noise_moments((4, 1, 16, 16), "cpu", 0)]
    case = gms_step.fused(sets, "exact", "element")
    gate.check(case)
    monkeypatch.setattr(ops, "gms_step", spoiled(ops.gms_step, CHANGES[change]))
    with pytest.raises(gate.WrongResultError, match="exact/element disagrees with float64, nothing was timed"):
        gate.check(case)


def test_readme_shows_the_committed_results():
    text = (BENCH.parent / "README.md").read_text()
    assert report.readme(text) == text


def test_main_path_leaves_out_calls_and_counts_the_longer_branch():
    code = ["S2R R0", "@P0 BRA 0x50", "FADD R1", "CALL.REL 0x70", "BRA 0x60", "FMUL R1", "@P1 EXIT", "EXIT"]
    assert predict.main_path([(16 * i, text) for i, text in enumerate(code)]) == 5


@pytest.mark.skipif(interpreted, reason="the interpreter does not compile")
def test_prediction_reads_the_machine_code():
    triton = pytest.importorskip("triton")
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").exists():
        pytest.skip("triton here does not compile for NVIDIA")
    row = predict.predict("exact", "sample", "float32")
    assert row["bytes"] == 20
    assert 50 < row["instructions"] < 500
    assert 0 < row["of_copy"] <= 1
