"""Teleport against closed forms and in the sampling loop, and bad input."""

import math

import pytest
import torch
from gaussian_data import KNOWN, D, OfGaussian, start
from toys import Model, polynomial

import gms_fast
from gms_fast import statistics
from gms_fast.plan import COUNTED, plan
from gms_fast.schedules import EDM, Flow, VPLinear
from gms_fast.solvers import DDIM, DDPM, ERSDE, GMS, SNDDPM, DPMSolverPP, DPMSolverV3, Teleport
from gms_fast.statistics import Gaussian, gaussian

THEN = (DDIM(), DPMSolverPP(), DPMSolverPP(order=3, denoise=False), ERSDE(), SNDDPM())


@pytest.mark.parametrize(("schedule", "T"), [(VPLinear(), 999.0), (EDM(), 80.0), (Flow(), 1.0)])
def test_it_lands_where_the_probability_flow_of_the_network_does(schedule, T):
    """Compare a jump half way with many DDIM steps on Gaussian data, up to the steps' error."""
    options = {"schedule": schedule, "clip": None}
    x_T = start() * float(schedule.sigma(T))

    def end(solver, steps):
        fine = {"timesteps": schedule.timesteps(steps, spacing="angle")}
        return gms_fast.sample(OfGaussian(schedule=schedule), solver=solver, x_T=x_T, **fine, **options)

    jumped = end(Teleport(KNOWN, 3.0, DPMSolverPP()), 400)
    exact = KNOWN.teleport(x_T, float(schedule.alpha(T)), float(schedule.sigma(T)), 1.0, 0.0)
    assert (jumped - exact).abs().max() < 2e-3 * exact.abs().max()
    assert (jumped - exact).abs().max() <= (end(DPMSolverPP(), 400) - exact).abs().max() + 1e-4


@pytest.mark.parametrize("then", THEN, ids=lambda s: type(s).__name__)
def test_same_steps_go_from_where_it_lands(then):
    model = Model(polynomial, sample_shape=(D,))
    schedule, seen = model.schedule, []
    solver = Teleport(KNOWN, 4.0, then)
    times = solver.times(schedule, 6)
    assert len(times) == 8
    assert times[0] == 999
    assert math.exp(-float(schedule.log_snr(times[1]))) == pytest.approx(4.0, rel=0.01)
    gms_fast.sample(
        model, 6, solver=solver, n=2, dtype=torch.float64, clip=None, callback=lambda i, t, x, x0: seen.append(t)
    )
    assert seen == times[:-1]
    assert model.calls == solver.calls(schedule, times) == 6 + then.denoise


def test_a_share_skips_steps_of_the_same_grid():
    model = Model(polynomial, sample_shape=(D,))
    solver = Teleport(KNOWN, skip=0.3, then=DPMSolverPP(), spacing=0.7)
    grid = model.schedule.timesteps(10, spacing=0.7)
    assert solver.times(model.schedule, 10) == [999, *grid[3:]]
    gms_fast.sample(model, 10, solver=solver, n=1, clip=None)
    assert model.calls == 8


def test_explicit_times_that_are_noisier_are_skipped():
    schedule, wanted = VPLinear(), [950, 900, 700, 500, 300, 0]
    ratio = math.exp(-float(schedule.log_snr(500)))
    for until in (ratio, ratio * 1.01):
        assert Teleport(KNOWN, until, DDIM()).times(schedule, wanted) == [950, 500, 300, 0]


@pytest.mark.parametrize("then", THEN, ids=lambda s: type(s).__name__)
def test_afterwards_all_is_as_if_begun_there(then):
    """Compare with a run started by hand where the jump ends: seeds, history, and orders."""
    model = Model(polynomial, sample_shape=(D,))
    solver = Teleport(KNOWN, 4.0, then)
    times = solver.times(model.schedule, 6)
    alpha, sigma = model.schedule.alpha(times), model.schedule.sigma(times)
    landed = KNOWN.teleport(start(), float(alpha[0]), float(sigma[0]), float(alpha[1]), float(sigma[1]))
    options = {"clip": None, "seed": 7}
    want = gms_fast.sample(model, timesteps=times[1:], solver=then, x_T=landed, **options)
    assert torch.equal(gms_fast.sample(model, 6, solver=solver, x_T=start(), **options), want)


def test_direct_start_has_the_law_of_the_data_there():
    model = OfGaussian(schedule=EDM())
    solver = Teleport(KNOWN, 10.0, DPMSolverPP(denoise=False), direct=True)
    states = []
    gms_fast.sample(
        model, 2, solver=solver, x_T=80 * start(), clip=None, callback=lambda i, t, x, x0: states.append(x.clone())
    )
    torch.testing.assert_close(states[1], KNOWN.draw(start(), 1.0, 10.0), rtol=1e-13, atol=1e-13)


def test_one_exact_step_is_enough_for_gaussian_data():
    """Jump to the last noise level and remove the rest: mean and covariance are the data's."""
    model = OfGaussian(schedule=VPLinear())
    solver = Teleport(KNOWN, 1.0, DDIM(), direct=True)
    x = gms_fast.sample(model, 200, solver=solver, n=20_000, seed=3, dtype=torch.float64, clip=None)
    spread = torch.cov(x.T)
    want = KNOWN.eigenvectors @ KNOWN.eigenvalues.diag() @ KNOWN.eigenvectors.T
    assert (spread - want).abs().max() < 5 * want.diagonal().max() * (2 / 20_000) ** 0.5


def test_flow_models_of_noise_need_no_call_without_signal():
    model = Model(lambda x, t: 0.5 * x, sample_shape=(D,), schedule=Flow(), prediction="noise")
    with pytest.raises(ValueError, match="prediction must be one of"):
        gms_fast.sample(model, 4, solver=DDIM(), n=1)
    assert gms_fast.sample(model, 4, solver=Teleport(KNOWN, 3.0, DDIM()), n=1, clip=None).isfinite().all()


def test_before_dpm_solver_v3_on_the_nodes_of_its_statistics():
    known = statistics.load("digits")
    model = gms_fast.load("digits")
    solver = Teleport(statistics.load_gaussian("digits"), 5.0, DPMSolverV3(known, trust=-2))
    x = gms_fast.sample(model, 4, solver=solver, n=2)
    assert x.shape == (2, 1, 8, 8)
    assert x.isfinite().all()
    times = solver.times(model.schedule, 4)
    assert solver.calls(model.schedule, times) == 4
    nodes = (model.schedule.log_snr(times[1:]) - known.lam[0]) / (known.lam[1] - known.lam[0])
    assert torch.allclose(nodes, nodes.round(), atol=1e-6)


def test_it_does_not_depend_on_the_batch():
    model = Model(polynomial, sample_shape=(D,))
    options = {"solver": Teleport(KNOWN, 4.0, ERSDE()), "dtype": torch.float64, "clip": None}
    whole = gms_fast.sample(model, 5, n=6, **options)
    parts = [gms_fast.sample(model, 5, n=2, sample_offset=i, **options) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)  # the sums of a product may be split


def test_a_grid_made_of_until_may_be_given_back():
    for until in (1.3, 2, 3, 5, 7, 11, 20, 40):
        solver = Teleport(KNOWN, until, DDIM())
        times = solver.times(VPLinear(), 6)
        assert solver.times(VPLinear(), times) == times


@pytest.mark.parametrize("schedule", [EDM(), VPLinear()])
def test_before_dpm_solver_v3_from_any_schedule(schedule):
    """Use a grid that ends where the statistics end, not at sigma = 0, between whole times."""
    lam = torch.linspace(*schedule.log_snr([schedule.t_max, max(schedule.t_min, 0.002)]).tolist(), 121)
    curves = torch.zeros(121, D)
    known = statistics.EmpiricalModel(schedule, lam.double(), curves, curves, curves)
    for jump in ({"until": 5.0}, {"skip": 0.3}):
        solver = Teleport(KNOWN, then=DPMSolverV3(known), **jump)
        times = solver.times(schedule, 6)
        assert len(times) == (8 if "until" in jump else 6)
        assert times[-1] == pytest.approx(max(schedule.t_min, 0.002), abs=1e-6)
        assert solver.times(schedule, times)[-1] == times[-1]


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("then", "times"), [(DDIM(), 2.3), (GMS(), 0.75), (SNDDPM(), 0.75)])
def test_by_itself_a_jump_ends_at_a_level_of_the_data(then, times):
    """Check the default level in units of the largest standard deviation, never below 1.

    Data of another unit then has the same steps.
    """
    wide, narrow = (Gaussian(torch.zeros(3), torch.eye(3), torch.tensor([v, 1.0, 0.1])) for v in (16.0, 0.01))
    assert Teleport(wide, then=then).level == pytest.approx(4 * times)
    assert Teleport(narrow, then=then).level == pytest.approx(max(1, times))
    assert Teleport(wide, 7, then).level == 7
    assert Teleport(wide, then=then, skip=0.5).level is None
    got, want = (Teleport(wide, level, then).times(VPLinear(), 4) for level in (None, 4 * times))
    assert got == want


UNITS = gaussian(torch.rand(30, D))  # of [0, 1]
IMAGES = gaussian(torch.rand(30, 2, 2, 2) * 2 - 1)


@pytest.mark.parametrize(
    ("solver", "error", "message"),
    [
        (lambda: Teleport(3, 5.0, DDIM()), TypeError, "statistics must be a Gaussian"),
        (lambda: Teleport(KNOWN, 0, DDIM()), ValueError, "until must be a noise level sigma/alpha"),
        (lambda: Teleport(KNOWN, math.nan, DDIM()), ValueError, "until must be"),
        (lambda: Teleport(KNOWN, "5", DDIM()), ValueError, "until must be"),
        (lambda: Teleport(KNOWN, 5.0, "ddim"), TypeError, "then must be a solver"),
        (lambda: Teleport(KNOWN, 5.0, Teleport(KNOWN, 3.0, DDIM())), TypeError, "then must be a solver"),
        (lambda: Teleport(KNOWN, 500.0, DDIM()), ValueError, "until must lie between .*0.01 and 157: got 500"),
        (lambda: Teleport(KNOWN, 0.5, DDIM()), ValueError, "to skip a fraction of the steps, use skip: got 0.5"),
        (lambda: Teleport(KNOWN, 5, DDIM(), skip=0.5), ValueError, "not be given together with skip: got 5 and 0.5"),
        (lambda: Teleport(KNOWN, skip=1.5, then=DDIM()), ValueError, "skip must be a fraction of the steps"),
        (lambda: Teleport(KNOWN, skip=0.05, then=DDIM()), ValueError, "skip = 0.05 must skip at least one of 5 steps"),
        (lambda: Teleport(KNOWN, skip=0.95, then=DDIM()), ValueError, "skip = 0.95 .* leave at least one: it skips 5"),
        (lambda: Teleport(IMAGES, 5.0, DDIM()), ValueError, r"of shape \(6,\): got \(2, 2, 2\)"),
        (lambda: Teleport(UNITS, 5.0, DDIM()), ValueError, "statistics must be of data in the units of clip"),
        (lambda: Teleport(gaussian(torch.randn(9, 3)), 5.0, DDIM()), ValueError, r"of shape \(6,\): got \(3,\)"),
        (lambda: GMS(covariance=UNITS, switch=0), ValueError, "covariance must be of data in the units of clip"),
        (lambda: GMS(covariance=gaussian(torch.randn(9, 3)), switch=0), ValueError, r"of shape \(6,\): got \(3,\)"),
        (lambda: GMS(covariance="mnist"), TypeError, "covariance must be a Gaussian"),
        (lambda: GMS(switch=1.0), ValueError, "switch must not be given without covariance"),
        (lambda: GMS(covariance=KNOWN, switch=-1.0), ValueError, "switch must be a noise level"),
        (lambda: GMS(covariance=KNOWN, switch=math.inf), ValueError, "switch must be a noise level"),
    ],
)
def test_refusals_come_before_the_model_is_called(solver, error, message):
    model = Model(polynomial, sample_shape=(D,))
    with pytest.raises(error, match=message):
        gms_fast.sample(model, 5, solver=solver(), n=1, clip=(-1.0, 1.0))
    assert model.calls == 0


def test_the_name_alone_says_what_is_missing():
    with pytest.raises(
        ValueError,
        match="teleport needs statistics=STATISTICS, a file written by gms-fast statistics --gaussian: the model does",
    ):
        gms_fast.sample(Model(sample_shape=(D,)), 5, solver="teleport", n=1)


def test_statistics_of_flat_data_serve_pictures():
    flat = Gaussian(KNOWN.mean, KNOWN.eigenvectors, KNOWN.eigenvalues)
    x = start().view(5, 1, 2, 3)
    assert torch.equal(flat.denoise(x, 0.5, 0.8).flatten(1), KNOWN.denoise(start(), 0.5, 0.8))


def test_counters_of_a_continued_run_count_the_steps_after_the_jump():
    """Check that the first step after the jump has the counter `step_offset`."""
    solver, x = Teleport(KNOWN, 10.0, DDPM()), start()
    seen = []
    options = {"solver": solver, "x_T": x, "schedule": VPLinear(), "clip": None, "step_offset": 7}
    gms_fast.sample(polynomial, 3, noise=lambda step: seen.append(step), **options)
    assert seen == [7, 8, 9]
    counters = plan(VPLinear(), None, 3, None, solver).counters(7 - solver.known_steps, counted=True)
    assert counters[1:] == [COUNTED + 7, COUNTED + 8, COUNTED + 9]
