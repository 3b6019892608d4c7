"""Step coefficients against their formulas in float64 and in higher precision."""

import math

import mpmath
import numpy as np
import pytest

from gms_fast.schedules import VP, Flow, VPCosine, VPLinear
from gms_fast.steps import StepCoefficients

EPS = 2.0**-52
SCHEDULES = [VPLinear(), VPLinear(T=4000), VPCosine(), VPCosine(T=50), VP(np.geomspace(1e-5, 0.5, 30))]


def spec_coefficients(schedule, t, s):
    """Compute docs/notation.md section 1 in 50 digits from the betas."""
    mpmath.mp.dps = 50
    betas = [mpmath.mpf(float(b)) for b in schedule.betas]
    alpha_t, alpha_s = (mpmath.sqrt(mpmath.fprod(1 - b for b in betas[: i + 1])) for i in (t, s))
    sigma_t, sigma_s = (mpmath.sqrt(1 - a**2) for a in (alpha_t, alpha_s))
    alpha_ts = alpha_t / alpha_s
    beta_ts = sigma_t**2 - alpha_ts**2 * sigma_s**2
    share = beta_ts / sigma_t**2
    names = {"alpha_t": alpha_t, "sigma_t": sigma_t, "alpha_s": alpha_s, "sigma_s": sigma_s}
    step = {"A": alpha_ts * sigma_s**2 / sigma_t**2, "B": alpha_s * share, "c": sigma_s**2 * share}
    return names | step, float(share)


@pytest.mark.parametrize(("t", "s"), [(999, 998), (999, 0), (500, 499), (400, 300), (199, 0), (1, 0)])
def test_step_coefficients_are_those_of_the_spec(t, s):
    """log alpha sums T terms and has an error of T EPS |log alpha|.

    beta_ts/sigma_t^2 divides that error by itself.
    """
    schedule = VPLinear()
    step = StepCoefficients.between(schedule, t, s)
    want, share = spec_coefficients(schedule, t, s)
    tolerance = 4 * EPS + 4 * t * EPS * float(-schedule.log_alpha(float(t))) / share + 8 * EPS / share
    for name, value in want.items():
        assert getattr(step, name) == pytest.approx(float(value), rel=tolerance), name
    assert step.var_max == math.inf
    assert step.as_list() == [step.alpha_t, step.sigma_t, step.A, step.B, step.c, math.inf]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_step_carries_the_marginal_along(schedule):
    """A step turns x_t ~ N(alpha_t x_0, sigma_t^2) into x_s ~ N(alpha_s x_0, sigma_s^2)."""
    last = schedule.T - 1
    for t, s in ((last, 0), (last, last - 1), (last, last // 2), (last // 2, last // 3), (1, 0)):
        k = StepCoefficients.between(schedule, t, s)
        assert k.A * k.alpha_t + k.B == pytest.approx(k.alpha_s, rel=1e-12)
        assert k.A**2 * k.sigma_t**2 + k.c == pytest.approx(k.sigma_s**2, rel=1e-12)
        assert min(k.A, k.B, k.c) > 0


def test_coefficients_at_a_time_remove_all_noise():
    schedule = VPLinear()
    k = StepCoefficients.at(schedule, 7)
    assert (k.alpha_t, k.sigma_t) == (float(schedule.alpha(7)), float(schedule.sigma(7)))
    assert (k.alpha_s, k.sigma_s, k.A, k.B, k.c) == (1, 0, 0, 1, 0)


def test_step_from_pure_noise_knows_nothing_of_the_state():
    k = StepCoefficients.between(Flow(), 1.0, 0.25)
    assert (k.A, k.B, k.c) == (0, 0.75, 0.0625)
