"""Euler and Heun with churn: algorithm 2 of Karras et al. 2022, its times, and bad input."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from toys import Model

import gms_fast
from gms_fast import Stepper, solvers
from gms_fast.models import GaussianMixture1D
from gms_fast.plan import plan
from gms_fast.schedules import EDM, Flow, Levels, VPContinuousCosine, VPLinear
from gms_fast.solvers import DDIM, Euler, Heun

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (3, 4)
MEAN, STD = 0.3, 0.2
SCHEDULES = [EDM(), VPContinuousCosine(), Flow(0.98, 0.01), VPLinear()]
CHURN = [
    {"churn": 2.0},
    {"churn": 40.0, "s_noise": 1.003},
    {"churn": 3.0, "s_min": 0.05, "s_max": 5.0, "s_noise": 1.007},
]


def normals():
    return gms_fast.ops.philox_normal((40, *SHAPE), seed=2, dtype=torch.float64)


def levels(schedule, times):
    return (schedule.sigma(times) / schedule.alpha(times)).numpy()


def data(y, level):
    """Return E[x_0|y] of N(MEAN, STD^2) plus a sine that no data has, at y = x_0 + level eps."""
    return MEAN + (STD**2 * (y - MEAN)) / (STD**2 + level**2) + 0.1 * np.sin(3 * y / (1 + level))


def network(schedule):
    """The same estimate as a function of x and the network's time."""

    def estimate(x, t):
        at = schedule.from_network_time(t[0])
        alpha, sigma = float(schedule.alpha(at)), float(schedule.sigma(at))
        return torch.from_numpy(data((x / alpha).numpy(), sigma / alpha))

    return Model(estimate, prediction="x0", schedule=schedule)


def algorithm_2(y, sigmas, rounded, draw, *, heun, churn, s_min=0.0, s_max=math.inf, s_noise=1.0):
    """Run the paper's loop over t = sigma/alpha down to 0, without raising its first level.

    draw(i): z of step i.
    """
    steps = len(sigmas) - 1
    for i in range(steps):
        t, following = sigmas[i], sigmas[i + 1]
        gamma = min(churn / steps, math.sqrt(2) - 1) if i > 0 and s_min <= t <= s_max else 0.0
        raised = rounded(t + gamma * t) if gamma else t
        y = y + math.sqrt(raised**2 - t**2) * s_noise * draw(i)
        slope = (y - data(y, raised)) / raised
        end = y + (following - raised) * slope
        if heun and following > 0:
            end = y + (following - raised) * (slope / 2 + (end - data(end, following)) / following / 2)
        y = end
    return y


def rounding(schedule):
    """EDM's `round_sigma`: the level of the nearest whole time, if a schedule has only such."""
    if not isinstance(schedule, VPLinear):
        return lambda level: min(level, float(levels(schedule, schedule.t_max)))
    return lambda level: float(levels(schedule, float(schedule.inverse_log_snr(-math.log(level)).round())))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("options", CHURN, ids=str)
@pytest.mark.parametrize("heun", [False, True])
def test_paper_s_loop(schedule, options, heun):
    """Compare with the paper's loop on the same normals.

    The tolerance is 1e-12 of the largest y: float64's rounding in 12 steps, including times from log sigma.
    """
    solver, steps = (Heun if heun else Euler)(**options), 12
    times, z = solver.times(schedule, steps), normals()
    x_T = float(schedule.sigma(times[0])) * z[-1]
    got = gms_fast.sample(network(schedule), steps, solver=solver, x_T=x_T, noise=lambda i: z[i], clip=None)
    sigmas = levels(schedule, list(dict.fromkeys(times)))
    sigmas = sigmas if sigmas[-1] == 0 else np.append(sigmas, 0.0)
    alpha = float(schedule.alpha(times[0]))
    place = (lambda i: 2 * i - 1) if heun else (lambda i: i - 1)  # of the call that the noise follows
    want = algorithm_2(
        (x_T / alpha).numpy(), sigmas, rounding(schedule), lambda i: z[place(i)].numpy(), heun=heun, **options
    )
    assert np.abs(got.numpy() - want).max() < 1e-12 * float(x_T.abs().max()) / alpha
    still = gms_fast.sample(network(schedule), steps, solver=type(solver)(), x_T=x_T, clip=None)
    assert float((got - still).abs().max()) > 1e-3


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_without_churn_euler_is_ddim(schedule):
    times = Euler().times(schedule, 6)
    assert times == list(dict.fromkeys(Heun().times(schedule, 6)))
    assert Euler(s_max=3.0).plan(schedule, times) == [
        (pytest.approx(weights, rel=1e-12), 0.0) for weights, _ in DDIM().plan(schedule, times)
    ]


def test_network_is_asked_at_the_raised_times():
    """Check that sigma is raised by 1 + min(churn/K, sqrt 2 - 1) between the bounds.

    The first time is not raised, and no time exceeds t_max.
    """
    visited, options = [50.0, 10.0, 3.0, 1.0, 0.0], {"schedule": EDM(), "timesteps": [50.0, 10.0, 3.0, 1.0, 0.0]}
    assert Stepper(Euler(churn=1.0), **options).timesteps == pytest.approx([50.0, 12.5, 3.75, 1.25])
    assert Stepper(Euler(churn=9.0, s_min=3.0), **options).timesteps == pytest.approx([50, 200**0.5, 18**0.5, 1.0])
    assert Stepper(Heun(churn=1.0), **options).timesteps == pytest.approx([50, 10, 12.5, 3, 3.75, 1, 1.25])
    near = Stepper(Euler(churn=1.0), EDM(), timesteps=[80.0, 75.0, 2.0, 1.0, 0.0])
    assert near.timesteps == pytest.approx([80.0, 80.0, 2.5, 1.25])
    assert Euler(churn=1.0).times(EDM(), visited) == visited
    for schedule in (VPLinear(), Levels(*(f(range(200)).flip(0) for f in (VPLinear().alpha, VPLinear().sigma)))):
        asked = Stepper(Heun(churn=4.0), schedule, steps=8).timesteps
        assert all(t == round(t) for t in asked)
        assert any(s > t for t, s in pairwise(asked))
    last = Stepper(Euler(churn=3.0), VPLinear(), timesteps=[900, 400, 100])
    assert last.timesteps[-1] > 100
    assert Stepper(Euler(churn=3.0), VPLinear(), timesteps=[900, 400, 100], denoise=False).plan.last.t == 100


@pytest.mark.parametrize("solver", [Euler(churn=3.0), Heun(churn=3.0)], ids=["euler", "heun"])
@pytest.mark.parametrize("schedule", [EDM(), VPLinear(), Flow()], ids=repr)
def test_walk_begins_at_any_index(solver, schedule):
    """Compare a whole run with one that begins in its middle, from its state.

    Where Heun would correct, x stays except for its noise.
    """
    z, model = normals(), network(schedule)
    stepper = Stepper(solver, schedule, steps=5, prediction="x0")
    ask = lambda x, i: model(x, torch.full((3,), stepper.network_times[i], dtype=torch.float64))  # noqa: E731
    if isinstance(schedule, Flow):
        ask = lambda x, i: 0.3 * x  # noqa: E731
    states = [float(schedule.sigma(stepper.timesteps[0])) * z[-1]]
    for i in range(len(stepper.timesteps)):
        states.append(stepper.step(i, ask(states[i], i), states[i], noise=z[i]))
    for first in range(1, len(stepper.timesteps)):
        x = states[first]
        begun = stepper.step(first, ask(x, first), x, noise=z[first])
        if corrects(stepper, first):
            t, s = stepper.timesteps[first], stepper.timesteps[first + 1]
            (alpha, raised), (sigma, sigma_s) = (f([t, s]).tolist() for f in (schedule.alpha, schedule.sigma))
            std = math.sqrt(max(sigma_s**2 - (raised / alpha * sigma) ** 2, 0.0))
            torch.testing.assert_close(begun, raised / alpha * x + std * z[first], rtol=0, atol=1e-10)
        else:
            torch.testing.assert_close(begun, states[first + 1], rtol=0, atol=1e-12)
        stepper.step(0, ask(states[0], 0), states[0], noise=z[0])  # elsewhere, so that the next walk is a new one


def corrects(stepper, i):
    numbers = stepper.plan.asked[i].numbers
    return numbers is not None and len(numbers[0]) > 2


@pytest.mark.parametrize("schedule", [EDM(), VPLinear()], ids=repr)
def test_law_of_gaussian_data_is_kept(schedule):
    """Check that Heun keeps the law to 1/2 %, and that Euler's error halves with the steps.

    The margin is 4 standard errors of 65,536 numbers.
    """
    model = GaussianMixture1D([1.0], [MEAN], [STD], sample_shape=(64, 64), schedule=schedule)
    chance = 4 / math.sqrt(2 * 65536)

    def error(solver, steps):
        x = gms_fast.sample(model, steps, solver=solver, n=16, clip=None)
        assert float(x.mean()) == pytest.approx(MEAN, abs=4 * STD / 256)
        return float(x.std()) / STD - 1

    assert abs(error("heun:churn=20", 100)) < 0.005 + chance
    assert error("euler:churn=20", 200) == pytest.approx(error("euler:churn=20", 100) / 2, abs=1.5 * chance)


def test_jump_before_it_raises_no_landing():
    known = gms_fast.statistics.gaussian(torch.linspace(-1, 1, 40 * 4).reshape(40, 4) ** 3, rank=3)
    solver = solvers.Teleport(known, until=5.0, then=Heun(churn=3.0))
    made = plan(VPLinear(), None, 6, None, solver)
    times = solver.times(VPLinear(), 6)
    asked = [step.t for step in (*made.steps, made.last)]
    assert asked[:2] == times[:2]
    assert asked[1:] == Heun(churn=3.0).asked(VPLinear(), times[1:])
    assert asked != times


def test_with_churn_it_is_no_table():
    solvers.GGDMTable.of(Euler(), VPLinear(), [999, 500, 100])
    with pytest.raises(TypeError, match="solver must be linear"):
        solvers.GGDMTable.of(Euler(churn=1.0), VPLinear(), [999, 500, 100])


@pytest.mark.parametrize("kind", [Euler, Heun])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"churn": -1.0}, "churn must be a non-negative number: got -1.0"),
        ({"churn": math.inf}, "churn must be a non-negative number: got inf"),
        ({"s_noise": True}, "s_noise must be a non-negative number: got True"),
        ({"s_min": math.nan}, "s_min must be a non-negative number: got nan"),
        ({"s_min": 2.0, "s_max": 1.0}, "s_max must not be below s_min = 2: got 1"),
    ],
)
def test_options_are_checked(kind, options, message):
    with pytest.raises(ValueError, match=message):
        kind(**options)


def test_options_are_read_from_text():
    assert solvers.build("heun:churn=40,s_min=0.05,s_max=50,s_noise=1.003") == Heun(
        churn=40, s_min=0.05, s_max=50, s_noise=1.003
    )
