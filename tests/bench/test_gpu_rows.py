"""GPU benchmarks on a stand-in: clocks that the host cannot distort, and isolated failures."""

import json
import sys
import time

import pytest
import torch

from bench.gpu import gpu_rows
from bench.records.record import environment
from bench.speed import cases
from bench.speed.bars import Bar
from bench.speed.machine import StandIn
from bench.speed.timing import in_turn


class Recorder(StandIn):
    """Stand-in that records its calls and has `left` seconds of work when the host is done."""

    repeat = 4
    cache = 100

    def __init__(self, left=0.0):
        self.left, self.asked, self.slept = left, [], 0.0

    def mark(self):
        self.asked.append("mark")
        return super().mark()

    def sleep(self, seconds):
        self.asked.append("sleep")
        self.slept = seconds

    def synchronize(self):
        self.asked.append("synchronize")
        time.sleep(self.left)

    def case(self, run=lambda x: x, count=16):
        """Make a case that moves 4 bytes for each of `count` elements."""

        def noted(x):
            self.asked.append("call")
            return run(x)

        return cases.Case("case", noted, cases.Sets(lambda seed: (torch.full((count,), float(seed)),), 9), 4)


def test_host_has_enqueued_a_turn_before_the_gpu_wakes():
    machine = Recorder()
    in_turn(machine, [machine.case(lambda x: time.sleep(0.002))], 1)
    turn = ["synchronize", "sleep", "call", "mark", "call", "call", "call", "mark", "synchronize"]
    assert machine.asked[-len(turn) :] == turn
    assert machine.slept > 2 * 4 * 0.002


@pytest.mark.parametrize(("left", "bound"), [(0.0, {"case"}), (0.002, set())])
def test_case_is_bound_by_the_host_if_the_gpu_has_nothing_left_to_do(left, bound):
    machine = Recorder(left)
    assert in_turn(machine, [machine.case()], 3).host_bound == bound


def test_inputs_and_outputs_rotate_through_more_than_twice_the_cache():
    machine, read, written = Recorder(), [], []

    def run(x):
        read.append(float(x[0]))
        y = torch.empty_like(x)
        written.append(y.data_ptr())
        return y

    case = machine.case(run)
    assert machine.rotation(case.size) == 4  # 64 bytes each
    in_turn(machine, [case], 3)
    turn = machine.repeat - 1  # which follow each other without a pause
    assert read[-turn:] == [0, 1, 2]  # the 10th to 12th call of 9 sets
    assert len(set(written[-turn:])) == turn


def test_memory_of_the_outputs_is_there_before_anything_is_timed():
    """Allocate all outputs in the first calls, before anything is timed."""
    machine, written = Recorder(), []

    def run(x):
        written.append(torch.empty_like(x))
        return written[-1]

    in_turn(machine, [machine.case(run)], 0)
    assert len(written) == 4 + machine.repeat


def test_commit_is_the_given_one_and_no_git_is_no_error(monkeypatch):
    assert environment("abc123")["commit"] == "abc123"
    monkeypatch.setenv("PATH", "")
    assert environment()["commit"] is None


def broken(machine):
    raise RuntimeError("no kernel image")


PARTS = {
    "rest": {"last": lambda machine: {"rows": [], "failed": {"one case": "WrongResultError: no"}}},
    "stream": {
        "first": lambda machine: {"environment": {}, "bars": [Bar("figure", 2.0, 1.0, 1.5, False, "host")]},
        "second": broken,
    },
}


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """Return a function that runs the command with PARTS and gives exit status and JSON."""

    def run(*arguments):
        out = tmp_path / "rows.json"
        monkeypatch.setattr(sys, "argv", ["gpu_rows", "--backend", "cuda", "--out", str(out), *arguments])
        try:
            gpu_rows.main()
        except SystemExit as stop:
            return stop.code, json.loads(out.read_text())
        return 0, json.loads(out.read_text())

    monkeypatch.setattr(gpu_rows, "PARTS", PARTS)
    monkeypatch.setattr(gpu_rows, "begin", lambda backend, rehearse: StandIn())
    return run


def test_a_part_or_a_case_that_fails_costs_no_other(rows):
    status, result = rows("--parts", "stream", "rest", "--commit", "abc123")
    assert status == 1
    assert result["environment"]["commit"] == "abc123"
    assert list(result["parts"]) == ["first", "second", "last"]
    assert result["parts"]["first"] == {}
    assert result["parts"]["second"] == {"rc": 1, "error": "RuntimeError: no kernel image"}
    assert result["parts"]["last"]["rc"] == 1
    assert result["bars"] == [
        {"name": "figure", "value": 2, "bar": 1, "aim": 1.5, "at_most": False, "passed": True, "bound by": "host"}
    ]
    assert result["lines"] == [
        "pass by 100%: figure = 2 (bar >= 1, aim 1.5), bound by the host",
        "second: RuntimeError: no kernel image",
        "last: one case: WrongResultError: no",
    ]


def test_parts_without_time_are_skipped(rows):
    status, result = rows("--seconds", "0", "--parts", "stream")
    assert status == 0
    assert [part["skipped"] for part in result["parts"].values()] == ["needs about 15 s, 0 s are left"] * 2


def test_backend_that_cannot_run_is_one_clear_line(rows, monkeypatch):
    def begin(backend, rehearse):
        raise RuntimeError("backend 'cuda' is not available")

    monkeypatch.setattr(gpu_rows, "begin", begin)
    assert rows() == (0, {"skipped": "backend 'cuda' is not available"})
