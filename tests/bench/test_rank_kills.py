"""Short form of the kill tests of ranks."""

import sys

import pytest
from without_threads import alone

from bench.faults import rank_kills
from bench.faults.kills import FULL, VANISHED
from bench.faults.rank_kills import ALL, ONE, SECOND, WRITE, Start

pytestmark = [
    pytest.mark.slow(45),
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ranks are forked and looked up as on Linux"),
]
ENDED = [
    ("train", [Start(2, 0, ONE, 0.6, 1), Start(2, 0, WRITE, 0.3), Start(2)]),
    ("train", [Start(2, 0, ALL, 0.7), Start(3, 2, FULL, 0.6), Start(1)]),
    ("train-heads", [Start(3, 0, ONE, 0.5, 0), Start(3, 0, VANISHED, 0.7), Start(3, 0, ONE, 0.8, 2), Start(3)]),
    ("train-heads", [Start(2, 0, SECOND, 0.6), Start(1, 2)]),
]


def test_ranks_ended_halfway_go_on_to_the_same_result():
    code = f"""
from bench.faults.rank_kills import Case, Start, check
print(*(fault for command, starts in {ENDED!r} if (fault := check(Case(0, command, starts)))), sep="\\n")
"""
    done = alone(code)
    assert done.stdout == "\n", done.stdout + done.stderr
    assert done.returncode == 0, done.stderr


def test_ranks_that_torchrun_starts_again_end_with_the_same_bits():
    code = f"""
from bench.faults.rank_kills import Case, Start, check
print(check(Case(0, "train-heads", {[Start(2, 0, ONE, 0.5, 1), Start(2)]!r}, torchrun=True)))
"""
    done = alone(code)
    assert done.stdout == "None\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("state.State.take = lambda self, stored: None", "were done, and"),
        ("atomic._sweep = lambda path: None", "files of one run alone: {'run-heads/heads/."),
        ("ranks.telling = loop.telling = contextlib.nullcontext", "ends with status 1"),
    ],
)
def test_faults_are_found(change, message):
    """Plant faults: an ignored checkpoint, scratch that stays, a rank that ends by an error.

    Moments are shares of a run's time, which a busy machine shifts, so one case alone may miss a fault.
    """
    code = f"""
import contextlib
from bench.faults.rank_kills import ALL, ONE, WRITE, Case, Start, check
from gms_fast.storage import atomic
from gms_fast.training import loop, ranks, state
{change}
starts = [Start(2, 0, WRITE, 0.6), Start(2, 0, ONE, 0.7, 0), Start(2, 0, ALL, 0.5), Start(2)]
print(next(filter(None, (check(Case(i, "train-heads", starts)) for i in range(20))), None))
"""
    done = alone(code)
    assert message in done.stdout, done.stdout + done.stderr


def test_all_ends_are_reached_by_cases():
    several = [case for case, _ in zip(rank_kills.cases(0), range(200), strict=False)]
    assert {case.command for case in several} == set(rank_kills.COMMANDS)
    assert {start.end for case in several for start in case.starts} == {"", *rank_kills.ENDS}
    assert {start.ranks for case in several for start in case.starts} == {1, 2, 3}
    assert sum(case.torchrun for case in several) == 10
    assert all(start.which < start.ranks for case in several for start in case.starts)
    assert next(rank_kills.cases(0, 7)) == several[7]
