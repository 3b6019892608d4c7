"""Short form of the kill tests of generation by several processes."""

import sys

import pytest
from without_threads import alone

from bench.faults.generation_kills import ALL, ANOTHER, COMMANDS, ENDS, ONE, VANISHED, WRITE, Start, cases
from bench.faults.kills import FULL

pytestmark = [
    pytest.mark.slow(30),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are forked and looked up as on Linux"),
]
ENDED = [
    ("npz", [Start(2, ONE, 0.6, 1), Start(1, WRITE, 0.3), Start(5)]),
    ("png", [Start(5, ALL, 0.7), Start(2, FULL, 0.6), Start(2)]),
    ("measured", [Start(3, ALL, 0.5), Start(2, VANISHED, 0.5), Start(1, ONE, 0.8), Start(2)]),
    ("none", [Start(2, ALL, 0.6), Start(2, WRITE, 0.5), Start(5)]),
    ("npz", [Start(2, ANOTHER, 0.6), Start(1)]),
]


def test_processes_ended_halfway_go_on_to_the_same_bytes():
    code = f"""
from bench.faults.generation_kills import Case, Start, check
print(*(fault for command, starts in {ENDED!r} if (fault := check(Case(0, command, starts)))), sep="\\n")
"""
    done = alone(code)
    assert done.stdout == "\n", done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_shard_that_is_lost_is_seen():
    code = """
import os
from bench.faults import generation_kills as g
started = g._started
def losing(folder, case):
    started(folder, case)
    file = g.shards.files(g.Path(folder, g.OUT))[3]
    file.write_bytes(file.read_bytes()[:-1])
g._started = losing
print(g.check(g.Case(0, "npz", [g.Start(1)])))
"""
    assert "the folder differs from that of an uninterrupted run" in alone(code).stdout


def test_cases_are_a_function_of_their_number_and_have_all_ends():
    some = [case for case, _ in zip(cases(0), range(300), strict=False)]
    assert [case for case, _ in zip(cases(0, 100), range(5), strict=False)] == some[100:105]
    assert {case.command for case in some} == COMMANDS.keys()
    assert {start.end for case in some for start in case.starts} == {"", *ENDS}
    assert {start.count for case in some for start in case.starts} == {1, 2, 3, 5}
    assert all(case.starts[-1].end == "" for case in some)
    assert any(case.torchrun for case in some)
