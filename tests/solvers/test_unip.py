"""UniP and UniPC: exact for polynomials in lambda, and against diffusers and Adams.

tests/schedules/test_hosts.py has more of diffusers.
"""

import json
import math

import places
import pytest
import torch
from busy_tables import SCHEDULE, double
from toys import Model, Toy

import gms_fast
from gms_fast import Stepper
from gms_fast.models import GaussianMixture1D
from gms_fast.schedules import EDM, Flow, VPContinuous
from gms_fast.solvers import DPMSolverPP, UniP, UniPC

VECTORS = json.loads((places.VECTORS / "ggdm_vectors.json").read_text())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_unip_is_exact_for_polynomials_in_lambda(order):
    """Let x_0 be a polynomial of degree order - 1; compare the last full step with quadrature."""
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
    """UniP without lower orders at the end, whose `plan` counts one evaluation more."""

    def calls(self, schedule, times):
        return len(times) + 10


class HalfSecond(AlwaysFull):
    """UniP with the second step as in the released code."""

    def plan(self, schedule, times):
        plan = super().plan(schedule, times)
        plan[1] = DPMSolverPP(order=2, lower_order_final=False).plan(schedule, times)[1]
        return plan


def test_unip_of_small_steps_is_adams_bashforth():
    """Compare weights of order 4 with h (55, -59, 37, -9)/24, for steps of h in lambda.

    They agree to first order in h.
    """
    for h in (1e-2, 1e-4, 1e-6):
        lam = torch.arange(12) * h
        times = [float(t) for t in VPContinuous().inverse_log_snr(lam)]
        weights = UniP(order=4).plan(VPContinuous(), times)[5][0][1:]
        alpha = float(VPContinuous().alpha(times[6]))
        for got, adams in zip(weights, (55, -59, 37, -9), strict=True):
            assert got / alpha == pytest.approx(h * adams / 24, rel=10 * h + 1e-5)


def test_unip_converges_faster_than_the_second_order():
    """Compare with a fine grid of equal steps, on the exact network of two Gaussians."""
    model, x_T = Toy(VECTORS["toy"]), double(VECTORS["ddim_eta0"]["x_T"])

    def end(solver, steps):
        times = SCHEDULE.timesteps(steps, "log-snr")
        return gms_fast.sample(model, solver=solver, timesteps=times, x_T=x_T, clip=None)

    want = end(DPMSolverPP(order=3), 400)
    errors = {p: float((end(UniP(order=p), 40) - want).abs().max()) for p in (1, 2, 3)}
    assert errors[3] < errors[2] < errors[1]


# --- the corrector -------------------------------------------------------------------------------------------------

TIMES = [900, 700, 500, 350, 200, 100, 50, 10, 0]


def integral(data, t, s):
    """Return alpha_s int e^{-(h-u)} f over the step, for f of lambda, by trapezoids."""
    fine = torch.linspace(float(SCHEDULE.log_snr(t)), float(SCHEDULE.log_snr(s)), 20001, dtype=torch.float64)
    return float(SCHEDULE.alpha(s) * torch.trapezoid((fine - fine[-1]).exp() * data(fine), fine))


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [2, 3, 4])
def test_corrected_state_is_exact_for_one_degree_more(order, variant):
    """Let x_0 be a polynomial of degree `order`: the corrector removes the error of step i - 1."""
    data = lambda v: sum((k + 1) * (v / 4) ** k for k in range(order + 1))  # noqa: E731
    lam = SCHEDULE.log_snr(TIMES)
    i = 5
    corrected, alone = (
        UniPC(order=order, variant=variant, corrector=corrector).plan(SCHEDULE, TIMES)[i] for corrector in (True, False)
    )
    before = UniPC(order=order, variant=variant, corrector=False).plan(SCHEDULE, TIMES)[i - 1][0]
    m = [float(data(v)) for v in lam.tolist()]
    error = sum(w * m[i - 1 - j] for j, w in enumerate(before[1:])) - integral(data, TIMES[i - 1], TIMES[i])
    assert abs(error) > 1e-4
    kept = corrected[0][0]
    taken = sum(w * m[i - j] for j, w in enumerate(corrected[0][1:])) - sum(
        w * m[i - j] for j, w in enumerate(alone[0][1:])
    )
    assert kept == alone[0][0]
    assert taken == pytest.approx(-kept * error, abs=2e-8)  # of the trapezoids


@pytest.mark.parametrize("order", [1, 3, 4])
def test_without_its_corrector_it_is_unip_that_counts_the_last_call(order):
    """Compare with UniP, except steps of order 2, which are DPM-Solver++'s for "bh2"."""
    got = UniPC(order=order, corrector=False).plan(SCHEDULE, TIMES)
    want = UniP(order=order, lower_order_final=False).plan(SCHEDULE, TIMES)
    midpoint = DPMSolverPP(order=2, lower_order_final=False).plan(SCHEDULE, TIMES)
    for (weights, _), (of_unip, _), (second, _) in zip(got, want, midpoint, strict=True):
        assert weights == pytest.approx(second if len(weights) == 3 else of_unip, rel=1e-12)


def test_first_corrected_state_is_that_of_the_released_rule():
    """Check order 1: half of B times the change of the estimate, B = h or 1 - e^{-h}."""
    times = TIMES[:3]
    (alpha, kept), h = (float(SCHEDULE.alpha(700)), float(SCHEDULE.sigma(500) / SCHEDULE.sigma(700))), 0.0
    h = float(SCHEDULE.log_snr(700) - SCHEDULE.log_snr(900))
    for variant, whole in (("bh1", h), ("bh2", -math.expm1(-h))):
        with_it, without = (
            UniPC(order=1, variant=variant, corrector=c).plan(SCHEDULE, times)[1][0] for c in (True, False)
        )
        half = kept * alpha * whole / 2
        assert with_it == pytest.approx([without[0], without[1] + half, -half], rel=1e-12)


def test_correctors_are_left_out_one_by_one():
    whole, none = (UniPC(order=3, corrector=c).plan(SCHEDULE, TIMES) for c in (True, False))
    some = UniPC(order=3, disable_corrector=(0, 3)).plan(SCHEDULE, TIMES)
    for i, step in enumerate(some):
        assert step == (none if i - 1 in (0, 3) else whole)[i]
    assert UniPC(order=3, disable_corrector=tuple(range(20))).plan(SCHEDULE, TIMES) == none


@pytest.mark.parametrize(("order", "slope"), [(1, 2), (2, 3), (3, 4)])
def test_order_of_convergence(order, slope):
    """Check that the order, from 40 and 80 steps, is at least one more than the predictor's.

    That of order 3 still falls faster there.
    """
    schedule = EDM()
    model = GaussianMixture1D([1.0], [0.3], [0.2], sample_shape=(3,), schedule=schedule)
    x_T = torch.tensor([[7.0, -3.0, 1.5]], dtype=torch.float64)

    def error(steps):
        times = torch.logspace(1, -1, steps + 1, dtype=torch.float64).tolist()
        solver = UniPC(order=order, lower_order_final=False).ending(False)
        got = gms_fast.sample(model, solver=solver, timesteps=times, schedule=schedule, x_T=x_T, clip=None)
        want = 0.3 + (x_T - 0.3) * math.sqrt((0.2**2 + 0.1**2) / (0.2**2 + 10**2))
        return float((got - want).abs().max())

    assert math.log2(error(40) / error(80)) > slope - 0.1


def test_a_host_s_change_of_the_state_stays():
    """Check that an addition to x before a step reaches x_s times sigma_s/sigma_t.

    The corrector keeps no state of its own.
    """
    outputs = list(torch.randn(9, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64))

    def end(added):
        stepper, x = Stepper("unipc:order=3", SCHEDULE, timesteps=TIMES, prediction="x0"), outputs[0].clone()
        for i in range(8):
            x = stepper.step(i, outputs[i], x + added if i == 4 else x)
        return x

    want = 0.5 * float(SCHEDULE.sigma(0) / SCHEDULE.sigma(TIMES[4]))
    torch.testing.assert_close(end(0.5) - end(0.0), torch.full_like(outputs[0], want), rtol=0, atol=1e-12)


def test_a_step_from_no_signal_has_no_corrector():
    times = [1.0, 0.7, 0.4, 0.1]
    whole, none = (UniPC(order=1, corrector=c).plan(Flow(), times) for c in (True, False))
    assert whole[:2] == none[:2]
    assert whole[2] != none[2]
    assert all(math.isfinite(w) for weights, _ in UniPC(order=4).plan(Flow(), [*times, 0.0]) for w in weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": 5}, "order must be one of 1, 2, 3, 4: got 5"),
        ({"variant": "bh3"}, "variant must be one of bh1, bh2: got 'bh3'"),
        ({"disable_corrector": [0]}, r"disable_corrector must be a tuple of step indices >= 0: got \[0\]"),
        ({"disable_corrector": (-1,)}, r"disable_corrector must be a tuple of step indices >= 0: got \(-1,\)"),
    ],
)
def test_options_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        UniPC(**options)
