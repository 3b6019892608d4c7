"""All prediction types agree on every schedule, and every solver runs on every schedule."""

import math

import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments, solvers
from gms_fast import prediction as predictions
from gms_fast.estimate import estimate
from gms_fast.models import GaussianMixture1D
from gms_fast.prediction import Meaning
from gms_fast.schedules import EDM, Flow, VPContinuous, VPContinuousCosine, VPCosine, VPLinear
from gms_fast.steps import StepCoefficients

SCHEDULES = [VPLinear(), VPCosine(), VPContinuous(), VPContinuousCosine(), EDM(), Flow(0.99, 0.01)]
X0 = torch.linspace(-1, 1, 12, dtype=torch.float64).view(3, 4)
EPS = torch.linspace(2, -1.5, 12, dtype=torch.float64).view(3, 4).sin()


def output(form, alpha, sigma):
    """Return the output of a network of that form for x_0 and eps."""
    if form == "edm":  # Karras et al. 2022, eq. 7, for x/alpha at noise level sigma/alpha
        r = sigma / alpha
        skip, out = 0.25 / (r**2 + 0.25), r * 0.5 / math.sqrt(r**2 + 0.25)
        return (X0 - skip * (X0 + r * EPS)) / out
    return {"noise": EPS, "x0": X0, "v": alpha * EPS - sigma * X0, "flow": EPS - X0}[form]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("form", predictions.names())
def test_forms_agree(form, schedule):
    for t in schedule.timesteps(5)[:5]:
        step = StepCoefficients.at(schedule, t)
        x = step.alpha_t * X0 + step.sigma_t * EPS
        found = estimate(output(form, step.alpha_t, step.sigma_t), x, Meaning(form, step))
        level = step.sigma_t / step.alpha_t
        torch.testing.assert_close(found.moments.e1, EPS, rtol=0, atol=1e-15 * (8 + 8 / level))
        assert found.moments[1:] == (None, None)
        for grad in (False, True):  # by a kernel, and by plain torch
            with torch.set_grad_enabled(grad):
                torch.testing.assert_close(found.x0(), X0, rtol=0, atol=1e-15 * (8 + 8 * level))


@pytest.mark.parametrize("form", predictions.names())
@pytest.mark.parametrize("grad", [False, True])
def test_data_are_clipped_to_their_range(form, grad):
    step = StepCoefficients.at(VPLinear(), 300)
    x = step.alpha_t * X0 + step.sigma_t * EPS
    found = estimate(output(form, step.alpha_t, step.sigma_t), x, Meaning(form, step, clip=(-0.4, 0.3)))
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(found.x0(), X0.clamp(-0.4, 0.3), rtol=0, atol=1e-14)


def test_velocity_tells_the_data_where_no_signal_is_left():
    step = StepCoefficients.at(Flow(), 1.0)
    found = estimate(EPS - X0, EPS, Meaning("flow", step))
    torch.testing.assert_close(found.x0(), X0, rtol=0, atol=1e-15)
    assert torch.equal(found.moments.e1, EPS)


@pytest.mark.parametrize("output", [EPS, NoiseMoments(EPS, EPS, EPS)])
def test_noise_that_tells_nothing_of_the_data_is_refused(output):
    found = estimate(output, EPS, Meaning("noise", StepCoefficients.at(Flow(), 1.0)))
    wanted = "model must return one tensor, a prediction of x0, v, flow, at alpha = 0"
    with torch.no_grad(), pytest.raises(ValueError, match=wanted):
        found.x0()


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("solver", solvers.names())
def test_every_solver_runs_on_every_schedule(solver, schedule):
    """Most samples of every solver after 30 steps lie at one of two narrow, distant bumps."""
    model = GaussianMixture1D([0.5, 0.5], [-0.6, 0.6], [0.05, 0.05], schedule=schedule)
    x = gms_fast.sample(model, 30, solver=solver, n=400, dtype=torch.float64)
    assert x.isfinite().all()
    assert float(((x.abs() - 0.6).abs() < 0.25).double().mean()) > 0.85
    assert abs(float((x > 0).double().mean()) - 0.5) < 4 * 0.5 / 20


@pytest.mark.parametrize("solver", ["gms", "ddpm", "sn-ddpm"])
def test_noise_moments_need_a_signal(solver):
    with pytest.raises(ValueError, match=r"timesteps must start where alpha > 0 .*Flow\(t_max=0.999\)") as refused:
        gms_fast.sample(pytest.fail, 4, solver=solver, schedule=Flow(), shape=(2,))
    assert ('without moment heads needs another solver in any case, such as solver="er-sde"' in str(refused.value)) == (
        solver != "ddpm"  # which needs no heads
    )


@pytest.mark.parametrize("form", ["noise", "edm"])
def test_forms_that_divide_by_the_signal_need_one(form):
    with pytest.raises(
        ValueError, match=f"prediction must be one of x0, v, flow where timesteps start at alpha = 0.*'{form}'"
    ):
        gms_fast.sample(pytest.fail, 4, solver="er-sde", schedule=Flow(), shape=(2,), prediction=form)


@pytest.mark.parametrize("solver", ["ddim", "dpm-solver++", "er-sde"])
def test_flow_from_pure_noise_to_data(solver):
    """Flow from t = 1 to 0 with the velocity of N(0.2, 0.3^2) data.

    There is no evaluation at the end, where no noise is left.
    """
    calls = []

    def model(x, t):
        calls.append(float(t[0]))
        t = t[:, None]
        spread = (0.3 * (1 - t)) ** 2 + t**2
        e = t * (x - (1 - t) * 0.2) / spread
        m = (t**2 * 0.2 + (1 - t) * 0.09 * x) / spread
        return e - m

    x = gms_fast.sample(
        model, 40, solver=solver, schedule=Flow(), prediction="flow", n=4000, shape=(1,), clip=None, dtype=torch.float64
    )
    assert len(calls) == 40
    assert calls[0] == 1
    assert float(x.mean()) == pytest.approx(0.2, abs=4 * 0.3 / math.sqrt(4000) + 0.005)
    assert float(x.std()) == pytest.approx(0.3, abs=0.03)
