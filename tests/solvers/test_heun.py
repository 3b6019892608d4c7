"""Heun's method: the paper's loop, order, network evaluations, and steps without corrector."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from toys import Model, polynomial

import gms_fast
from gms_fast import Stepper, solvers, statistics
from gms_fast.models import GaussianMixture1D
from gms_fast.schedules import EDM, Flow, VPContinuous, VPContinuousCosine, VPCosine, VPLinear
from gms_fast.solvers import DDIM, GGDMTable, Heun, Teleport

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (3, 4)
MEAN, STD = 0.3, 0.2
MIXTURE = [0.3, 0.7], [-1.0, 0.6], [0.25, 0.15]


def levels(schedule, times):
    """Return (alpha, sigma) of the times, as numpy arrays."""
    return schedule.alpha(times).numpy(), schedule.sigma(times).numpy()


def start(schedule, t):
    """Return x_T in float64."""
    return float(schedule.sigma(t)) * gms_fast.ops.philox_normal(SHAPE, seed=1, dtype=torch.float64)


class OfGaussian(Model):
    """E[x_0|x_t] of N(MEAN, STD^2) in float64, at the exact time instead of the rounded one."""

    sample_shape, prediction = (4,), "x0"

    def __init__(self, schedule, times):
        super().__init__(schedule=schedule)
        self.levels = list(zip(*levels(schedule, times), strict=True))

    def __call__(self, x, t):
        alpha, sigma = self.levels[self.calls]
        self.calls += 1
        return MEAN + alpha * STD**2 * (x - alpha * MEAN) / ((alpha * STD) ** 2 + sigma**2)


def flow_of_gaussian(schedule, x, t, s):
    """Return the probability flow from t to s: the deviation from the mean scales with the std."""
    (alpha_t, alpha_s), (sigma_t, sigma_s) = levels(schedule, [t, s])
    widths = [math.hypot(a * STD, b) for a, b in ((alpha_t, sigma_t), (alpha_s, sigma_s))]
    return alpha_s * MEAN + widths[1] / widths[0] * (x - alpha_t * MEAN)


def of_paper(denoiser, y, sigmas):
    """Run algorithm 1 of Karras et al. 2022 without churn, down to no noise, in its units."""
    for t, t_next in pairwise(sigmas):
        d = (y - denoiser(y, t)) / t
        y_next = y + (t_next - t) * d
        if t_next != 0:
            d_next = (y_next - denoiser(y_next, t_next)) / t_next
            y_next = y + (t_next - t) * (d / 2 + d_next / 2)
        y = y_next
    return y


def denoiser(y, r):
    """Return E[x_0|y] of the mixture for y = x_0 + r eps."""
    weights, means, stds = (np.array(values) for values in MIXTURE)
    var, y = stds**2 + r**2, y[..., None]
    log = np.log(weights) - np.log(var) / 2 - (y - means) ** 2 / (2 * var)
    p = np.exp(log - log.max(-1, keepdims=True))
    return (p * (stds**2 * y + r**2 * means) / var).sum(-1) / p.sum(-1)


SCHEDULES = [VPLinear(), VPCosine(), VPContinuous(), EDM(), Flow(0.98), Flow(0.98, 0.01)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 7, 18])
def test_paper_s_loop(schedule, steps):
    """Compare over x/alpha and sigma/alpha, to no noise.

    m comes from e1 here and loses sigma/alpha < 2.1e4 of 2^-53, 2.4e-12 of the state. In a long step the trapezoid
    multiplies m and its error alike.
    """
    times = Heun().times(schedule, steps)
    x_T = start(schedule, times[0])
    model = GaussianMixture1D(*MIXTURE, sample_shape=(4,), schedule=schedule)
    got = gms_fast.sample(model, steps, solver="heun", x_T=x_T, clip=None).numpy()
    alpha, sigma = levels(schedule, list(dict.fromkeys(times)))
    sigmas = sigma / alpha if sigma[-1] == 0 else [*(sigma / alpha), 0.0]
    want = of_paper(denoiser, x_T.numpy() / alpha[0], sigmas)
    assert np.abs(got - want).max() < 1e-10 * max(np.abs(want).max(), 1)


def slope(schedule, times_of, solver="heun"):
    """Return the order, from the errors on N(MEAN, STD^2) data after 40 and 80 steps."""

    def error(steps):
        times = times_of(steps)
        visited = solvers.build(solver).times(schedule, times)
        x_T = start(schedule, times[0])
        model = OfGaussian(schedule, visited)
        got = gms_fast.sample(model, timesteps=times, solver=solver, x_T=x_T, clip=None, denoise=False)
        return float((got - flow_of_gaussian(schedule, x_T, times[0], times[-1])).abs().max())

    return math.log2(error(40) / error(80))


RUNS = {
    "vp": (VPContinuous(), lambda steps: VPContinuous().timesteps(steps, "log-snr")),
    "cosine": (VPContinuousCosine(), lambda steps: VPContinuousCosine().timesteps(steps, "karras")),
    "edm": (EDM(), lambda steps: EDM().timesteps(steps + 1)[:-1]),
    "flow": (Flow(), lambda steps: Flow(0.98, 0.02).timesteps(steps)),
    "no signal": (Flow(), lambda steps: Flow(1.0, 0.02).timesteps(steps)),
}


@pytest.mark.parametrize("name", RUNS)
def test_order_of_convergence(name):
    """Measure the order at 40 and 80 steps, where the next order changes it by less than 0.1."""
    assert slope(*RUNS[name]) == pytest.approx(2, abs=0.1)
    assert slope(*RUNS[name], "ddim") == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), Flow(0.98)], ids=repr)
def test_single_picture_is_drawn_exactly(schedule):
    """Use a known x_0, for which there is nothing to correct."""
    model = Model(lambda x, t: torch.full_like(x, MEAN), prediction="x0", schedule=schedule)
    for denoise in (True, False):
        x_T = start(schedule, schedule.t_max)
        got = gms_fast.sample(model, 5, solver="heun", x_T=x_T, clip=None, denoise=denoise)
        want = MEAN if denoise else flow_of_a_point(schedule, x_T)
        assert (got - want).abs().max() < 1e-12


def flow_of_a_point(schedule, x_T):
    """Return the state at the last time if all data is MEAN."""
    (alpha_T, alpha), (sigma_T, sigma) = levels(schedule, [schedule.t_max, Heun().times(schedule, 5)[-1]])
    return alpha * MEAN + sigma / sigma_T * (x_T - alpha_T * MEAN)


# --- calls ---------------------------------------------------------------------------------------------------------

CALLS = {  # of K steps
    "two a step, and one from the last level": (VPLinear(), True, lambda K: 2 * K + 1),
    "without that": (VPLinear(), False, lambda K: 2 * K),
    "one to no noise": (EDM(), True, lambda K: 2 * K - 1),
    "one from no signal, one to no noise": (Flow(), True, lambda K: max(2 * K - 2, 1)),
    "one from no signal": (Flow(t_min=0.1), False, lambda K: 2 * K - 1),
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("steps", [1, 2, 6])
def test_calls_are_counted(name, steps):
    schedule, denoise, calls = CALLS[name]
    solver, model = Heun().ending(denoise), Model(polynomial_x0, prediction="x0", schedule=schedule)
    gms_fast.sample(model, steps, solver=solver, n=1, clip=(-1, 1))
    assert model.calls == calls(steps)
    assert solver.calls(schedule, solver.times(schedule, steps)) == calls(steps)
    stepper = Stepper("heun", schedule, steps=steps, denoise=denoise, prediction="x0")
    assert len(stepper.timesteps) == calls(steps)


def polynomial_x0(x, t):
    """Return an E[x_0|x_t] of sums and products only."""
    return 0.3 * x - 0.05 * x * x


def test_times_may_be_given_once_or_as_they_are_visited():
    solver = Heun()
    assert solver.times(VPLinear(), [900, 500, 0]) == [900, 500, 500, 0, 0]
    assert solver.times(VPLinear(), [900, 500, 500, 0, 0]) == [900, 500, 500, 0, 0]
    assert solver.times(EDM(), [80.0, 1.0, 0.0]) == [80.0, 1.0, 1.0, 0.0]
    assert solver.times(Flow(), [1.0, 0.5, 0.2, 0.0]) == [1.0, 0.5, 0.2, 0.2, 0.0]
    with pytest.raises(ValueError, match="strictly decreasing"):
        solver.times(VPLinear(), [900, 500, 600, 0])


def test_paper_s_grid_or_where_levels_have_no_end_the_schedule_s():
    for schedule in (VPLinear(), EDM(), VPCosine()):
        assert list(dict.fromkeys(Heun().times(schedule, 5))) == schedule.timesteps(5, spacing="karras")
    for schedule in (Flow(), Flow(0.98), Flow(0.98, 0.01, shift=3.0)):
        assert list(dict.fromkeys(Heun().times(schedule, 5))) == schedule.timesteps(5)


# --- where it begins -----------------------------------------------------------------------------------------------


def test_first_step_without_signal_is_ddim_s():
    model, times = Model(polynomial_x0, prediction="x0", schedule=Flow()), [1.0, 0.7, 0.4, 0.1]
    x_T, options = start(Flow(), 1.0), {"clip": None, "denoise": False}
    first = gms_fast.sample(model, timesteps=times[:2], solver="ddim", x_T=x_T, **options)
    want = gms_fast.sample(model, timesteps=times[1:], solver="heun", x_T=first, **options)
    assert torch.equal(gms_fast.sample(model, timesteps=times, solver="heun", x_T=x_T, **options), want)


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), Flow()], ids=repr)
def test_walk_begins_at_any_index(schedule):
    """Begin at the second evaluation of a time: it equals a run from there, without correction."""
    model = Model(polynomial_x0, prediction="x0", schedule=schedule)
    stepper = Stepper("heun", schedule, steps=4, prediction="x0", clip=(-1, 1))
    times = stepper.timesteps if stepper.plan.denoise else [*stepper.timesteps, stepper.plan.last.t]
    for first in range(len(stepper.timesteps)):
        x = x_T = start(schedule, times[first]).float()
        for i in range(first, len(stepper.timesteps)):
            x = stepper.step(i, polynomial_x0(x, None), x)
        want = gms_fast.sample(model, timesteps=times[first:], solver="heun", x_T=x_T, clip=(-1, 1))
        assert torch.equal(x, want)


# --- beside others -------------------------------------------------------------------------------------------------

KNOWN = statistics.gaussian(torch.linspace(-1, 1, 40 * 4).reshape(40, 4) ** 3, rank=3)


@pytest.mark.parametrize("jump", [{"until": 4.0}, {"skip": 0.3}, {"skip": 0.4}], ids=str)
def test_after_a_teleport_it_begins_where_that_lands(jump):
    """Cut the times so that every other one left is the second of a pair, too."""
    model, solver = Model(polynomial), Teleport(KNOWN, then=Heun(), **jump)
    for wanted in (5, VPLinear().timesteps(5)):
        times, states = solver.times(VPLinear(), wanted), []
        assert times[1:] == Heun().times(VPLinear(), times[1:])
        assert solver.times(VPLinear(), times) == times or "skip" in jump
        options = {"timesteps": wanted} if isinstance(wanted, list) else {"steps": wanted}
        before = model.calls
        got = gms_fast.sample(
            model, solver=solver, n=2, clip=None, **options, callback=lambda i, t, x, x0, to=states: to.append(x)
        )
        assert model.calls - before == solver.calls(VPLinear(), times)
        want = gms_fast.sample(model, timesteps=times[1:], solver="heun", x_T=states[1], clip=None)
        assert torch.equal(got, want)


def test_it_is_no_table():
    """Check that Heun makes no table: a table has each time once, and the plan would be DDIM's."""
    with pytest.raises(TypeError, match="solver must be linear"):
        GGDMTable.of(Heun(), VPLinear(), [999, 500, 100])
    assert Heun().plan(VPLinear(), [999, 500, 100]) == DDIM().plan(VPLinear(), [999, 500, 100])


def test_its_order_is_no_option():
    with pytest.raises(ValueError, match="solver 'heun:order=2' has no option order: heun accepts"):
        solvers.build("heun:order=2")
