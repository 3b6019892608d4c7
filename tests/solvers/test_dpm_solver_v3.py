"""DPM-Solver-v3 against numbers of the released code, closed solutions and other solvers."""

import json
import math

import places
import pytest
import torch

import gms_fast
from gms_fast.guidance import Classifier, ClassifierFree
from gms_fast.schedules import EDM, VP, Flow, VPContinuous, VPLinear
from gms_fast.solvers import DDIM, DPMSolverPP, DPMSolverV3
from gms_fast.solvers.dpm_solver_v3 import Update, derivatives
from gms_fast.statistics import EmpiricalModel

VECTORS = json.loads((places.VECTORS / "dpm_solver_v3_vectors.json").read_text())
SCHEDULES = {"vp_linear": VPContinuous(), "edm": EDM(), "vp_discrete": VPLinear()}
SPACINGS = {"logSNR": "log-snr", "time_uniform": "uniform", "time_quadratic": "quadratic", "edm": "karras"}
RUNS = {run["id"]: run for run in VECTORS["runs"]}


def wide(values):
    return torch.tensor(values, dtype=torch.float64)


def statistics(key):
    stored = VECTORS["ems"][key]
    return EmpiricalModel(SCHEDULES[stored["schedule"]], *(wide(stored[k]) for k in ("lam", "l", "s", "b")))


class Mixture:
    """Exact noise of the 2-D mixture of the vectors; of one component given a condition >= 0."""

    sample_shape = (2,)

    def __init__(self, schedule):
        self.schedule, self.calls = schedule, 0
        self.weights, self.means, self.stds = (wide(VECTORS["problem"][k]) for k in ("weights", "means", "stds"))

    def __call__(self, x, t, condition=None):
        self.calls += 1
        t = t if isinstance(self.schedule, VP) else self.schedule.from_network_time(t)
        alpha, sigma = (f(t)[:, None] for f in (self.schedule.alpha, self.schedule.sigma))
        level = (sigma / alpha)[..., None]
        away, spread = (x / alpha)[:, None] - self.means, self.stds**2 + level**2
        chance = self.weights.log() - 0.5 * (away**2 / spread + spread.log()).sum(-1)
        if condition is not None:
            only = torch.where(torch.arange(2) == condition[:, None], 0.0, -torch.inf)
            chance = torch.where(condition[:, None] < 0, chance, only)
        return level[..., 0] * (torch.softmax(chance, 1)[..., None] * away / spread).sum(1)


def solver_of(run, **changes):
    known = statistics(run["ems"])
    options = {
        "order": run["order"],
        "corrector": None if not run["use_corrector"] else "next" if run["c_pseudo"] else "same",
        "pseudo": run["p_pseudo"],
        "lower_order_final": run["lower_order_final"],
        "half": "released" if run["half"] else False,
        "spacing": SPACINGS[run["skip_type"]],
    }
    known = changes.pop("statistics", known.degenerate() if run["degenerated"] else known)
    return DPMSolverV3(known, **options | changes)


def sample(run, model, **arguments):
    x_T = wide(VECTORS["x_T"][run["x_T"]])
    return gms_fast.sample(model, run["steps"], schedule=SCHEDULES[run["schedule"]], x_T=x_T, clip=None, **arguments)


@pytest.mark.parametrize("name", RUNS)
def test_released_run_is_reproduced(name):
    run = RUNS[name]
    network = model = Mixture(SCHEDULES[run["schedule"]])
    if guidance := run["guidance"]:
        model = ClassifierFree(
            network, torch.tensor([guidance["cond_component"]]), torch.tensor([-1]), scale=guidance["scale"]
        )
    solver = solver_of(run)
    x = sample(run, model, solver=solver)
    torch.testing.assert_close(x, wide(run["x_out"]), rtol=0, atol=1e-9)
    assert network.calls == run["nfe"] == run["steps"]
    schedule = SCHEDULES[run["schedule"]]
    plan = solver.plan(schedule, solver.times(schedule, run["steps"]))
    assert [len(p.nodes) for _, _, p in plan] == run["predictor_orders"]
    assert [len(c.nodes) if c else 0 for _, c, _ in plan] == run["corrector_orders"]


@pytest.mark.parametrize("grid", VECTORS["grids"], ids=lambda g: f"{g['ems']}-{g['skip_type']}-{g['steps']}")
def test_grid_is_snapped_to_the_released_nodes(grid):
    schedule, known = SCHEDULES[grid["schedule"]], statistics(grid["ems"])
    solver = DPMSolverV3(known, spacing=SPACINGS[grid["skip_type"]])
    times = solver.times(schedule, grid["steps"])
    plan = solver.plan(schedule, times)
    assert [node for node, _, _ in plan] + [plan[-1][2].target] == grid["index"]
    torch.testing.assert_close(schedule.log_snr(times), wide(grid["lam"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(schedule.clock(times), wide(grid["t"]), rtol=1e-9, atol=1e-12)
    assert solver.times(schedule, times) == pytest.approx(times, rel=1e-12)  # given as timesteps


def test_every_state_of_the_traced_run():
    run = RUNS["r08"]
    seen = []
    sample(run, Mixture(VPContinuous()), solver=solver_of(run), callback=lambda i, t, x, x0: seen.append(x))
    predicted = [wide(e["value"]) for e in VECTORS["trace"]["events"] if e["kind"] == "predict"]
    for got, want in zip(seen[1:], predicted, strict=False):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-9)


def test_half_corrector_by_the_published_rule():
    stored = VECTORS["half_corrector_paper_rule"]
    run = RUNS["r24_half_as_coded"]
    x = sample(run, Mixture(VPContinuous()), solver=solver_of(run, half=True))
    torch.testing.assert_close(x, wide(stored["x_out"]), rtol=0, atol=1e-9)


def gaussian(schedule, N):
    """Return statistics and noise of N(mean, diag std^2)."""
    stored = VECTORS["gaussian_exactness"]
    mean, std = wide(stored["mean"]), wide(stored["std"])
    first, last = (80.0, 0.002) if isinstance(schedule, EDM) else (1.0, 1e-3)
    lam = torch.linspace(*schedule.log_snr([first, last]).tolist(), N + 1, dtype=torch.float64)
    l = 1 / (1 + std**2 * (2 * lam[:, None]).exp())

    def noise(x, t):
        t = schedule.from_network_time(t)
        alpha, sigma = (f(t)[:, None] for f in (schedule.alpha, schedule.sigma))
        return sigma * (x - alpha * mean) / ((alpha * std) ** 2 + sigma**2)

    return EmpiricalModel(schedule, lam, l, torch.zeros_like(l), 2 * mean * l * (1 - l)), noise


@pytest.mark.parametrize(
    "case", VECTORS["gaussian_exactness"]["cases"], ids=lambda c: f"{c['schedule']}-{c['N']}-{c['order']}"
)
def test_gaussian_data_are_solved_in_one_step(case):
    schedule = SCHEDULES[case["schedule"]]
    known, noise = gaussian(schedule, case["N"])
    arguments = {"schedule": schedule, "x_T": wide(VECTORS["x_T"][case["x_T"]]), "clip": None}
    x = gms_fast.sample(
        noise,
        case["steps"],
        solver=DPMSolverV3(known, order=case["order"], corrector=None, spacing="log-snr"),
        **arguments,
    )
    torch.testing.assert_close(x, wide(case["x_out"]), rtol=0, atol=1e-9)
    assert float((x - wide(case["exact"])).abs().max()) < 2 * case["max_abs_err"]


def mixture_statistics(N, factor=(1.0, 0.0, 0.0)):
    schedule = VPContinuous()
    lam = torch.linspace(*schedule.log_snr([1.0, 1e-3]).tolist(), N + 1, dtype=torch.float64)
    ones = torch.ones(N + 1, 2, dtype=torch.float64)
    return EmpiricalModel(schedule, lam, *(f * ones for f in factor))


@pytest.mark.parametrize("factor", [(1.0, 0.0, 0.0), (0.0, -1.0, 0.0)])
def test_degenerate_first_order_is_ddim(factor):
    """Compare with DDIM for l = 1, and for l = 0, s = -1.

    They agree up to the trapezoid rule on cells of h: h^2/12 of integrals of size 1.
    """
    model, x_T = Mixture(VPContinuous()), wide(VECTORS["x_T"]["unit"])
    for N in (1200, 12000):
        solver = DPMSolverV3(mixture_statistics(N, factor), order=1, corrector=None)
        times = solver.times(model.schedule, 10)
        got = gms_fast.sample(model, solver=solver, timesteps=times, x_T=x_T, clip=None)
        states = []
        gms_fast.sample(
            model, solver=DDIM(), timesteps=[*times, 0.0], x_T=x_T, clip=None,
            callback=lambda i, t, x, x0, states=states: states.append(x),
        )  # fmt: skip
        cell = 9.6 / N
        torch.testing.assert_close(got, states[-1], rtol=0, atol=20 * cell**2)


@pytest.mark.parametrize(("order", "pseudo", "slope"), [(1, False, 1), (2, False, 2), (3, False, 3), (3, True, 2)])
def test_order_of_convergence(order, pseudo, slope):
    """Measure the orders; pseudo derivatives of order 3 lose one.

    Statistics of 2,400 nodes keep their own error below 10^-5.
    """
    stored = VECTORS["ems"]["vp_linear_N120"]
    coarse = statistics("vp_linear_N120")
    lam = torch.linspace(*wide(stored["lam"])[[0, -1]].tolist(), 2401, dtype=torch.float64)
    curves = [fine(coarse.lam, getattr(coarse, k), lam) for k in ("l", "s", "b")]
    known = EmpiricalModel(VPContinuous(), lam, *curves)
    model, x_T = Mixture(VPContinuous()), wide(VECTORS["x_T"]["unit"])
    solver = DPMSolverV3(known, order=order, pseudo=pseudo, corrector=None, lower_order_final=False)
    want = wide(VECTORS["exact_final"]["vp_linear"])
    errors = [
        float((gms_fast.sample(model, n, solver=solver, x_T=x_T, clip=None) - want).abs().max()) for n in (40, 80)
    ]
    assert math.log2(errors[0] / errors[1]) == pytest.approx(slope, abs=0.5)


def fine(grid, curve, lam):
    """Interpolate (N, 2) values linearly between nodes: any bounded curves will do."""
    place = ((lam - grid[0]) / (grid[1] - grid[0])).clamp(0, len(grid) - 1 - 1e-9)
    low = place.long()
    return torch.lerp(curve[low], curve[low + 1], (place - low)[:, None])


def test_derivatives_of_a_polynomial_are_exact():
    lam = torch.linspace(-2, 3, 51, dtype=torch.float64)
    values = 1 + 2 * lam - 0.7 * lam**2 + 0.3 * lam**3
    nodes = (30, 24, 11, 40)
    at = lam[30]
    want = [2 - 1.4 * at + 0.9 * at**2, -1.4 + 1.8 * at, wide(1.8)]
    got = [
        sum(w * values[m] for w, m in zip(row, nodes, strict=True))
        for row in derivatives(lam, Update(nodes, 31, False))
    ]
    assert [float(v) for v in got] == pytest.approx([float(v) for v in want], rel=1e-10)
    pseudo = [
        sum(w * values[m] for w, m in zip(row, nodes, strict=True)) for row in derivatives(lam, Update(nodes, 31, True))
    ]
    assert float(pseudo[0]) == pytest.approx(float((values[24] - values[30]) / (lam[24] - lam[30])), rel=1e-12)
    assert float(pseudo[2]) == pytest.approx(1.8, rel=1e-9)  # the highest is the same


def test_ve_and_vp_agree_in_y():
    """Compare schedules on the same nodes: l, s, b and the network depend on (y, lambda) only."""
    vp, lam = VPContinuous(), statistics("vp_linear_N120").lam
    curves = [getattr(statistics("vp_linear_N120"), k) for k in ("l", "s", "b")]
    edm = EDM(*(-lam[[-1, 0]]).exp().tolist())
    x_T, ends = wide(VECTORS["x_T"]["unit"]), []
    for schedule in (vp, edm):
        solver = DPMSolverV3(EmpiricalModel(schedule, lam, *curves), spacing="log-snr")
        times = solver.times(schedule, 8)
        x = gms_fast.sample(
            Mixture(schedule), 8, solver=solver, x_T=x_T / vp.alpha(1.0) * schedule.alpha(times[0]), clip=None
        )
        ends.append(x / schedule.alpha(times[-1]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-9)


def test_a_grid_that_the_schedule_chose_is_kept():
    """Use a shifted flow, which has a grid of its own; times are its nearest nodes."""
    schedule = Flow(0.99, 0.01, shift=3)
    lam = torch.linspace(*schedule.log_snr([0.99, 0.01]).tolist(), 1001, dtype=torch.float64)
    curve = torch.ones(1001, 2, dtype=torch.float64)
    times = DPMSolverV3(EmpiricalModel(schedule, lam, curve, 0 * curve, 0 * curve)).times(schedule, 8)
    away = (schedule.log_snr(times) - schedule.log_snr(schedule.timesteps(8))).abs()
    assert float(away.max()) <= float(lam[1] - lam[0]) / 2 * (1 + 1e-9)


def test_distrusted_statistics_are_those_of_the_data_prediction():
    run, schedule = RUNS["r06"], VPContinuous()
    known = statistics("vp_linear_N120")
    half = known.trusted(0.0)
    noisy = known.lam < 0
    assert torch.equal(half.l[noisy], torch.ones_like(half.l[noisy]))
    assert not half.s[noisy].any()
    assert torch.equal(half.b[~noisy], known.b[~noisy])

    def states(**options):
        seen = []
        sample(run, Mixture(schedule), solver=solver_of(run, **options), callback=lambda i, t, x, x0: seen.append(x))
        return seen, solver_of(run).times(schedule, run["steps"])

    mixed, times = states(trust=0.0)
    plain, _ = states(statistics=known.degenerate())
    assert 1 < sum(float(schedule.log_snr(t)) < 0 for t in times) < len(times)
    for t, a, b in zip(times, mixed, plain, strict=False):
        if float(schedule.log_snr(t)) < 0:
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert float((mixed[-1] - plain[-1]).abs().max()) > 1e-3
    torch.testing.assert_close(states(trust=-99.0)[0], states()[0], rtol=0, atol=0)


def test_clip_is_what_the_solver_steps_by():
    run = RUNS["r08"]
    plain = sample(run, Mixture(VPContinuous()), solver=solver_of(run))
    arguments = {"schedule": VPContinuous(), "x_T": wide(VECTORS["x_T"]["unit"]), "solver": solver_of(run)}
    far = gms_fast.sample(Mixture(VPContinuous()), 8, clip=(-50.0, 50.0), **arguments)
    torch.testing.assert_close(far, plain, rtol=0, atol=1e-10)
    seen = []
    near = gms_fast.sample(
        Mixture(VPContinuous()), 8, clip=(-0.5, 0.5), callback=lambda i, t, x, x0: seen.append(x0), **arguments
    )
    assert float((near - plain).abs().max()) > 0.1
    assert max(float(x0.abs().max()) for x0 in seen) <= 0.5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_states_stay_near(dtype):
    run = RUNS["r08"]
    x_T = wide(VECTORS["x_T"]["unit"]).to(dtype)
    model = Mixture(VPContinuous())
    narrow = lambda x, t: model(x.double(), t.double()).to(dtype)  # noqa: E731
    x = gms_fast.sample(narrow, 8, solver=solver_of(run), schedule=VPContinuous(), x_T=x_T, clip=None)
    assert x.dtype == dtype
    error = float((x.double() - wide(run["x_out"])).abs().max())
    assert error < (1e-4 if dtype == torch.float32 else 1.0)


KNOWN = statistics("vp_linear_N120")
DISCRETE = statistics("vp_discrete_N100")


def call(
    *, schedule=SCHEDULES["vp_linear"], shape=(2,), model=pytest.fail, steps=8, known=KNOWN, timesteps=None, **options
):
    solver = DPMSolverV3(known, **options)
    gms_fast.sample(model, steps, solver=solver, schedule=schedule, shape=shape, timesteps=timesteps)


def part(known, first, last):
    return EmpiricalModel(known.schedule, *(v[first:last] for v in (known.lam, known.l, known.s, known.b)))


REFUSALS = {
    "statistics": ({"known": None}, TypeError, "statistics must be an EmpiricalModel.*: got NoneType"),
    "order": ({"order": 0}, ValueError, "order must be an integer from 1 to 7: got 0"),
    "corrector": ({"corrector": "best"}, ValueError, "corrector must be one of None, 'same', 'next': got 'best'"),
    "half": ({"half": "left"}, ValueError, "half must be one of False, True, 'released': got 'left'"),
    "spacing": ({"spacing": "cubic"}, ValueError, "spacing must be .*: got 'cubic'"),
    "schedule": ({"schedule": VPContinuous(beta_1=10.0)}, ValueError, "measured for schedule"),
    "shape": ({"shape": (3,)}, ValueError, r"measured for shape \(2,\), not \(3,\)"),
    "scalar": ({"shape": ()}, ValueError, "shape must have at least one dimension"),
    "order of correctors": ({"order": 8}, ValueError, "order must be an integer from 1 to 7: got 8"),
    "trust": ({"trust": float("nan")}, ValueError, "trust must be a finite number or None: got nan"),
    "range": (
        {"known": part(KNOWN, 20, 121)}, ValueError, "statistics must cover all of .*, lambda = -5.02 to 4.56",
    ),
    "end": ({"known": part(KNOWN, 0, 100)}, ValueError, "statistics must cover all of"),
    "infinite": (
        {"known": EmpiricalModel(KNOWN.schedule, KNOWN.lam, KNOWN.l, 1e3 + KNOWN.s, KNOWN.b)}, ValueError,
        "statistics must have finite integrals",
    ),
    "no times": ({"timesteps": []}, ValueError, "must be nearest to different nodes"),
    "steps": ({"steps": 121}, ValueError, "must be nearest to different nodes .* of 0 to 120. Use fewer steps"),
    "duplicates": ({"steps": 100, "spacing": "uniform"}, ValueError, "must be nearest to different nodes"),
    "no steps": ({"steps": 0}, ValueError, "steps must be at least 1: got 0"),
    "beyond": ({"timesteps": [1.0, 0.5, 1e-4]}, ValueError, "must lie in the range of the statistics, 1 to 0.001"),
    "clean": ({"timesteps": [1.0, 0.5, 0.0]}, ValueError, "must lie in the range of the statistics, 1 to 0.001"),
    "upwards": ({"timesteps": [0.5, 1.0]}, ValueError, "must be nearest to different nodes"),
    "alone": ({"timesteps": [0.5]}, ValueError, "must be nearest to different nodes"),
    "late": (
        {"known": DISCRETE, "schedule": VPLinear(), "timesteps": [1200, 0]},
        ValueError, r"times must lie in \[0, 999\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_argument_is_named_before_the_model_is_called(case):
    arguments, error, message = REFUSALS[case]
    with pytest.raises(error, match=message):
        call(**arguments)


def test_the_same_schedule_by_another_name_is_accepted():
    again = VP(VPLinear().betas)
    x_T = wide(VECTORS["x_T"]["unit"])
    one, other = (
        gms_fast.sample(Mixture(s), 6, solver=DPMSolverV3(DISCRETE), schedule=s, x_T=x_T) for s in (VPLinear(), again)
    )
    assert torch.equal(one, other)
    gms_fast.sample(Mixture(VPLinear()), 6, solver=DPMSolverV3(DISCRETE), schedule="linear", x_T=x_T)


def test_statistics_of_another_network_are_refused():
    class Net(torch.nn.Linear):
        def forward(self, x, t):
            return super().forward(x)

    net = Net(2, 2)
    stored = VECTORS["ems"]["vp_linear_N120"]
    curves = [wide(stored[k]) for k in ("lam", "l", "s", "b")]
    known = EmpiricalModel(VPContinuous(), *curves, network=gms_fast.statistics.fingerprint(net))
    call(known=known, model=net)
    with torch.no_grad():
        net.weight += 1
    for model in (net, Classifier(net, lambda x, t: x[:, 0], schedule=VPContinuous())):
        with pytest.raises(ValueError, match="measured for network"):
            call(known=known, model=model)


def test_degenerate_statistics_agree_with_dpm_solver_pp():
    """Compare two second-order solvers in the data prediction.

    They differ in the weight of D_1, by an amount that vanishes with h^2.
    """
    model, x_T = Mixture(VPContinuous()), wide(VECTORS["x_T"]["unit"])
    gaps = []
    for steps in (20, 40):
        solver = DPMSolverV3(mixture_statistics(4800), order=2, corrector=None, lower_order_final=False)
        times = solver.times(model.schedule, steps)
        states = []
        gms_fast.sample(
            model, solver=DPMSolverPP(lower_order_final=False), timesteps=[*times, 0.0], x_T=x_T, clip=None,
            callback=lambda i, t, x, x0, states=states: states.append(x),
        )  # fmt: skip
        got = gms_fast.sample(model, solver=solver, timesteps=times, x_T=x_T, clip=None)
        gaps.append(float((got - states[-1]).abs().max()))
    assert gaps[1] < 0.45 * gaps[0]
