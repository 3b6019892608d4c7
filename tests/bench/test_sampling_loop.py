"""The loop benchmark: its measurements, its refusal of sides that disagree, and its table."""

import pytest
import torch

from bench.docs.loop_table import loop_table
from bench.speed import loop, memory, pairs
from bench.speed.gate import WrongResultError
from bench.speed.machine import Machine, StandIn

pytestmark = pytest.mark.usefixtures("one_thread")

TINY = loop.Settings({(1, 3, 4, 4): (0.5, 0.25), (2, 3, 4, 4): (0.4, 0.2)}, (2, 3, 4, 4), 1, 1)


@pytest.fixture(scope="module")
def rivals():
    pytest.importorskip("diffusers")
    return pairs.of_diffusers()


@pytest.fixture
def z():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("machine", [Machine, StandIn])
def test_benchmark_measures(machine, rivals, monkeypatch):
    monkeypatch.setattr(loop, "pairs", lambda: rivals)
    result = loop.measure(machine(), TINY, 2, with_cifar=machine is StandIn)
    assert "failed" not in result
    assert [(row["state"], row["name"]) for row in result["rows"]] == [
        (state, pair.name) for state in ("1x3x4x4", "2x3x4x4") for pair in rivals
    ]
    for low, median, high in [row["ratio"] for row in result["rows"]]:
        assert 0 < low <= median <= high
    assert all(("ms a call" in row) == (machine is StandIn) for row in result["rows"])  # CPU figures are ratios only
    assert ("cifar" in result["network"]) == (machine is StandIn)
    assert len(result["bars"]) == len(result["rows"]) + 4 + len(memory.KEPT)
    assert loop_table(result).count("\n| ") == 2


def test_both_sides_agree(rivals, z):
    for pair in rivals:
        pairs.check(pair, z)


def test_gate_refuses_a_side_that_is_a_little_wrong(rivals, z):
    ours, theirs = rivals[0].checked
    wrong = rivals[0]._replace(checked=(lambda x, network: ours(x, network) + 1e-3, theirs))
    with pytest.raises(WrongResultError, match=r"DDIM disagrees: the largest error is 1\.0e-03"):
        pairs.check(wrong, z)
    nan = rivals[0]._replace(checked=(ours, lambda x, network: theirs(x, network) * torch.nan))
    with pytest.raises(WrongResultError, match="DDIM disagrees: the largest error is nan"):
        pairs.check(nan, z)


def test_gate_tells_neighbouring_solvers_apart(rivals, z):
    by_name = {pair.name: pair for pair in rivals}
    first, second = by_name["DDIM, unclipped"], by_name["DPM-Solver++(2M)"]
    with pytest.raises(WrongResultError, match="disagrees"):
        pairs.check(second._replace(checked=(first.checked[0], second.checked[1])), z)


def test_gate_refuses_fewer_network_calls(rivals, z):
    shorter = rivals[0]._replace(ours=pairs.ours("ddim", steps=9))
    with pytest.raises(WrongResultError, match=r"as many network calls on both sides: got \[10, 20\]"):
        pairs.check(shorter, z)


def test_pair_that_disagrees_is_not_timed(rivals):
    wrong = rivals[0]._replace(checked=(lambda x, network: x, rivals[0].checked[1]))
    failed = {}
    assert loop.right([wrong, rivals[1]], (2, 3, 4, 4), "cpu", failed) == [rivals[1]]
    assert failed.keys() == {"DDIM"}
    assert failed["DDIM"].startswith("WrongResultError: ")


def test_pair_that_fails_has_no_ratio_and_no_bar(rivals):
    def broken(x, network):
        raise RuntimeError("no such step")

    rows = loop.ratios(Machine(), [rivals[0]._replace(theirs=broken), rivals[1]], (1, 3, 4, 4), 2)
    assert rows[0] == {"state": "1x3x4x4", "name": "DDIM", "failed": "RuntimeError: no such step"}
    assert "ratio" in rows[1]


def test_peak_counts_what_is_alive_at_once():
    def two_of_three():
        a = torch.ones(1000)
        b = a + a
        del a
        return b + b

    found = memory.costs(Machine(), two_of_three, 4000, calls=1, needed=1)
    assert found == {"peak": 2.0, "made": 3.0}


def test_table_shows_medians_and_gaps():
    rows = [
        {"state": "1x3x32x32", "name": "DDIM", "ratio": [0.1, 0.254, 0.9]},
        {"state": "16x3x32x32", "name": "DDIM", "failed": "RuntimeError"},
    ]
    lines = loop_table({"rows": rows}).splitlines()
    assert lines[0].startswith("| state | DDIM |")
    assert lines[2:] == ["| 1x3x32x32 | 0.25 | - | - | - | - |", "| 16x3x32x32 | - | - | - | - | - |"]
