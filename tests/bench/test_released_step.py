"""The benchmark of the released step: it measures, and its sides take the same step."""

import pytest
import torch

from bench.speed import baselines, cases, released_step
from bench.speed.machine import Machine, StandIn
from bench.speed.released_step import LINES, OURS, RELEASED
from gms_fast import ops

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("machine", [Machine, StandIn])
def test_benchmark_measures(machine):
    small = released_step.batches(StandIn(), 2)[1]
    row = released_step.rows(machine(), small, 2)
    assert row["size"] == [2, 3, 8, 8]
    assert list(row["over_network"]) == [RELEASED, LINES, OURS]
    for low, median, high in row["over_network"].values():
        assert 1e-3 < low <= median <= high
    assert ("ms" in row) == (machine is StandIn)  # a CPU's are ratios only
    assert released_step.table({"rows": [row]}).count("\n| ") == 1


def test_a_step_that_fails_is_said(monkeypatch):
    def broken(*moments):
        raise ValueError("no such step")

    monkeypatch.setitem(released_step.STEPS, OURS, broken)
    with pytest.raises(RuntimeError, match=r"not measured: .*no such step"):
        released_step.rows(Machine(), released_step.batches(StandIn(), 1)[1], 1)


def test_lines_and_op_take_the_same_step():
    moments = [t.double() for t in cases.noise_moments((4, 3, 8, 8), "cpu", 0)]
    lines, ours = (released_step.STEPS[name](*moments) for name in (LINES, OURS))
    torch.testing.assert_close(lines, ours, rtol=0, atol=1e-9)  # roundings of 1e-16, amplified where moments cancel


def test_released_style_fit_is_the_op_that_takes_its_place():
    """Compare after 30 iterations in float64, before the optimiser amplifies rounding."""
    moments = [t.double() for t in cases.step_moments((4, 3, 8, 8), "cpu", 0)]
    a, b, v = baselines.autograd_fit(*moments, 30)
    fit = ops.fit_mixture(*moments, fit="adan", iterations=30, eps=1e-8 * a.numel())
    for got, want in zip((fit.mean_a, fit.mean_b, fit.var), (a, b, v), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)
