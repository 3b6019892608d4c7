"""The experiment on variances from a network's Jacobian: costs, steps and tables."""

import torch
from toys import Model

from bench.experiments import jacobian


def test_cost_of_a_call_is_counted_in_plain_ones():
    class Slow(Model):
        def __call__(self, x, t):
            return super().__call__(x, t) + sum(torch.randn(64, 64).svd().S.sum() for _ in range(8)) * 0

    network = Slow(lambda x, t: x.sin())
    rows = jacobian.costs({"digits": (network, network)}, [2], 3)
    assert [(row["way"], row["probes"]) for row in rows[:4]] == [(w, p) for w in jacobian.WAYS for p in (1, 2)]
    assert network.calls == 4 * (1 + 1 + 2 + 2 + 3 + 1 + 2)  # a round more; one_way derives as well
    assert "| difference, 2 |" in jacobian.cost_table(rows)


def test_steps_are_what_is_left_of_the_calls():
    measured = [
        {"network": n, "batch": b, "way": "derivative", "probes": p, "cost": c * p}
        for n, b, c in (("digits", 16, 9.0), ("digits", 100, 4.0), ("mnist", 100, 4.5))
        for p in (1, 2)
    ]
    counted = jacobian.step_costs(measured)
    assert counted == {("difference", 1): 2, ("difference", 2): 3, ("derivative", 1): 4.3, ("derivative", 2): 8.5}


def test_variance_without_heads_is_scored_and_shown(monkeypatch):
    monkeypatch.setitem(jacobian.CALLS, "mixture-1d", (6,))
    counted = {(way, p): 4 for way in jacobian.WAYS for p in (1, 2)}
    records = jacobian.compared(counted, {"mixture-1d": 100}, 2)
    assert [(r["row"], r["steps"]) for r in records[:3]] == [
        ("ddpm", 5), ("ddim", 5), ("sn-ddpm, derivative, 1 probe", 1),
    ]  # fmt: skip
    shown = jacobian.report({"commit": "abc", "date": "d", "torch": "t"}, {"mixture-1d": 100}, 2, [], records)
    assert "**mixture-1d, wasserstein**" in shown
    assert "| `sn-ddpm`, difference, 2 probes | 0." in shown
    assert "(K=1) |" in shown
