"""DPM-Solver++ against diffusers, k-diffusion, closed forms and other solvers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

import gms_fast
from gms_fast.models import GaussianMixture1D
from gms_fast.schedules import EDM, Flow, VPLinear
from gms_fast.solvers import DDIM, DPMSolverPP

MODEL = GaussianMixture1D([0.3, 0.7], [-1.0, 0.6], [0.25, 0.15], sample_shape=(4, 4))
TIMES = [999, 899, 749, 601, 433, 266, 100, 0]


def start(n=3, scale=1.0):
    noise = torch.randn(n, 4, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return scale * noise


def noises(steps):
    return torch.randn(steps, 3, 4, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def of_diffusers(times, x, draws, **options):
    """Return the sample of diffusers' scheduler, in float32, on the same times.

    Its own alphas carry 10^-5 of rounding.
    """
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=1e-4, beta_end=0.02, **options)
    scheduler.alphas_cumprod = VPLinear().alpha(torch.arange(1000)) ** 2
    scheduler.set_timesteps(timesteps=times)
    for i, t in enumerate(scheduler.timesteps):
        m = data_mean(x.double(), torch.full((len(x),), float(t), dtype=torch.float64))
        x = scheduler.step(m.float(), t, x, variance_noise=draws[i].float()).prev_sample
    return x


def data_mean(x, t):
    return MODEL.data_moments(x, t, 1)[0]


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("steps", [None, 4, 20])
def test_equals_diffusers(order, sde, steps):
    times = TIMES if steps is None else VPLinear().timesteps(steps)
    draws = noises(len(times))
    algorithm = "sde-dpmsolver++" if sde else "dpmsolver++"
    want = of_diffusers(
        times, start().float(), draws, solver_order=order, algorithm_type=algorithm, prediction_type="sample"
    )
    got = gms_fast.sample(
        data_mean, solver=DPMSolverPP(order=order, sde=sde), schedule=VPLinear(), timesteps=times, prediction="x0",
        x_T=start(), noise=lambda i: draws[i], clip=None,
    )  # fmt: skip
    torch.testing.assert_close(got.float(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_equals_diffusers_that_stops_at_the_last_time(order):
    want = of_diffusers(
        TIMES[:-1], start().float(), noises(len(TIMES)), solver_order=order, prediction_type="sample",
        final_sigmas_type="sigma_min",
    )  # fmt: skip
    calls = []
    got = gms_fast.sample(
        lambda x, t: calls.append(t) or data_mean(x, t), solver=DPMSolverPP(order=order, denoise=False),
        prediction="x0", schedule=VPLinear(), timesteps=TIMES, x_T=start(), clip=None,
    )  # fmt: skip
    torch.testing.assert_close(got.float(), want, rtol=1e-5, atol=1e-5)
    assert len(calls) == len(TIMES) - 1


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), Flow(0.99, 0.01), Flow()], ids=repr)
def test_first_order_is_ddim(schedule):
    model = GaussianMixture1D([0.3, 0.7], [-1.0, 0.6], [0.25, 0.15], sample_shape=(4, 4), schedule=schedule)
    if isinstance(schedule, Flow):
        model = of_flow(model)
    x_T = start(scale=float(schedule.sigma(schedule.t_max)))
    arguments = {"steps": 6, "schedule": schedule, "x_T": x_T, "clip": None, "prediction": model_form(model)}
    got = gms_fast.sample(model, solver=DPMSolverPP(order=1), **arguments)
    assert got.isfinite().all()
    torch.testing.assert_close(got, gms_fast.sample(model, solver=DDIM(), **arguments), rtol=0, atol=1e-12)


def of_flow(model):
    """Return a model's velocity eps - x_0, finite at t = 1 too, where x_0 is the data's mean."""

    def flow(x, t):
        if float(t[0]) == 1:
            return x - 0.12
        alpha = (1 - t).view(-1, 1, 1)
        e = model(x, t).e1
        return e - (x - (1 - alpha) * e) / alpha

    return flow


def model_form(model):
    return "noise" if isinstance(model, GaussianMixture1D) else "flow"


@pytest.mark.parametrize(("order", "slope"), [(1, 1), (2, 2), (3, 2)])
def test_order_of_convergence(order, slope):
    """Measure the orders; with half of the second difference, order 3 converges like 2."""
    schedule = EDM()
    model = GaussianMixture1D([0.3, 0.7], [-1.0, 0.6], [0.25, 0.15], sample_shape=(3,), schedule=schedule)
    x_T = torch.tensor([[7.0, -3.0, 1.5]], dtype=torch.float64)

    def end(steps):
        times = torch.logspace(1, math.log10(0.05), steps + 1, dtype=torch.float64).tolist()
        states = []
        gms_fast.sample(
            model, solver=DPMSolverPP(order=order, lower_order_final=False), timesteps=[*times, 0.0], schedule=schedule,
            x_T=x_T, clip=None, callback=lambda i, t, x, x0: states.append(x),
        )  # fmt: skip
        return states[-1]  # at 0.05

    want = torch.tensor([[0.66009896, 0.40706985, 0.54494956]], dtype=torch.float64)
    errors = [float((end(steps) - want).abs().max()) for steps in (80, 320)]
    assert errors[1] < 1e-3
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(slope, abs=0.25)


def test_noise_of_gaussian_data_has_the_right_size():
    """Run the reverse SDE on N(0.3, 0.5^2): the final law tends to the data's, as 1/K or faster."""
    model = GaussianMixture1D([1.0], [0.3], [0.5], sample_shape=(64, 64))
    solvers = {DPMSolverPP(order=1, sde=True): 0.025, DPMSolverPP(sde=True): 0.005, DPMSolverPP(order=3): 0.005}
    for solver, error in solvers.items():
        x = gms_fast.sample(model, 200, solver=solver, n=16, clip=None)
        assert float(x.mean()) == pytest.approx(0.3, abs=0.005)
        assert float(x.std()) == pytest.approx(0.5, abs=error + 4 * 0.5 / math.sqrt(2 * x.numel()))


def test_few_calls_end_with_lower_orders():
    def orders(steps, **options):
        plan = DPMSolverPP(order=3, **options).plan(VPLinear(), VPLinear().timesteps(steps))
        return [len(weights) - 1 for weights, _ in plan]

    assert orders(6) == [1, 2, 3, 3, 3, 2]  # and the call that removes the last noise, of order 1
    assert orders(6, lower_order_final=False) == [1, 2, 3, 3, 3, 3]
    assert orders(14) == [1, 2] + 12 * [3]  # 15 calls
    assert orders(13)[-1] == 2
    edm = DPMSolverPP(order=3).plan(EDM(), EDM().timesteps(6))
    assert [len(weights) - 1 for weights, _ in edm] == [1, 2, 3, 3, 2, 1]
    assert edm[-1] == ([0.0, 1.0], 0.0)


@pytest.mark.parametrize("order", [0, 4, 1.5, True])
def test_order_is_checked(order):
    with pytest.raises(ValueError, match=f"order must be one of 1, 2, 3: got {order!r}"):
        DPMSolverPP(order=order)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sde": -0.1}, "sde must be True, False or a non-negative number: got -0.1"),
        ({"sde": math.inf}, "sde must be True, False or a non-negative number: got inf"),
        ({"sde": "much"}, "sde must be True, False or a non-negative number: got 'much'"),
        ({"kind": "euler"}, "kind must be one of midpoint, heun, k-diffusion: got 'euler'"),
        ({"order": 3, "sde": 0.5}, "kind must be .k-diffusion. for order 3 with sde = 0.5: got 'midpoint'"),
    ],
)
def test_noise_and_kind_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        DPMSolverPP(**options)


# --- the samplers of k-diffusion, of x = x_0 + sigma eps -----------------------------------------------------------

LEVELS = [80.0, 31.0, 14.0, 6.0, 2.5, 1.1, 0.4, 0.1, 0.02, 0.0]


def of_k_diffusion(order, eta, middle, x, draws):
    """Run k-diffusion's samplers, written as integrals of a polynomial.

    For each step h in -log(sigma), the polynomial c_0 + c_1 u + c_2 u^2 runs through the last data estimates, with u in
    steps of h from here. c_0 has weight 1 - e^{-z}, z = (1 + eta) h; the others have the part of their integral that
    those samplers take.
    """
    past = []
    for i, (here, there) in enumerate(pairwise(LEVELS)):
        m = denoised(torch.from_numpy(x), here).numpy()
        if there == 0:
            return m
        past = [(math.log(here), m), *past][:order]
        h = math.log(here / there)
        z = (1 + eta) * h
        u = np.array([(past[0][0] - level) / h for level, _ in past])
        values = np.stack([m.ravel() for _, m in past])
        c = np.linalg.solve(u[:, None] ** np.arange(len(u)), values)
        one = 1 - math.exp(-z)
        two = one / 2 if middle and len(u) == 2 else 1 - one / z
        parts = [one, two, 0.5 - (1 - one / z) / z]
        x = math.exp(-z) * x + (np.array(parts[: len(u)]) @ c).reshape(x.shape)
        x = x + there * math.sqrt(1 - math.exp(-2 * eta * h)) * draws[i]
    raise AssertionError


def denoised(x, sigma):
    """Return E[x_0|x] at a noise level of `EDM`."""
    model = GaussianMixture1D([0.3, 0.7], [-1.0, 0.6], [0.25, 0.15], sample_shape=(4, 4), schedule=EDM())
    return model.data_moments(x, EDM().network_time(torch.full((len(x),), sigma, dtype=torch.float64)), 1)[0]


@pytest.mark.parametrize("eta", [0, 0.3, 1, 1.7])
@pytest.mark.parametrize(
    ("order", "kind"), [(1, "midpoint"), (2, "midpoint"), (2, "heun"), (2, "k-diffusion"), (3, "k-diffusion")]
)
def test_equals_k_diffusion(order, kind, eta):
    """Compare within 1e-12 of x_T's 80 times 4, the float64 rounding of either side."""
    draws, x_T = noises(len(LEVELS)), start(scale=80.0)
    want = of_k_diffusion(order, eta, kind == "midpoint", x_T.numpy(), draws.numpy())
    got = gms_fast.sample(
        lambda x, t: denoised(x, float(EDM().from_network_time(t[0]))), timesteps=LEVELS, schedule=EDM(),
        solver=DPMSolverPP(order=order, sde=eta, kind=kind, lower_order_final=False), prediction="x0", x_T=x_T,
        noise=lambda i: draws[i], clip=None,
    )  # fmt: skip
    np.testing.assert_allclose(got.numpy(), want, rtol=0, atol=3e-10)


def test_no_noise_is_the_probability_flow_and_one_is_the_reverse_sde():
    times = VPLinear().timesteps(8)
    for order, kind in ((1, "heun"), (2, "midpoint"), (2, "heun"), (3, "heun")):
        for flag, number in ((False, 0.0), (True, 1.0)):
            of_flag, of_number = (DPMSolverPP(order=order, sde=sde, kind=kind) for sde in (flag, number))
            assert of_flag.plan(VPLinear(), times) == of_number.plan(VPLinear(), times)
    for order in (2, 3):
        flow = [DPMSolverPP(order=order, kind=kind).plan(VPLinear(), times) for kind in ("heun", "k-diffusion")]
        assert flow[0] == flow[1]


@pytest.mark.parametrize("sde", [0.5, 1, 2])
def test_noisy_third_order_of_k_diffusion_keeps_the_law_of_a_gaussian(sde):
    """Check the width after 200 steps, where the kind "heun" ends 14 % too wide.

    The margin is 0.005 plus 4 standard errors of 65,536 numbers.
    """
    model = GaussianMixture1D([1.0], [0.3], [0.5], sample_shape=(64, 64))
    x = gms_fast.sample(model, 200, solver=DPMSolverPP(order=3, sde=sde, kind="k-diffusion"), n=16, clip=None)
    assert float(x.std()) == pytest.approx(0.5, abs=0.005 + 4 * 0.5 / math.sqrt(2 * x.numel()))
