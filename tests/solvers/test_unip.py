"""UniP: exact for polynomials in lambda, against diffusers and Adams-Bashforth."""

import json

import places
import pytest
import torch
from busy_tables import SCHEDULE, double
from toys import Model, Toy

import gms_fast
from gms_fast.schedules import VPContinuous
from gms_fast.solvers import DPMSolverPP, UniP

VECTORS = json.loads((places.VECTORS / "ggdm_vectors.json").read_text())


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
