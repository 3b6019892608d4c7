"""Short form of the kill tests: writers between system calls, commands at random moments."""

import subprocess
import sys

import pytest
from places import ROOT

from bench.faults import kills, tracing

pytestmark = [
    pytest.mark.slow(30),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are traced as on Linux"),
]
FORK = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from bench.faults import kills, tracing
"""


def alone(code, *arguments):
    """Run code in a process without threads, which would not survive a fork."""
    command = [sys.executable, "-c", FORK + code, str(ROOT), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_this_system_lets_processes_be_traced_or_says_so():
    if not tracing.available():
        pytest.skip("tracing is not allowed here: kills between system calls cannot be tested")


def test_every_writer_killed_after_each_of_its_system_calls_leaves_the_old_file_or_the_new_one():
    code = "print(*([kills.writer(name) for name in kills.WRITERS] if tracing.available() else [99]))"
    done = alone(code)
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) > 15


@pytest.mark.parametrize(
    ("write", "message"),
    [
        ("path.write_text(str(value) * 9)", "is neither old nor new"),
        ("atomic._sweep = lambda _: None; atomic.write_text(path, str(value))", "are left"),
    ],
)
def test_writer_that_leaves_half_a_file_or_litter_is_found_out(write, message):
    code = f"""
from gms_fast.storage import atomic
def naive(path, value):
    {write}
kills.WRITERS["x"] = naive
print(kills.check_writer("x") if tracing.available() else "skipped")
"""
    done = alone(code)
    if done.stdout == "skipped\n":
        pytest.skip("tracing is not allowed here")
    assert message in done.stdout, done.stderr


ENDED = [
    ("sample", [("SIGINT", 0.7), ("SIGKILL", 0.9), ("full disk", 0.5)]),
    ("edit", [("SIGTERM", 0.8), ("full disk", 0.5), ("SIGKILL", 0.9)]),
    ("edit into a folder", [("SIGINT", 0.9), ("full disk", 0.5), ("SIGKILL", 0.95), ("vanished folder", 0.7)]),
    ("train", [("SIGKILL", 0.4), ("SIGTERM", 0.5), ("full disk", 0.8), ("vanished folder", 0.3)]),
    ("train-heads", [("SIGKILL", 0.6), ("SIGTERM", 0.7), ("full disk", 0.8), ("vanished folder", 0.6)]),
    ("statistics", [("SIGKILL", 0.5), ("SIGINT", 0.2)]),
    ("statistics --gaussian", [("SIGTERM", 0.5), ("full disk", 0.5)]),
    ("search", [("SIGKILL", 0.4), ("SIGINT", 0.5), ("full disk", 0.6), ("vanished folder", 0.5)]),
    ("evaluate", [("SIGTERM", 0.7), ("SIGKILL", 0.8)]),
]


def test_commands_ended_halfway_go_on_to_the_same_result():
    code = f"""
if __name__ == "__main__":
    print(*(fault for command, ends in {ENDED!r} if (fault := kills.check(kills.Case(0, command, ends)))), sep="\\n")
"""
    done = alone(code)
    assert done.stdout == "\n", done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_all_ends_are_reached_by_cases():
    several = [case for case, _ in zip(kills.cases(0), range(300), strict=False)]
    assert {case.command for case in several} == set(kills.COMMANDS)
    assert {kind for case in several for kind, _ in case.ends} == set(kills.ENDS)
    assert next(kills.cases(0, 7)) == several[7]
