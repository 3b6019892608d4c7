"""GGDM: against the vectors, its theorem, the solvers it contains, and what it refuses."""

import json
import math

import places
import pytest
import torch
from toys import Model, Toy

import gms_fast
from gms_fast import solvers
from gms_fast.schedules import EDM, Flow, VPContinuous, VPCosine, VPLinear
from gms_fast.solvers import DDIM, ERSDE, GGDM, GMS, DPMSolverPP, GGDMTable, Teleport, UniP
from gms_fast.statistics import Gaussian
from gms_fast.tables.ggdm import marginals, tied

VECTORS = json.loads((places.VECTORS / "ggdm_vectors.json").read_text())
SCHEDULE = VPLinear()


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def times_of(entry):
    """Times where the network is called: the vectors count tau from 1 where the schedule counts from 0."""
    return [t - 1 for t in entry["tau"][:0:-1]]


def table_of(entry, **prediction):
    """The table that stands in a vector."""
    tau = double([SCHEDULE.t_min, *(t - 1 for t in entry["tau"][1:])])
    return GGDMTable(SCHEDULE, tau, entry["mu"], entry["sigma"], **prediction)


def states(table, entry, clip=None):
    """States by level, in the loop of `sample`."""
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
    """a_t, v_t as in the paper: the states above t are put in one after the other, in ascending order."""
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
    """A million draws of the states given x_0: mean and variance within 4 of their standard errors."""
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
    ERSDE(noise_scale="ode", quadrature="exact"),
]
LEVELS = [(VPLinear(), [999, 640, 333, 100, 20]), (VPCosine(), [990, 700, 300, 40]), (EDM(), [80.0, 10.0, 2.0, 0.1])]


@pytest.mark.parametrize("solver", CONTAINED, ids=repr)
@pytest.mark.parametrize(("schedule", "times"), LEVELS, ids=["linear", "cosine", "edm"])
def test_a_table_does_what_its_solver_does(solver, schedule, times):
    """K calls: the solver's steps through the times and its last call, where it has one."""
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


def busy(K, seed=0):
    """A table in which nothing is zero that need not be."""
    random = torch.Generator().manual_seed(seed)
    first = GGDMTable.of(DDIM(eta=0.4), SCHEDULE, [float(t) for t in SCHEDULE.grid(K, 0.7)][:-1])
    mask = torch.ones(K + 1, K + 1).triu(1)
    mask[1:, 0] = 1
    mask[[0, K]] = 0
    mu = first.mu + 0.05 * mask * torch.randn(K + 1, K + 1, generator=random)
    c, d = (value * (1 + 0.01 * torch.randn(K + 1, generator=random)) for value in (first.c, first.d))
    return GGDMTable(SCHEDULE, first.tau, mu, first.sigma, c, d)


@pytest.mark.parametrize("K", [1, 2, 5, 12])
def test_long_histories_and_the_equation_itself(K):
    """x_{t-1} = mu x0hat + sum mu x_u + sigma z written down, with more states than one pass of the op takes."""
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


# --- UniP ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unip_is_exact_for_polynomials_in_lambda(order):
    """x_0 a polynomial of degree order - 1 along the path: the last step of full order against fine quadrature."""
    times = [900, 700, 500, 350, 200, 100, 50, 10, 0]
    lam = SCHEDULE.log_snr(times)
    data = lambda v: sum((k + 1) * (v / 4) ** k for k in range(order))  # noqa: E731
    i = 4
    weights, std = UniP(order=order).plan(SCHEDULE, times)[i]
    assert std == 0
    assert len(weights) == order + 1
    got = sum(w * data(lam[i - j]) for j, w in enumerate(weights[1:]))
    fine = torch.linspace(float(lam[i]), float(lam[i + 1]), 20001, dtype=torch.float64)
    want = SCHEDULE.alpha(times[i + 1]) * torch.trapezoid((fine - lam[i + 1]).exp() * data(fine), fine)
    assert float(got) == pytest.approx(float(want), abs=1e-8)  # of the trapezoids: h^2/12 of a second derivative
    assert weights[0] == pytest.approx(float(SCHEDULE.sigma(times[i + 1]) / SCHEDULE.sigma(times[i])))


def test_unip_of_order_3_is_diffusers_without_its_corrector():
    diffusers = pytest.importorskip("diffusers")
    times = [999, 700, 450, 250, 120, 50, 10]
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=3, solver_type="bh2", disable_corrector=list(range(20)), final_sigmas_type="zero",
        beta_schedule="linear", lower_order_final=False,
    )  # fmt: skip
    scheduler.set_timesteps(len(times))
    scheduler.timesteps = torch.tensor(times)
    alpha, sigma = SCHEDULE.alpha(times), SCHEDULE.sigma(times)
    scheduler.sigmas = torch.cat([sigma / alpha, torch.zeros(1, dtype=torch.float64)])
    x = start = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in times[:-1]:
        x = scheduler.step(0.5 * x.sin(), torch.tensor(t), x).prev_sample
    final = (x - sigma[-1] * 0.5 * x.sin()) / alpha[-1]
    model = Model(lambda x, t: 0.5 * x.sin())
    solver = AlwaysFull(order=3)
    got = gms_fast.sample(model, solver=solver, timesteps=times, x_T=start, clip=None)
    # diffusers sets a_1 = 1/2 in its one step of order 2, and its steps of order 3 see what that leaves
    first = gms_fast.sample(model, solver=HalfSecond(order=3), timesteps=times, x_T=start, clip=None)
    assert (first - final).abs().max() < 1e-6 * float(final.abs().max())  # its sigmas are float32
    assert (got - final).abs().max() > 1e-5


class AlwaysFull(UniP):
    """Without lower orders at the end, and one call more than `plan` is told."""

    def calls(self, schedule, times):
        return len(times) + 10


class HalfSecond(AlwaysFull):
    """With the second step as in the released code."""

    def plan(self, schedule, times):
        plan = super().plan(schedule, times)
        plan[1] = DPMSolverPP(order=2, lower_order_final=False).plan(schedule, times)[1]
        return plan


def test_unip_of_small_steps_is_adams_bashforth():
    """Weights of order 4 for steps of h in lambda: h (55, -59, 37, -9)/24, to first order in h."""
    for h in (1e-2, 1e-4, 1e-6):
        lam = torch.arange(12) * h
        times = [float(t) for t in VPContinuous().inverse_log_snr(lam)]
        weights = UniP(order=4).plan(VPContinuous(), times)[5][0][1:]
        alpha = float(VPContinuous().alpha(times[6]))
        for got, adams in zip(weights, (55, -59, 37, -9), strict=True):
            assert got / alpha == pytest.approx(h * adams / 24, rel=10 * h + 1e-5)


def test_unip_converges_faster_than_the_second_order():
    """On the exact network of two Gaussians, with the answer of a fine grid of steps that are alike to the end."""
    model, x_T = Toy(VECTORS["toy"]), double(VECTORS["ddim_eta0"]["x_T"])

    def end(solver, steps):
        times = SCHEDULE.timesteps(steps, "log-snr")
        return gms_fast.sample(model, solver=solver, timesteps=times, x_T=x_T, clip=None)

    want = end(DPMSolverPP(order=3), 400)
    errors = {p: float((end(UniP(order=p), 40) - want).abs().max()) for p in (1, 2, 3)}
    assert errors[3] < errors[2] < errors[1]


# --- file ----------------------------------------------------------------------------------------------------------


def test_save_and_load(tmp_path):
    table = busy(6)
    table.save(tmp_path / "table.safetensors")
    found = GGDMTable.load(tmp_path / "table.safetensors")
    assert all(torch.equal(getattr(found, n), getattr(table, n)) for n in ("tau", "mu", "sigma", "c", "d"))
    assert found.schedule.config == table.schedule.config
    assert (tmp_path / "table.safetensors").stat().st_size < 5000


def test_a_table_does_not_follow_what_it_was_made_of():
    table = busy(3)
    mu = table.mu.clone()
    known = GGDMTable(SCHEDULE, table.tau, mu, table.sigma, table.c, table.d)
    mu[1] = 7
    assert torch.equal(known.mu, table.mu)


def test_file_of_another_kind(tmp_path):
    path = tmp_path / "g.safetensors"
    Gaussian([0.0, 1.0], torch.eye(2), [1.0, 2.0]).save(path)
    with pytest.raises(ValueError, match="format is"):
        GGDMTable.load(path)
    with pytest.raises(FileNotFoundError, match="no table at"):
        GGDMTable.load(tmp_path / "none")
    (tmp_path / "cut").write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match="cut: truncated"):
        GGDMTable.load(tmp_path / "cut")


# --- what it refuses -----------------------------------------------------------------------------------------------

NET = Model(lambda x, t: 0.3 * x)


def sampled(steps=5, model=NET, table=None, **options):
    return gms_fast.sample(model, steps, solver=GGDM(table or busy(5)), n=2, **options)


def test_another_number_of_steps():
    with pytest.raises(ValueError, match="steps: 5 there, 10 here"):
        sampled(10)
    with pytest.raises(ValueError, match="timesteps must be those of the table"):
        sampled(timesteps=[999, 800, 600, 400, 200, 0])
    assert torch.equal(sampled(timesteps=busy(5).times), sampled())


def test_another_schedule():
    with pytest.raises(ValueError, match=r"schedule: VPLinear.* there, VPCosine"):
        sampled(schedule=VPCosine())
    sampled(schedule=gms_fast.schedules.VP(VPLinear().betas))  # the same noise levels under another name
    with pytest.raises(ValueError, match="schedule"):
        sampled(schedule=VPLinear(time_shift=1))


def test_another_network():
    own, other = (torch.nn.Linear(4, 4) for _ in range(2))
    table = busy(5)
    known = GGDMTable(*(getattr(table, n) for n in ("schedule", "tau", "mu", "sigma", "c", "d")),
                      network=gms_fast.statistics.fingerprint(own))  # fmt: skip
    call = type("Net", (torch.nn.Module,), {"forward": lambda self, x, t: self.linear(x)})
    for linear, fits in ((own, True), (other, False)):
        net = call()
        net.linear = linear
        known = GGDMTable(*(getattr(table, n) for n in ("schedule", "tau", "mu", "sigma", "c", "d")),
                          network=gms_fast.statistics.fingerprint(net) if fits else known.network)  # fmt: skip
        options = {"model": net, "schedule": SCHEDULE, "shape": (4,), "table": known}
        if fits:
            assert sampled(**options).shape == (2, 4)
        else:
            with pytest.raises(ValueError, match=r"network: .* there, .* here"):
                sampled(**options)


def test_it_has_its_own_times():
    known = Gaussian(torch.zeros(4), torch.eye(4), torch.ones(4))
    with pytest.raises(ValueError, match="times of its table"):
        gms_fast.sample(NET, 5, solver=Teleport(known, 10.0, GGDM(busy(5))), n=2)
    with pytest.raises(ValueError, match="all times of its table"):
        gms_fast.sample(NET, 5, solver=Teleport(known, skip=0.4, then=GGDM(busy(5))), n=2)


def test_its_name_says_what_is_missing():
    with pytest.raises(ValueError, match=r"needs table.*GGDM\(table"):
        gms_fast.sample(NET, 5, solver="ggdm")
    assert solvers.kind("ggdm") is GGDM
    with pytest.raises(TypeError, match="table must be a GGDMTable"):
        GGDM("mnist/5")


def changed(**entries):
    table = busy(3)
    given = {name: getattr(table, name).clone() for name in ("tau", "mu", "sigma", "c", "d")}
    for name, (at, value) in entries.items():
        given[name][at] = value
    return GGDMTable(SCHEDULE, **given)


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"mu": ((1, 1), 0.1)}, "mu.* must be zero"),
        ({"mu": ((2, 1), 0.1)}, "mu.* must be zero"),
        ({"mu": ((0, 0), 0.1)}, "mu.* must be zero"),
        ({"mu": ((3, 0), 0.5)}, "alpha of the first time"),
        ({"sigma": (3, 0.5)}, "sigma of the first time"),
        ({"sigma": (1, -0.5)}, "sigma must not be negative"),
        ({"tau": (1, 5000.0)}, "tau must be at least two increasing"),
        ({"c": (1, math.nan)}, "c must be finite"),
    ],
)
def test_tables_that_make_no_sense(entries, says):
    with pytest.raises(ValueError, match=says):
        changed(**entries)


def test_other_things_that_make_no_sense():
    table = busy(3)
    with pytest.raises(ValueError, match="c, d must be given both"):
        GGDMTable(SCHEDULE, table.tau, table.mu, table.sigma, c=table.c)
    with pytest.raises(ValueError, match=r"mu must be \(4, 4\)"):
        GGDMTable(SCHEDULE, table.tau, table.mu[:3], table.sigma)
    with pytest.raises(TypeError, match="schedule"):
        GGDMTable("linear", table.tau, table.mu, table.sigma)
    with pytest.raises(TypeError, match="solver must be a linear one"):
        GGDMTable.of(GMS(), SCHEDULE, [999, 500])
    with pytest.raises(ValueError, match="without noise, or without history"):
        GGDMTable.of(DPMSolverPP(sde=True), SCHEDULE, [999, 500, 200, 10])
    with pytest.raises(ValueError, match="alpha > 0"):
        GGDMTable.of(DDIM(), Flow(), [1.0, 0.5])
    with pytest.raises(ValueError, match="times must end before t = 0"):
        GGDMTable.of(DDIM(), SCHEDULE, SCHEDULE.timesteps(5))
    mu = table.mu.clone()
    mu[1] = 0
    with pytest.raises(ValueError, match=r"got a_1 = 0"):
        tied(mu, table.sigma)
    with pytest.raises(ValueError, match=r"got a_1 = 0"):
        GGDMTable(SCHEDULE, table.tau, mu, table.sigma)
