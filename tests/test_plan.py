"""Times and noise of a run: the ends of grids, no lost step, and noise by noise level."""

import functools
import gc
import itertools
import math
import weakref

import pytest
import torch
from strangers import ACCURATE, MEAN, STD, TWO, Exact, Moments, sample, std
from toys import polynomial

import gms_fast
from gms_fast import ops, schedules, solvers, statistics
from gms_fast.plan import plan
from gms_fast.schedules import VP, Flow, VPLinear
from gms_fast.solvers import DDIM, ERSDE, GMS, Teleport
from gms_fast.tables import Gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

DIGITS = statistics.load_gaussian("digits")


@pytest.mark.parametrize(("mean", "spread"), [(0.3, 0.2), (0.0, 1.0)])
@pytest.mark.parametrize("offset", [0, 10])
@pytest.mark.parametrize("solver", ["er-sde", "ddpm", "gms"])
def test_second_stage_draws_new_noise(mean, spread, offset, solver):
    model = Moments(mean=mean, std=spread, clip=None)
    times = [999 - round(99.9 * i / 2) for i in range(21)]
    half = times.index(min(times, key=lambda t: abs(t - 500)))
    draw = functools.partial(sample, model, solver=solver)
    whole = draw(timesteps=times)
    x = draw(timesteps=times[: half + 1], denoise=False)
    y = draw(timesteps=times[half:], x_T=x, step_offset=offset and half)
    assert std(y) == pytest.approx(std(whole), rel=TWO)
    if offset and solver != "er-sde":  # er-sde has a history
        assert torch.equal(y, whole)


def test_noise_follows_the_level_wherever_a_run_starts():
    model, x_T = Moments(clip=None), torch.randn(4, 3, 8, 8)
    one = sample(model, timesteps=[500, 400, 300, 200], x_T=x_T, solver="ddpm", denoise=False)
    first = sample(model, timesteps=[500, 400, 300], x_T=x_T, solver="ddpm", denoise=False)
    assert torch.equal(sample(model, timesteps=[300, 200], x_T=first, solver="ddpm", denoise=False), one)


def test_user_s_noise_is_no_step_s():
    """In img2img the noise added to an image must differ from that of the first step."""
    noises = [ops.philox_normal((4, 3, 8, 8), seed=0, step=step) for step in range(3)]
    drawn = []
    for options in ({}, {"x_T": torch.zeros(4, 3, 8, 8), "timesteps": [500, 400, 300]}):

        def first(i, t, x, x_0, drawn=drawn, options=options):
            if i == 1:
                drawn.append(x)
                raise StopIteration

        sample(lambda x, t: 0 * x, n=4, shape=(3, 8, 8), schedule="linear", solver="ddpm", callback=first, **options)
    for x, noise in itertools.product(drawn, noises):
        correlation = float(torch.corrcoef(torch.stack([x.flatten(), noise.flatten()]))[0, 1])
        assert abs(correlation) < 5 / math.sqrt(noise.numel())


@pytest.mark.parametrize("schedule", ["linear", "cosine", "vp"])
@pytest.mark.parametrize(("solver", "errors"), [("unip", {10: 0.06, 20: 0.03}), ("dpm-solver++", {10: 0.15, 20: 0.06})])
def test_multistep_solvers_end_near_the_data(schedule, solver, errors):
    """On 20 uniform times of the linear schedule their spread was 50 and 25 % too wide."""
    for steps, error in errors.items():
        x = sample(Exact(schedule=schedules.build(schedule)), steps, solver=solver, clip=None)
        assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
        assert std(x) == pytest.approx(STD, rel=error + ACCURATE)


def test_no_extrapolation_over_the_last_jump():
    """On uniform times UniP's last step is of order 1, so its error is that of DDIM.

    The sign of that error is towards too little spread.
    """
    times = VPLinear().timesteps(20)
    x = sample(Exact(), timesteps=times, solver="unip", clip=None)
    assert 0.75 * STD < std(x) < STD
    full = sample(Exact(), timesteps=times, solver=solvers.UniP(lower_order_final=False), clip=None)
    assert std(full) > 1.4 * STD


@pytest.mark.parametrize(
    "solver", [solvers.UniP(), solvers.UniPC(), solvers.DPMSolverPP(), solvers.DPMSolverPP(order=3, sde=True)]
)
def test_multistep_grids_do_not_jump(solver):
    """From ten steps on, no step is over twice as long in log(alpha/sigma) as the one before."""
    for schedule in (VPLinear(), schedules.VPCosine(), schedules.VPContinuous()):
        for steps in (10, 20, 50):
            times = solver.times(schedule, steps)
            lengths = schedule.log_snr(times).diff()
            assert len(times) == steps + 1
            assert float((lengths[1:] / lengths[:-1])[steps // 2 :].max()) < 2


def test_grids_that_were_chosen_are_kept():
    for solver in (solvers.UniP(), solvers.DPMSolverPP(), solvers.GMS()):
        shifted = Flow(0.999, 0.001, shift=3.0)
        assert solver.times(shifted, 5) == shifted.timesteps(5)
    assert solvers.UniP().times(schedules.EDM(), 5) == schedules.EDM().timesteps(5)
    assert solvers.DPMSolverPP(order=1).times(VPLinear(), 5) == VPLinear().timesteps(5)
    assert solvers.UniP().times(VPLinear(), [999, 500, 0]) == [999, 500, 0]


@pytest.mark.parametrize(("steps", "schedule", "spacing"), [(20, "cosine", "karras"), (500, "linear", "log-snr")])
def test_every_step_is_a_call(steps, schedule, spacing):
    times = schedules.build(schedule).timesteps(steps, spacing=spacing)
    model = Exact(schedule=schedules.build(schedule))
    sample(model, timesteps=times, n=1)
    assert len(model.asked) == len(set(model.asked)) == steps + 1


def test_a_thousand_steps_are_plain_ddpm():
    model = Exact()
    x = sample(model, 1000, solver="ddpm", n=8)
    assert model.asked == list(range(999, -1, -1))
    assert torch.equal(sample(model, timesteps=range(999, -1, -1), solver="ddpm", n=8), x)
    sample(model, 999, solver="ddpm", n=1)
    assert model.asked[2000:] == list(range(999, -1, -1))


@pytest.mark.parametrize("solver", solvers.names())
def test_one_time_is_one_call(solver):
    model = Moments()
    x_T = torch.randn(4, 3, 8, 8)
    x = sample(model, timesteps=[999], solver=solver, x_T=x_T)
    assert model.asked == [999]
    alpha, sigma = float(VPLinear().alpha(999)), float(VPLinear().sigma(999))
    e1 = model(x_T, torch.tensor([999.0])).e1
    assert torch.allclose(x, ((x_T - sigma * e1) / alpha).clamp(-1, 1), atol=1e-3)
    assert torch.equal(sample(model, timesteps=[999], solver=solver, x_T=x_T, denoise=False), x_T)


def functions():
    """Return solvers and schedules whose plans may change while their attributes do not."""
    power = [2.0]
    return power, ERSDE(noise_scale=lambda x: x ** power[0], variance_clip=0.0)


@pytest.mark.parametrize("jump", [False, True])
def test_functions_are_asked_anew(jump):
    power, solver = functions()
    solver = Teleport(DIGITS, 2.0, solver) if jump else solver
    before = plan("linear", None, 5, None, solver)
    power[0] = 2.5
    assert plan("linear", None, 5, None, solver) != before


def test_changed_tables_have_other_plans():
    schedule = VPLinear()
    before = plan(schedule, None, 5, None, DDIM())
    assert plan(schedule, None, 5, None, DDIM()) is before
    schedule._log_alpha.mul_(1.01)
    assert plan(schedule, None, 5, None, DDIM()) != before


def test_tables_are_not_kept_alive():
    known = Gaussian(DIGITS.mean, DIGITS.eigenvectors, DIGITS.eigenvalues)
    solver = Teleport(known, 2.0, DDIM())
    assert plan("linear", None, 5, None, solver) is plan("linear", None, 5, None, solver)
    alive = weakref.ref(known)
    del known, solver
    gc.collect()
    assert alive() is None


def test_network_times_of_a_schedule_of_ones_own_may_be_of_one_number():
    class Asked(Flow):
        def network_time(self, t):
            return 1000 * t

    class Constant(Flow):
        def network_time(self, t):
            return 7.0

    steps = [plan(kind(t_max=0.9), None, 2, None, DDIM()).steps for kind in (Asked, Constant)]
    assert [[step.network_time for step in each] for each in steps] == [[900.0, 450.0], [7.0, 7.0]]


def test_noise_of_a_source_that_is_empty_is_asked():
    class Source(list):
        def __call__(self, step):
            return ops.philox_normal((2, 3), seed=step)

    options = {"solver": "ddpm", "schedule": "linear", "n": 2, "shape": (3,), "clip": None}
    want = gms_fast.sample(polynomial, 3, noise=Source([1]), **options)
    assert torch.equal(gms_fast.sample(polynomial, 3, noise=Source(), **options), want)


def test_noise_is_asked_for_once_a_step_where_elements_are_drawn_together():
    asked = []
    options = {"schedule": "linear", "n": 2, "shape": (1, 8, 8), "clip": (-1, 1)}
    gms_fast.sample(polynomial, 4, solver=GMS(covariance=DIGITS, switch=3), noise=asked.append, **options)
    assert asked == [0, 1, 2, 3]


def test_switch_that_never_happens_is_told_of_from_no_signal_on():
    schedule = VP(torch.linspace(1e-4, 1.0, 50))
    options = {"schedule": schedule, "timesteps": [49, 45], "prediction": "x0", "n": 2, "shape": (1, 8, 8)}
    told = pytest.warns(UserWarning, match="sigma/alpha of the steps, inf to inf")
    with told, pytest.raises(ValueError, match="a prediction of x0, v, flow, at alpha = 0"):  # it has moments
        gms_fast.sample(polynomial, solver=GMS(covariance=DIGITS, switch=0.001), clip=(-1, 1), **options)
