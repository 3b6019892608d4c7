"""The benchmarks: runs on tiny shapes, refusal of wrong kernels, and figures in the README."""

import importlib
import os
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch
from places import BENCH

import gms_fast
from bench.docs import readme
from bench.gpu import predict
from bench.speed import cases, gate, gms_step, network
from bench.speed.machine import Machine, StandIn
from gms_fast import ops

SCRIPTS = {  # by the names that `python -m` takes
    ".".join(file.relative_to(BENCH.parent).with_suffix("").parts): file
    for file in sorted(BENCH.rglob("*.py"))
    if "__main__" in file.read_text()
}
NAMING = ("*.md", "docs/**/*.md", "gms_fast/**/*.md", "gms_fast/**/*.py", "bench/*.md", "bench/**/*.py", "Makefile")
TEXTS = {file: file.read_text() for pattern in NAMING for file in BENCH.parent.glob(pattern)}
COMMAND = re.compile(r"python -m (bench(?:\.\w+)+)(?![.\w])([^`|&#;\n]*)")
OPS = ["gms_step", "sample_mixture", "fit_mixture", "philox", "affine_noise"]
interpreted = os.environ.get("TRITON_INTERPRET") == "1"


def commands(text):
    """Return the commands in a text as [(script, options)]."""
    return [(name, re.findall(r"--[\w-]+", words)) for name, words in COMMAND.findall(text)]


NAMED = [command for text in TEXTS.values() for command in commands(text)]


@pytest.mark.parametrize("script", SCRIPTS)
def test_script_has_the_options_that_are_named_anywhere(script, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [script, "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(SCRIPTS[script]), run_name="__main__")
    assert stop.value.code == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out.partition("options:")[2]))
    assert {option for name, options in NAMED for option in options if name == script} <= known


def test_commands_and_files_that_are_named_exist():
    assert {name for name, _ in NAMED} <= SCRIPTS.keys()
    files = {name for text in TEXTS.values() for name in re.findall(r"\bbench/[\w/]+\.py", text)}
    assert files
    assert not [name for name in files if not (BENCH.parent / name).exists()]
    assert not [file for file, text in TEXTS.items() if "python bench/" in text]


def test_table_of_commands_is_complete():
    assert {name for name, _ in commands(TEXTS[BENCH / "README.md"])} == SCRIPTS.keys()


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(cases.SHAPES, "tiny", (4, 1, 8, 8))
    return "tiny"


@pytest.mark.parametrize("machine", [Machine, StandIn])
@pytest.mark.parametrize("op", OPS)
def test_benchmark_measures(op, machine, tiny, monkeypatch):
    module = importlib.import_module(f"bench.speed.{op}")
    monkeypatch.setattr(module, "compiled", lambda function: function, raising=False)  # compiling takes a minute
    result = module.measure(machine(), tiny, 2)
    assert result["op"] == op
    names = [row["name"] for row in result["rows"]]
    assert names[:2] == ["torch.randn_like", "copy"]
    assert len(set(names)) == len(names) > 4
    for row in result["rows"]:
        low, median, high = row["over_randn"]
        assert 0 < low <= median <= high
        assert row["of_copy"] > 0
        assert ("ms" in row) == (machine is StandIn)  # a CPU's times are kept as ratios only
    assert "failed" not in result
    if op == "gms_step":
        assert len(gms_step.bars(result["rows"])) == 4


def spoiled(op, change):
    """Wrap an op so that float32 results of the kernels are changed."""

    def wrapped(x, *args, **options):
        result = op(x, *args, **options)
        if x.dtype == torch.float32 and gms_fast.backends()["chosen"]["cpu"] != "torch":
            change(result.view(-1))
        return result

    return wrapped


CHANGES = {
    "everywhere a little": (lambda y: y.add_(1e-4), "errors are"),
    "one in eight": (lambda y: y[::8].mul_(1.001), "errors are"),
    "one element": (lambda y: y[7].add_(1.0), "the largest error is .* in each of 23 draws"),
    "not a number": (lambda y: y[7].fill_(torch.nan), "there is NaN"),
}


@pytest.fixture
def sets():
    return cases.Sets(lambda seed: cases.noise_moments((8, 3, 32, 32), "cpu", seed))


@pytest.mark.parametrize("change", CHANGES)
def test_gate_refuses_a_wrong_kernel(change, sets, monkeypatch):
    case = gms_step.fused(sets, "exact", "element")
    gate.check(case)
    spoil, message = CHANGES[change]
    monkeypatch.setattr(ops, "gms_step", spoiled(ops.gms_step, spoil))
    with pytest.raises(gate.WrongResultError, match=f"exact/element disagrees with float64: .*{message}"):
        gate.check(case)


@pytest.mark.parametrize("k", [1, 8, 64])
def test_gate_alarms_no_more_often_than_derived(k):
    """Count alarms on errors without a mean, at a visible rate and at the gate's own."""
    generator = torch.Generator().manual_seed(k)
    found, allowed = (torch.rand((4000, 512), generator=generator).pow(-2).sort(descending=True).values for _ in "ab")
    alarms = found[:, gate.rank(k, 0.2) - 1] > allowed[:, k - 1]
    assert 0 < alarms.double().mean() < 0.2
    outputs = [gate.Errors(*pair) for pair in zip(found, allowed, strict=True)]
    assert not any(errors.bulk() for errors in outputs)
    assert 0.45 < sum(bool(errors.tail()) for errors in outputs) / len(outputs) < 0.55


def test_gate_passes_a_right_kernel_whose_largest_error_is_chance():
    alarmed = 0
    for seed in (13, 18):
        sets = cases.Sets(lambda draw, seed=seed: cases.noise_moments((4, 1, 16, 16), "cpu", seed + draw))
        case = gms_step.fused(sets, "free", "element")
        gate.check(case)
        alarmed += any(errors.tail() for errors in gate._errors(case, sets[0]))
    assert alarmed == 1


def test_failing_case_costs_no_other(tiny, monkeypatch):
    step, wrong = ops.gms_step, spoiled(ops.gms_step, lambda y: y.add_(1.0))

    def broken(*args, fit="exact", out=None, **options):
        if out is not None:
            raise RuntimeError("no such launch")
        return (wrong if fit == "free" else step)(*args, fit=fit, **options)

    monkeypatch.setattr(ops, "gms_step", broken)
    monkeypatch.setattr(gms_step, "compiled", lambda function: None)
    result = gms_step.measure(Machine(), tiny, 2)
    assert result["failed"].keys() == {
        "gms_step free/sample",
        "gms_step free/element",
        gms_step.NARROW,
        gms_step.COMPILED,
        "torch.compile of the DDPM update",
    }
    assert "disagrees with float64" in result["failed"]["gms_step free/sample"]
    assert result["failed"][gms_step.NARROW] == "RuntimeError: no such launch"
    assert {gms_step.EXACT, gms_step.RELEASED} <= {row["name"] for row in result["rows"]}


PARTIAL = {
    "cuda": {
        "environment": {"gpu": "NVIDIA H200", "commit": None},
        "bars": [
            {"name": readme.TARGETS["released"].name, "value": 512.0, "bound by": "host"},
            {"name": readme.TARGETS["graph"].name, "value": 7.6, "commit": "a1"},
        ],
        "parts": {
            "host": {"skipped": "no time"},
            "gms_step, stream": {
                "shape": "stream",
                "rows": [{"name": "gms_step exact/sample", "bytes": 20, "of_copy": 0.9}],
                "failed": {"copy": "RuntimeError"},
            },
        },
    }
}


def test_partial_results_of_a_gpu_are_shown(monkeypatch):
    """Show results without driver, commit, one backend and some parts."""
    load = readme.load
    monkeypatch.setattr(readme, "load", lambda name: PARTIAL if name == "gpu.json" else load(name))
    table = readme.gpu_table()
    source = (
        "On NVIDIA H200 (`python -m bench.gpu.gpu_check`); not measured: CUDA (host), CUDA (gms_step, stream: copy), "
    )
    assert table.startswith(f"{source}Triton as a whole.")
    assert "| ≥ 300x | 512x (bound by the host) | - | - |" in table
    assert "| ≥ 2.0x | 7.6x (commit a1) | - | - |" in table
    assert "CUDA, predicted" not in table
    assert "target for an H100" not in table
    assert [p["title"] for p in readme.panels()][1:] == [
        "NVIDIA H200, CUDA, $2^{26}$ elements",
        "H200, predicted, Triton, $2^{26}$ elements",
    ]


def test_network_benchmark_shows_ratios(capsys):
    network.show_calls(network.measured(network.calls(2, compiled=False), 2))
    *rows, share = capsys.readouterr().out.splitlines()
    assert len(rows) >= 4
    assert rows[0].startswith(f"{network.ALL} ")
    for row in rows:
        median, low, high = map(float, row.split()[-3:])
        assert 0 < low <= median <= high
    assert re.fullmatch(r"share of the heads: -?\d+\.\d%", share)
    network.show_batches(network.measured([network.Case(str(network.UNIT), lambda *_: None, network.inputs(1), 8)], 2))
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["64", "1.00"]


def test_readme_shows_the_committed_results():
    text = (BENCH.parent / "README.md").read_text()
    assert readme.page(text) == text


def test_main_path_leaves_out_calls_and_counts_the_longer_branch():
    code = ["S2R R0", "@P0 BRA 0x50", "FADD R1", "CALL.REL 0x70", "BRA 0x60", "FMUL R1", "@P1 EXIT", "EXIT"]
    assert predict.main_path([(16 * i, text) for i, text in enumerate(code)]) == 5


@pytest.mark.skipif(interpreted, reason="the interpreter does not compile")
def test_prediction_reads_the_machine_code():
    triton = pytest.importorskip("triton")
    if not (Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump").exists():
        pytest.skip("triton here does not compile for NVIDIA")
    case = "exact", "sample", "float32"
    row = predict.row("triton", *case, predict.triton_instructions(*case))
    assert row["bytes"] == 20
    assert 50 < row["instructions"] < 500
    assert 0 < row["of_copy"] <= 1
