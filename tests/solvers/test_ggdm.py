"""GGDM: recorded vectors, its theorem, the solvers that it contains, and bad input."""

import json
import math

import places
import pytest
import torch
from busy_tables import SCHEDULE, busy, double
from toys import Model, Toy

import gms_fast
from gms_fast.schedules import EDM, VPCosine, VPLinear
from gms_fast.solvers import DDIM, ERSDE, GGDM, DPMSolverPP, GGDMTable, UniP, UniPC
from gms_fast.tables.ggdm import marginals

VECTORS = json.loads((places.VECTORS / "ggdm_vectors.json").read_text())


def times_of(entry):
    """Return the times of the network evaluations; the vectors count tau from 1, not 0."""
    return [t - 1 for t in entry["tau"][:0:-1]]


def table_of(entry, **prediction):
    """Return the table of a recorded vector."""
    tau = double([SCHEDULE.t_min, *(t - 1 for t in entry["tau"][1:])])
    return GGDMTable(SCHEDULE, tau, entry["mu"], entry["sigma"], **prediction)


def states(table, entry, clip=None):
    """Return the states by level, in the loop of `sample`."""
    K, z, seen = table.steps, entry.get("z"), {}

    def keep(i, t, x, x0):
        seen[K - i] = x

    noise = None if z is None else lambda i: double(z[K - 1 - i])
    options = {"solver": GGDM(table), "x_T": double(entry["x_T"]), "noise": noise, "clip": clip, "callback": keep}
    seen[0] = gms_fast.sample(Toy(VECTORS["toy"]), K, **options)
    return seen


# --- the vectors ---------------------------------------------------------------------------------------------------


def test_the_toy_is_that_of_the_vectors():
    toy, model = VECTORS["toy"], Toy(VECTORS["toy"])
    for tau, abar in toy["abar_at"].items():
        assert float(SCHEDULE.alpha(int(tau) - 1)) ** 2 == pytest.approx(abar, abs=1e-12)
    check = toy["eps_check"]
    for tau, eps in zip(check["tau"], check["eps"], strict=True):
        got = model(double(check["x"]), double([tau - 1] * 2))
        assert (got - double(eps)).abs().max() < 1e-12


def eliminated(mu, sigma, t):
    """Return a_t, v_t as in the paper, inserting the states above t in ascending order."""
    K, row, var = len(sigma) - 1, list(mu[t]), sigma[t] ** 2
    for w in range(t + 1, K + 1):
        c, row[w] = row[w], 0.0
        row = [value + c * other for value, other in zip(row, mu[w], strict=True)]
        var += (c * sigma[w]) ** 2
    assert not any(row[1:])
    return row[0], var


def test_theorem_by_both_algorithms():
    entry = VECTORS["theorem"]
    a, v = marginals(double(entry["mu"]), double(entry["sigma"]))
    assert (a - double(entry["a"])).abs().max() < 1e-14
    assert (v - double(entry["v"])).abs().max() < 1e-14
    for t in range(1, entry["K"] + 1):
        assert eliminated(entry["mu"], entry["sigma"], t) == pytest.approx((entry["a"][t], entry["v"][t]), abs=1e-14)


def test_theorem_by_drawing():
    """Draw states given x_0 a million times: mean and variance within 4 standard errors."""
    entry, n = VECTORS["theorem"], 1_000_000
    mu, sigma, generator = entry["mu"], entry["sigma"], torch.Generator().manual_seed(0)
    x_0, x = 0.7, {}
    for t in range(entry["K"], 0, -1):
        x[t] = mu[t][0] * x_0 + sigma[t] * torch.randn(n, generator=generator, dtype=torch.float64)
        x[t] += sum(mu[t][u] * x[u] for u in range(t + 1, entry["K"] + 1))
        v = entry["v"][t]
        assert abs(float(x[t].mean()) - entry["a"][t] * x_0) < 4 * math.sqrt(v / n)
        assert abs(float(x[t].var()) - v) < 4 * v * math.sqrt(2 / n)
    together = torch.stack([x[t] for t in range(1, entry["K"] + 1)])
    dense = double(entry["cov_dense"])
    spread = (dense.diag()[:, None] * dense.diag() + dense**2).sqrt()  # of n draws' covariance, times sqrt(n)
    assert ((together.cov() - dense).abs() < 4 * spread / math.sqrt(n)).all()


@pytest.mark.parametrize(
    ("key", "solver"),
    [("ddim_eta0", DDIM()), ("ddim_eta1", DDIM(eta=1.0)), ("multistep_2M_embedding", DPMSolverPP())],
)
def test_solvers_as_tables(key, solver):
    entry = VECTORS[key]
    table = GGDMTable.of(solver, SCHEDULE, times_of(entry))
    assert (table.mu - double(entry["mu"])).abs().max() < 1e-14
    assert (table.sigma - double(entry["sigma"])).abs().max() < 1e-14
    a, v = table.marginals()
    assert (a - SCHEDULE.alpha(table.tau))[1:].abs().max() < 1e-14
    assert (v - SCHEDULE.sigma(table.tau) ** 2)[1:].abs().max() < 1e-14
    for known in (table, table_of(entry)):  # with its own c and d, and with those of the marginals
        for level, x in states(known, entry).items():
            assert (x - double(entry["x"][str(level)])).abs().max() < 1e-12
    if "c" in entry:
        assert (table.c - double(entry["c"])).abs().max() < 1e-12
        assert (table.d - double(entry["d"])).abs().max() < 1e-12


def test_freeing_the_prediction_changes_the_last_step_alone():
    entry = VECTORS["tied_equivalence"]
    own = {"x_T": entry["x_T"], "z": entry["z"]}
    free = table_of(entry | entry["pred"], c=entry["pred"]["c"], d=entry["pred"]["d"])
    bound = table_of(entry | entry["tied"])
    a, v = bound.marginals()
    assert (a - double(entry["tied"]["a"])).abs().max() < 1e-12
    assert (v - double(entry["tied"]["v"])).abs().max() < 1e-12
    first, second = states(free, own), states(bound, own)
    for level, x in entry["pred"]["x"].items():
        assert (first[int(level)] - double(x)).abs().max() < 1e-12
        assert int(level) == 0 or (second[int(level)] - double(x)).abs().max() < 1e-12
    assert (second[0] - double(entry["tied"]["x0"])).abs().max() < 1e-12
    assert float((first[0] - second[0]).abs().max()) == pytest.approx(entry["final_output_max_diff"], abs=1e-12)


# --- it contains the solvers ---------------------------------------------------------------------------------------


CONTAINED = [
    DDIM(),
    DDIM(eta=0.5),
    DPMSolverPP(),
    DPMSolverPP(order=3),
    UniP(),
    UniP(order=4),
    UniPC(order=3),
    ERSDE(noise_scale="ode", quadrature="exact"),
]
LEVELS = [(VPLinear(), [999, 640, 333, 100, 20]), (VPCosine(), [990, 700, 300, 40]), (EDM(), [80.0, 10.0, 2.0, 0.1])]


@pytest.mark.parametrize("solver", CONTAINED, ids=repr)
@pytest.mark.parametrize(("schedule", "times"), LEVELS, ids=["linear", "cosine", "edm"])
def test_a_table_does_what_its_solver_does(solver, schedule, times):
    """Compare K evaluations: the solver's steps, and its last evaluation if it has one."""
    model = Model(lambda x, t: (0.3 * x).tanh() + 0.01 * t.view(-1, 1) / 1000, schedule=schedule)
    x_T = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * schedule.sigma(times[0])
    table, options = GGDMTable.of(solver, schedule, times), {"x_T": x_T, "clip": None, "seed": 3}
    calls = model.calls
    got = gms_fast.sample(model, len(times), solver=GGDM(table), **options)
    assert model.calls - calls == len(times) == GGDM(table).calls(schedule, table.times)
    if solver.denoise:
        want = gms_fast.sample(model, solver=solver, timesteps=times, **options)
    else:
        last = gms_fast.sample(model, solver=solver, timesteps=times, **options)
        want = gms_fast.sample(
            model, 1, solver=GGDM(GGDMTable.of(DDIM(), schedule, times[-1:])), **options | {"x_T": last}
        )
    scale = float(want.abs().max())
    # a term of the history is a difference of states, by mu[u-1][0]: what that costs in rounding
    assert (got - want).abs().max() < 1e-11 * scale


def test_the_range_is_kept_as_by_its_solver():
    model = Model(lambda x, t: 0.5 * x.sin(), sample_shape=(4,))
    times = [999, 500, 200, 10]
    for solver in (DDIM(), DPMSolverPP()):
        want = gms_fast.sample(model, solver=solver, timesteps=times, n=8, dtype=torch.float64)
        got = gms_fast.sample(model, 4, solver=GGDM(GGDMTable.of(solver, SCHEDULE, times)), n=8, dtype=torch.float64)
        assert got.abs().max() <= 1
        assert (got - want).abs().max() < 1e-11


@pytest.mark.parametrize("K", [1, 2, 5, 12])
def test_long_histories_and_the_equation_itself(K):
    """Compare with mu x0hat + sum mu x_u + sigma z, for more states than a pass takes."""
    table, model = busy(K), Model(lambda x, t: 0.5 * x.sin(), sample_shape=(4,))
    random = torch.Generator().manual_seed(1)
    z = {i: torch.randn(3, 4, dtype=torch.float64, generator=random) for i in range(K)}
    x = {K: torch.randn(3, 4, dtype=torch.float64, generator=random)}
    for t in range(K, 0, -1):
        clean = table.c[t] * x[t] - table.d[t] * 0.5 * x[t].sin()
        if t > 1:
            x[t - 1] = table.mu[t - 1, 0] * clean + sum(table.mu[t - 1, u] * x[u] for u in range(t, K + 1))
            x[t - 1] += table.sigma[t - 1] * z[K - t]
    options = {"x_T": x[K], "noise": z.get, "clip": None}
    got = gms_fast.sample(model, K, solver=GGDM(table), **options)
    assert (got - clean).abs().max() < 1e-12 * float(clean.abs().max() + table.d[K])


def test_it_keeps_no_state_that_no_step_looks_at():
    for solver, kept in ((DDIM(), [0] * 5), (UniP(), [1, 2, 0, 0, 0])):
        table = GGDMTable.of(solver, SCHEDULE, [999, 700, 400, 200, 50])
        keep = [step.keep for step in GGDM(table).plan(SCHEDULE, table.times)]
        assert keep[-1] == 0
        assert keep == kept


def test_splits_of_a_batch_are_the_same_samples():
    table = busy(5)
    model = Model(lambda x, t: 0.3 * x, sample_shape=(4,))
    whole = gms_fast.sample(model, 5, solver=GGDM(table), n=6, seed=3)
    parts = [gms_fast.sample(model, 5, solver=GGDM(table), n=2, seed=3, sample_offset=i) for i in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))
