"""Habits from other libraries: samples are right or refused, never silently wrong."""

import functools
import warnings

import numpy as np
import pytest
import torch
from strangers import ACCURATE, MEAN, STD, Exact, Moments, marginal, sample, std

import gms_fast
from gms_fast import ops, solvers
from gms_fast.plan import COUNTED
from gms_fast.schedules import VP, Flow, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("solver", ["sn-ddpm", "gms"])
@pytest.mark.parametrize("shape", [(3, 8, 8), (192,)])
@pytest.mark.parametrize("last", [300, 60, 20, 4])
def test_state_that_is_handed_on_keeps_its_noise(solver, shape, last):
    """These solvers are exact on Gaussian data; the noise of the last step does not matter here."""
    times = [*(t for t in (999, 800, 600, 450, 200, 90) if t > last), last]
    x = sample(Moments(sample_shape=shape), timesteps=times, solver=solver, denoise=False)
    assert std(x) == pytest.approx(marginal(last)[1], rel=ACCURATE)


def test_ddpm_hands_on_all_but_what_its_small_variance_lacks():
    x = sample(Moments(), timesteps=[999, 800, 600, 450, 300], solver="ddpm", denoise=False)
    assert std(x) == pytest.approx(marginal(300)[1], rel=0.01 + ACCURATE)


def test_flat_data_and_pictures_are_handed_on_alike():
    times = [999, 800, 600, 450, 300]
    for solver in ("ddpm", "gms"):
        a, b = (
            sample(Moments(sample_shape=shape), timesteps=times, solver=solver, denoise=False, n=4).flatten()
            for shape in ((3, 8, 8), (192,))
        )
        assert torch.equal(a, b)


def test_finished_pictures_are_still_bounded():
    for last in (0, 1):
        draw = functools.partial(sample, Moments(), timesteps=[999, 500, 200, last], denoise=False)
        free = draw(solver=solvers.GMS(clip_pixel=None))
        assert std(free) == pytest.approx(marginal(last)[1], rel=ACCURATE)
        assert std(draw(solver="gms")) < 0.9 * std(free)


def test_er_sde_takes_as_many_points_as_a_host():
    """Its sum is a left Riemann sum, so twice the points halve the error."""
    model = Exact(clip=None)
    draw = functools.partial(sample, model, timesteps=[999, 700, 400, 200, 50], n=8)
    exact = draw(solver=solvers.ERSDE(quadrature="exact", variance_clip=1e-6))
    errors = [float((draw(solver=solvers.ERSDE(points=points)) - exact).norm()) for points in (100, 200, 400)]
    assert errors[0] / errors[1] == pytest.approx(2, rel=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, rel=0.1)
    with pytest.raises(ValueError, match="points must be an integer of at least 1: got 0"):
        solvers.ERSDE(points=0)


# Crashes and unclear messages
def test_noise_without_uniforms():
    z = [ops.philox_normal((4, 3, 8, 8), seed=0, step=COUNTED + i) for i in range(6)]
    model = Moments()
    for solver in ("gms", solvers.GMS(fit="exact", component="sample"), "ddpm", "er-sde"):
        got = sample(model, 5, solver=solver, n=4, noise=lambda i: (z[i], None))
        assert torch.equal(got, sample(model, 5, solver=solver, n=4))


@pytest.mark.parametrize("seed", [np.int64(7), np.uint8(7), np.array(7)])
def test_numpy_seeds(seed):
    assert torch.equal(sample(Exact(), 3, n=2, seed=seed), sample(Exact(), 3, n=2, seed=7))
    several = np.array([3, 4])
    assert torch.equal(sample(Exact(), 3, n=2, seed=several), sample(Exact(), 3, n=2, seed=[3, 4]))


@pytest.mark.parametrize("solver", [*solvers.names(), "dpm-solver-v3", "teleport", "gms with covariance"])
def test_default_device_of_the_user(solver):
    """CPU numbers stay on the CPU: the default device `meta` would fail at once."""
    model = gms_fast.load("digits")
    gaussian = gms_fast.statistics.load_gaussian("digits")
    made = {
        "dpm-solver-v3": lambda: solvers.DPMSolverV3(gms_fast.statistics.load("digits"), trust=-2),
        "teleport": lambda: solvers.Teleport(gaussian, until=5, then=solvers.ERSDE()),
        "gms with covariance": lambda: solvers.GMS(covariance=gaussian),
    }
    build = made.get(solver, lambda: solver)
    want = sample(model, 4, n=2, solver=build())
    with torch.device("meta"):
        got = sample(model, 4, n=2, solver=build())
        x = sample(Exact(schedule=VPLinear()), 4, n=2, device="cpu", x_T=None) if solver == "ddim" else None
    assert torch.equal(got, want)
    assert x is None or x.device.type == "cpu"


def zero_terminal():
    betas = VPLinear().betas.clone()
    betas[-1] = 1
    return VP(betas)


@pytest.mark.parametrize("form", ["v", "x0"])
@pytest.mark.parametrize("solver", ["ddim", "ddpm", "dpm-solver++", "unip", "unipc", "er-sde", "euler", "heun"])
def test_zero_terminal_snr(form, solver):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        x = sample(Exact(schedule=zero_terminal(), form=form), 200, solver=solver, clip=None)
    assert float(x.mean()) == pytest.approx(MEAN, abs=0.01)
    assert std(x) == pytest.approx(STD, rel=0.1)


def test_zero_terminal_snr_is_refused_where_nothing_tells_the_data():
    with pytest.raises(ValueError, match="prediction must be one of x0, v, flow where timesteps start at alpha = 0"):
        sample(Exact(schedule=zero_terminal()), 5)
    for solver in ("gms", "sn-ddpm"):
        with pytest.raises(ValueError, match=f"timesteps must start where alpha > 0 for {'GMS|SNDDPM'}"):
            sample(Exact(schedule=zero_terminal(), form="v"), 5, solver=solver)


def test_nothing_is_warned_of_at_alpha_zero():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for solver in ("ddim", "dpm-solver++", "unip", "unipc", "er-sde", "ddpm", "euler", "heun:churn=2"):
            sample(Exact(schedule=Flow(), form="flow"), 5, n=2, solver=solver)


# Expectations of a sampler
def test_batch_size_changes_no_sample():
    model = Moments()
    for solver in ("gms", "ddpm", "dpm-solver++"):
        want = sample(model, 4, n=7, solver=solver)
        model.asked.clear()
        assert torch.equal(sample(model, 4, n=7, solver=solver, batch_size=3), want)
        assert len(model.asked) == 3 * 5


def test_condition_is_split_with_the_batch():
    seen = []

    def network(x, t, y, extra, flag):
        seen.append((len(x), len(y), len(extra["w"]), len(extra["one"]), flag))
        return y.view(-1, 1) * torch.ones_like(x)

    y = torch.arange(5.0) / 10
    condition = {"y": y, "extra": {"w": y, "one": torch.zeros(1, 9)}, "flag": "a"}
    options = {"schedule": "linear", "shape": (4,), "n": 5, "condition": condition, "clip": None}
    want = sample(network, 3, **options)
    assert torch.equal(sample(network, 3, batch_size=2, **options), want)
    assert set(seen) == {(5, 5, 5, 1, "a"), (2, 2, 2, 1, "a"), (1, 1, 1, 1, "a")}
    assert len(want[:, 0].unique()) == 5


def test_denoise_says_whether_the_last_noise_goes():
    model = Exact(clip=None)
    for solver in ("ddim", "er-sde", "dpm-solver++", solvers.Teleport(GAUSSIAN, 10, solvers.ERSDE())):
        model.asked.clear()
        left = sample(model, timesteps=[999, 600, 300, 100], solver=solver, denoise=False)
        assert model.asked[-1] == 300
        gone = sample(model, timesteps=[999, 600, 300, 100], solver=solver, denoise=True)
        assert model.asked[-1] == 100
        assert std(left) > std(gone)


GAUSSIAN = gms_fast.statistics.gaussian(
    0.3 + 0.2 * torch.randn(500, 3, 8, 8, generator=torch.Generator().manual_seed(0))
)


def test_callback_may_return_the_state():
    """The returned state replaces x in the step; the network's output stays."""
    seen = []

    def shifted(i, t, x, x_0):
        seen.append((x, x_0))
        return x + 1 if i == 1 else None

    model = Exact(clip=None)
    x = sample(model, timesteps=[999, 500, 100], callback=shifted, n=2, denoise=False)
    (x_1, _), k = seen[1], gms_fast.StepCoefficients.between(VPLinear(), 500, 100)
    e = model(x_1, torch.tensor([500.0]))
    moved = (x_1 + 1 - k.sigma_t * e) / k.alpha_t
    assert torch.allclose(x, k.alpha_s * moved + k.sigma_s * e, atol=1e-5)
    with pytest.raises(ValueError, match=r"callback must return a tensor like x, \(2, 3, 8, 8\): got \(2,\)"):
        sample(model, 3, n=2, callback=lambda i, t, x, x_0: torch.zeros(2))


def test_callback_may_end_the_run_and_it_is_continued():
    model = Moments()
    times = [999, 800, 600, 400, 200, 0]

    def until(last):
        def callback(i, t, x, x_0):
            if t == last:
                raise StopIteration

        return callback

    for solver in ("gms", "ddpm"):
        whole = sample(model, timesteps=times, solver=solver, n=4)
        state = sample(model, timesteps=times, solver=solver, n=4, callback=until(400))
        rest = sample(model, timesteps=times[3:], x_T=state, step_offset=3, solver=solver)
        assert torch.equal(rest, whole)
