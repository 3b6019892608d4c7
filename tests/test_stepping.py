"""Single steps: the bits of `sample`, a start at any index, and errors."""

import itertools

import pytest
import torch
from toys import polynomial

import gms_fast
from gms_fast import NoiseMoments, Stepper, schedules, solvers, statistics
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE, DRAW = (3, 1, 4, 4), {"n": 3, "shape": (1, 4, 4)}
GAUSSIAN = statistics.gaussian(torch.linspace(-1, 1, 40 * 16).reshape(40, 1, 4, 4) ** 3, rank=3)
CURVES = [torch.full((61, 1, 4, 4), value, dtype=torch.float64) for value in (0.8, 0.05, 0.02)]
KNOWN = statistics.EmpiricalModel(
    VPLinear(), torch.linspace(*VPLinear().log_snr([999, 0]).tolist(), 61, dtype=torch.float64), *CURVES
)
TABLE = solvers.GGDMTable.of(solvers.UniP(), VPLinear(), VPLinear().timesteps(5, 0.7)[:-1])
SOLVERS = {
    **{name: solvers.build(name) for name in solvers.names()},
    "gms adan": solvers.GMS(fit="adan", iterations=3),
    "gms with covariance": solvers.GMS(covariance=GAUSSIAN, switch=3),
    "ddim eta": solvers.DDIM(eta=0.5),
    "er-sde 2": solvers.ERSDE(order=2),
    "dpm-solver++ sde": solvers.DPMSolverPP(sde=True),
    "dpm-solver-v3": solvers.DPMSolverV3(KNOWN),
    "ggdm": solvers.GGDM(TABLE),
    "teleport": solvers.Teleport(GAUSSIAN, until=5.0, then=solvers.ERSDE()),
    "teleport gms": solvers.Teleport(GAUSSIAN, until=5.0, then=solvers.GMS()),
}
SCHEDULES = {"linear": VPLinear(), "edm": schedules.EDM(), "flow": schedules.Flow(t_max=0.98)}
EVERYWHERE = [name for name in SOLVERS if name not in ("dpm-solver-v3", "ggdm")]
CASES = [*itertools.product(SOLVERS, ["linear"]), *itertools.product(EVERYWHERE, ["edm", "flow"])]


def walked(stepper, x, first=0, **options):
    """Return the sample of a run from x at an index."""
    for i in range(first, len(stepper.timesteps)):
        x = stepper.step(i, polynomial(x, None), x, **options)
    return x


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_walk_gives_the_bits_of_sample(name, kind):
    solver, schedule = SOLVERS[name], SCHEDULES[kind]
    options = {"seed": 5, "sample_offset": 2}
    want = gms_fast.sample(polynomial, 5, solver=solver, schedule=schedule, clip=(-1, 1), **DRAW, **options)
    stepper = Stepper(solver, schedule, steps=5, clip=(-1, 1), **options)
    assert torch.equal(walked(stepper, stepper.initial(SHAPE)), want)
    assert torch.equal(walked(stepper, stepper.initial(SHAPE)), want)  # a second run of the same stepper


@pytest.mark.parametrize("name", [name for name in SOLVERS if name not in ("ggdm", "gms with covariance")])
@pytest.mark.parametrize("first", [1, 3])
def test_walk_from_an_index_is_a_run_from_that_state(name, first):
    """The noise of a second stage follows the noise level, so it differs from the first's."""
    solver, x = SOLVERS[name], gms_fast.ops.philox_normal(SHAPE, seed=1)
    stepper = Stepper(solver, VPLinear(), steps=5, seed=3, clip=(-1, 1))
    then = solver.then if name.startswith("teleport") else solver
    times = [*stepper.timesteps, stepper.plan.last.t] if not stepper.plan.denoise else stepper.timesteps
    options = {"timesteps": times[first:], "x_T": x, "seed": 3, "clip": (-1, 1)}
    want = gms_fast.sample(polynomial, solver=then, schedule=VPLinear(), **options)
    assert torch.equal(walked(stepper, x, first), want)
    walked(stepper, stepper.initial(SHAPE))
    assert torch.equal(walked(stepper, x, first), want)  # the earlier history is dropped


def test_given_state_at_the_first_time_is_that_of_sample():
    x, times = gms_fast.ops.philox_normal(SHAPE, seed=1), (800, 300, 20)
    for name, start in itertools.product(("gms", "er-sde"), (times, (999, *times))):
        want = gms_fast.sample(polynomial, solver=name, timesteps=start, x_T=x, schedule="linear", clip=(-1, 1))
        assert torch.equal(walked(Stepper(name, "linear", timesteps=start, clip=(-1, 1)), x), want)


def test_one_time_is_one_call():
    x = gms_fast.ops.philox_normal(SHAPE, seed=1)
    for name in ("gms", "er-sde", "dpm-solver++"):
        stepper = Stepper(name, VPLinear(), timesteps=[300])
        assert stepper.timesteps == [300]
        want = gms_fast.sample(polynomial, solver=name, schedule=VPLinear(), timesteps=[300], x_T=x, clip=None)
        assert torch.equal(walked(stepper, x), want)
        assert torch.equal(stepper.x0(0, polynomial(x, None), x), want)


def test_repeated_noise_levels_are_skipped():
    given, kept = [900, 900, 500, 500, 500, 100], [900, 500, 100]
    for name in ("gms", "unip"):
        repeated, plain = (Stepper(name, "linear", timesteps=times) for times in (given, kept))
        assert repeated.timesteps == kept
        assert repeated.plan == plain.plan


class Tenths(schedules.Flow):
    """Schedule with different times of one noise level."""

    def alpha(self, t):
        return 1 - self.sigma(t)

    def sigma(self, t):
        return (10 * super().sigma(t)).round() / 10


def test_different_times_of_one_level_are_one_step():
    stepper = Stepper("ddim", Tenths(), timesteps=[0.9, 0.52, 0.48, 0.1], denoise=False)
    assert stepper.timesteps == [0.9, 0.52]
    assert stepper.plan.last.t == 0.1


def test_network_is_asked_at_times_of_its_own():
    stepper = Stepper("ddim", schedules.EDM(), steps=4, denoise=False)
    assert stepper.timesteps == schedules.EDM().timesteps(4)[:-1]
    assert stepper.network_times == [float(schedules.EDM().network_time(t)) for t in stepper.timesteps]
    assert len(Stepper("ddim", schedules.EDM(), steps=4).timesteps) == 4  # the schedule ends without noise
    assert len(Stepper("ddim", VPLinear(), steps=4).timesteps) == 5


def test_given_noise_replaces_the_draws():
    z, u = gms_fast.ops.philox_normal(SHAPE, seed=8), gms_fast.ops.philox_uniform(SHAPE, seed=8)
    x = gms_fast.ops.philox_normal(SHAPE, seed=1)
    for name in ("gms", "ddpm", "er-sde"):
        stepper = Stepper(name, VPLinear(), steps=3, clip=(-1, 1))
        want = gms_fast.sample(
            polynomial, 3, solver=name, schedule=VPLinear(), x_T=x, noise=lambda _: (z, u), clip=(-1, 1)
        )
        assert torch.equal(walked(stepper, x, noise=(z, u)), want)


@pytest.mark.parametrize(("eta", "asked"), [(0.0, 0), (1.0, 3)])
def test_noise_may_be_a_function_that_only_a_draw_calls(eta, asked):
    x, z = (gms_fast.ops.philox_normal(SHAPE, seed=seed) for seed in (1, 2))
    given = []

    def noise():
        given.append(z)
        return z

    stepper = Stepper(solvers.DDIM(eta=eta), VPLinear(), steps=3)
    assert torch.equal(walked(stepper, x, noise=noise), walked(stepper, x, noise=z))
    assert len(given) == asked


def test_seeds_move_to_the_state():
    stepper = Stepper("ddpm", VPLinear(), steps=3, seed=torch.tensor([4, 5, 6]))
    assert torch.equal(
        walked(stepper, stepper.initial(SHAPE)),
        gms_fast.sample(polynomial, 3, solver="ddpm", schedule=VPLinear(), seed=[4, 5, 6], clip=None, **DRAW),
    )
    with pytest.raises(ValueError, match="one per sample, 2 of them"):
        stepper.initial((2, 1, 4, 4))


def test_one_tensor_is_taken_for_what_is_said():
    network = lambda x, t: 0.3 * x  # noqa: E731
    for form in ("x0", "v", "noise"):
        stepper = Stepper("ddim", VPLinear(), steps=4, prediction=form)
        x = stepper.initial(SHAPE)
        for i in range(len(stepper.timesteps)):
            x = stepper.step(i, network(x, None), x)
        options = {"solver": "ddim", "schedule": VPLinear(), "prediction": form, "clip": None}
        assert torch.equal(x, gms_fast.sample(network, 4, **DRAW, **options))


def test_teleport_needs_no_output_at_first():
    stepper = Stepper(SOLVERS["teleport"], VPLinear(), steps=4)
    x = stepper.initial(SHAPE)
    y = stepper.step(0, None, x)
    assert torch.equal(y, stepper.step(0, polynomial(x, None), x))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "steps or timesteps must be given"),
        ({"steps": 3, "timesteps": [3, 1]}, ValueError, "steps or timesteps must be given"),
        ({"steps": 0}, ValueError, "steps must be"),
        ({"steps": 3, "prediction": "noice"}, ValueError, "prediction must be one of"),
        ({"steps": 3, "clip": (1, -1)}, ValueError, "clip must be"),
        ({"steps": 3, "seed": 0.5}, TypeError, "seed must be"),
        ({"steps": 3, "denoise": 1.5}, TypeError, "denoise must be"),
        ({"timesteps": "ab"}, TypeError, "timesteps must be a sequence"),
    ],
)
def test_what_is_wrong_is_named(options, error, message):
    with pytest.raises(error, match=message):
        Stepper("gms", "linear", **options)


def test_steps_that_cannot_be_taken_are_named():
    stepper = Stepper("gms", "linear", steps=3)
    x = stepper.initial(SHAPE)
    with pytest.raises(ValueError, match=r"index must lie in \[0, 4\): got 4"):
        stepper.step(4, polynomial(x, None), x)
    with pytest.raises(ValueError, match="3 moments for GMS, but returns 1"):
        stepper.step(0, x, x)
    with pytest.raises(ValueError, match="3 moments for GMS, but returns 2"):
        stepper.step(0, NoiseMoments(x, x), x)
    with pytest.raises(ValueError, match="output must be shaped like x"):
        Stepper("ddim", "linear", steps=3).step(0, x[:1], x)


def test_noise_without_signal_is_refused():
    """A noise prediction contains no information about x_0 there; `sample` refuses it too."""
    schedule = schedules.VP(torch.linspace(1e-4, 1.0, 50))
    with pytest.raises(ValueError, match="prediction must be one of x0, v, flow where timesteps start at alpha = 0"):
        Stepper("ddim", schedule, steps=3)
    assert len(Stepper("ddim", schedule, steps=3, prediction="v").timesteps) == 4


def test_a_state_of_ones_own_is_taken_for_it_after_an_initial_one():
    x, times = gms_fast.ops.philox_normal(SHAPE, seed=1), (800, 300, 20)
    want = gms_fast.sample(polynomial, solver="gms", timesteps=times, x_T=x, schedule="linear", clip=(-1, 1))
    stepper = Stepper("gms", "linear", timesteps=times, clip=(-1, 1))
    walked(stepper, stepper.initial(SHAPE))
    assert torch.equal(walked(stepper, x), want)


@pytest.mark.parametrize("name", ["er-sde", "ddim eta", "gms", "gms with covariance"])
def test_given_noise_may_hold_one_uniform_a_sample_or_uniforms_alone(name):
    x, u = gms_fast.ops.philox_normal(SHAPE, seed=1), torch.tensor([0.1, 0.5, 0.9])
    for noise in ((gms_fast.ops.philox_normal(SHAPE, seed=8), u), (None, u)):
        stepper = Stepper(SOLVERS[name], VPLinear(), steps=3, clip=(-1, 1))
        options = {"solver": SOLVERS[name], "schedule": VPLinear(), "x_T": x, "clip": (-1, 1)}
        want = gms_fast.sample(polynomial, 3, noise=lambda _, noise=noise: noise, **options)
        assert torch.equal(walked(stepper, x, noise=noise), want)


def test_steps_ask_for_no_gradient():
    stepper, slope = Stepper("ddim", "linear", steps=2), torch.ones((), requires_grad=True)
    x = stepper.initial(SHAPE)
    for i in range(3):
        x = stepper.step(i, slope * x, x)
    assert not x.requires_grad


def test_bad_indices_and_states_are_named():
    with pytest.raises(ValueError, match="sample_offset must lie"):
        Stepper("ddim", "linear", steps=2, sample_offset=-1)
    stepper = Stepper("ddim", "linear", steps=2)
    with pytest.raises(TypeError, match="x must be a tensor"):
        stepper.step(0, torch.zeros(1), [1.0])
    with pytest.raises(ValueError, match="shape must be"):
        stepper.initial(())


@pytest.mark.parametrize("name", ["er-sde", "ddpm", "gms"])
def test_seeded_stepper_is_one_of_that_seed(name):
    stepper = Stepper(SOLVERS[name], VPLinear(), steps=4, seed=1)
    x = stepper.initial(SHAPE)
    other = stepper.seeded([7, 8, 9])
    assert torch.equal(walked(other, x), walked(Stepper(SOLVERS[name], VPLinear(), steps=4, seed=[7, 8, 9]), x))
    assert torch.equal(walked(stepper, x), walked(Stepper(SOLVERS[name], VPLinear(), steps=4, seed=1), x))
    assert other.plan is stepper.plan


def test_stepper_takes_another_solver_along_the_same_times():
    stepper = Stepper("ddim", VPLinear(), steps=4, denoise=True).by(solvers.DDIM(eta=1.0))
    own = Stepper("ddim:eta=1", VPLinear(), steps=4, denoise=True)
    x = own.initial(SHAPE)
    assert torch.equal(walked(stepper, x), walked(own, x))


@pytest.mark.parametrize("name", ["ddim", "dpm-solver++", "er-sde", "unipc", "dpm-solver-v3", "ggdm"])
def test_data_given_takes_the_place_of_the_networks(name):
    """Passing halved estimates equals a network of x_0 that returns them."""
    taken = Stepper(SOLVERS[name], VPLinear(), steps=5)
    said = Stepper(SOLVERS[name], VPLinear(), steps=5, prediction="x0")
    x = y = taken.initial(SHAPE)
    for i in range(len(taken.timesteps)):
        x, y = (
            taken.step(i, polynomial(x, None), x, x0=taken.x0(i, polynomial(x, None), x) / 2),
            said.step(i, taken.x0(i, polynomial(y, None), y) / 2, y),
        )
        assert torch.equal(x, y)


def test_data_given_must_fit():
    stepper, x = Stepper("ddim", VPLinear(), steps=5), torch.zeros(SHAPE)
    with pytest.raises(ValueError, match=r"x0 must be shaped like x, \(3, 1, 4, 4\): got \(1, 4, 4\)"):
        stepper.step(0, x, x, x0=x[0])
    with pytest.raises(ValueError, match="x0 must be None for GMS, which uses noise moments"):
        Stepper("gms", VPLinear(), steps=5).step(0, NoiseMoments(x, x, x), x, x0=x)
