"""Discrete schedules against their formulas, and the times of their grids."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch

from gms_fast.schedules import VP, VPCosine, VPLinear

EPS = 2.0**-52
SCHEDULES = [VPLinear(), VPLinear(T=4000), VPCosine(), VPCosine(T=50), VP(np.geomspace(1e-5, 0.5, 30))]


def every_time(schedule):
    return torch.arange(schedule.T, dtype=torch.float64)


def cosine_betas(T):
    """Compute beta_i = min(1 - g((i+1)/T)/g(i/T), 0.999) of the specification in 50 digits."""
    mpmath.mp.dps = 50
    offset = mpmath.mpf("0.008")
    g = [mpmath.cos((mpmath.mpf(i) / T + offset) / (1 + offset) * mpmath.pi / 2) ** 2 for i in range(T + 1)]
    return [min(1 - g[i + 1] / g[i], mpmath.mpf("0.999")) for i in range(T)]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedule_preserves_the_variance(schedule):
    t = torch.linspace(0, schedule.T - 1, 2 * schedule.T - 1, dtype=torch.float64)
    assert ((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2) - 1).abs().max() <= 4 * EPS
    assert (schedule.log_snr(t).diff() < 0).all()


def test_linear_equals_the_product_of_its_betas():
    t = torch.arange(1000)
    alpha_bar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    assert np.abs(VPLinear().alpha(t).numpy() - np.sqrt(alpha_bar)).max() <= 1e-14
    assert np.abs(VPLinear().sigma(t).numpy() - np.sqrt(1 - alpha_bar)).max() <= 1e-13  # 1 - alpha_bar cancels at t = 0


def test_cosine_equals_its_formula():
    """Near T the cosine is as small as pi/2/T, so rounding of its angle moves g by 2 T EPS.

    log alpha sums these errors.
    """
    T = 100
    betas = cosine_betas(T)
    schedule = VPCosine(T=T)
    alpha_bar = [mpmath.mpf(1)]
    for beta in betas:
        alpha_bar.append(alpha_bar[-1] * (1 - beta))
    for t in (0, 1, 50, 98, 99):
        assert float(schedule.betas[t]) == pytest.approx(float(betas[t]), abs=8 * T * EPS)
        want = float(mpmath.sqrt(alpha_bar[t + 1]))
        assert float(schedule.alpha(t)) == pytest.approx(want, rel=16 * T * math.log(T) * EPS)
        assert float(schedule.sigma(t)) == pytest.approx(float(mpmath.sqrt(1 - alpha_bar[t + 1])), rel=1e-11)
    assert float(schedule.betas[-1]) == 0.999


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_log_snr_and_its_inverse_round_trip(schedule):
    t = torch.linspace(0, schedule.T - 1, 3 * schedule.T, dtype=torch.float64)
    lam = schedule.log_snr(t)
    torch.testing.assert_close(lam, (schedule.alpha(t) / schedule.sigma(t)).log(), rtol=0, atol=1e-10)
    # log alpha returns with the rounding of 2 lambda, and with exp(-20)/2 where softplus becomes linear
    slope = (-schedule.log_alpha(every_time(schedule))).diff()[t.long().clamp(max=schedule.T - 2)]
    tolerance = (16 * EPS * (1 + lam.abs()) + math.exp(-20) / 2 * (lam < -9.9)) / slope + 4 * EPS * schedule.T
    assert ((schedule.inverse_log_snr(lam) - t).abs() <= tolerance).all()
    ends = schedule.inverse_log_snr([100.0, -100.0])
    assert ends.tolist() == [0, schedule.T - 1]


def test_shapes_are_kept():
    schedule = VPLinear()
    for f in (schedule.alpha, schedule.sigma, schedule.log_snr, schedule.network_time):
        assert f(3).shape == ()
        assert f(torch.zeros(2, 3)).shape == (2, 3)
        assert f([1, 2]).dtype == torch.float64
    assert schedule.inverse_log_snr(0.0).shape == ()


def test_log_alpha_is_linear_between_integers():
    schedule = VPLinear()
    ends = schedule.alpha([400, 401]).log()
    assert float(schedule.alpha(400.25).log()) == pytest.approx(float(ends[0] + 0.25 * (ends[1] - ends[0])), rel=1e-14)


def test_default_grid_is_the_released_one():
    schedule = VPLinear()
    assert schedule.timesteps(5) == [999, 799, 599, 399, 199, 0]
    assert schedule.timesteps(10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99, 0]
    assert schedule.timesteps(3) == [999, 665, 332, 0]
    assert schedule.timesteps(1) == [999, 0]
    assert VPLinear(T=4000).timesteps(4) == [3999, 2999, 1999, 999, 0]
    for steps in (1, 7, 333, 999):
        assert all(a > b for a, b in pairwise(schedule.timesteps(steps)))


@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=repr)
@pytest.mark.parametrize("steps", [1, 5, 20])
def test_log_snr_spacing_visits_the_nearest_times(schedule, steps):
    times = schedule.timesteps(steps, spacing="log-snr")
    first, last = schedule.log_snr([schedule.T - 1, 0]).tolist()
    wanted = [first + (last - first) * k / steps for k in range(steps + 1)]
    assert times[0] == schedule.T - 1
    assert times[-1] == 0
    between = [float(schedule.log_snr(min(t + 0.5, schedule.T - 1))) for t in range(schedule.T)]
    # the time within half a step of log_snr(t) = lam
    nearest = [min(t for t in range(schedule.T) if between[t] <= lam) for lam in wanted[1:-1]]
    assert len(times) == steps + 1
    if len({*nearest, times[0], 0}) == steps + 1:  # else neighbours of a shared time move too
        assert [times[0], *nearest, 0] == times


@pytest.mark.parametrize("exponent", [0.7, 1, 2.0])
def test_exponent_spacing_is_its_formula(exponent):
    times = VPLinear().timesteps(10, spacing=exponent)
    assert times == [round(999 * (1 - (k / 10) ** exponent)) for k in range(11)]


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), VPLinear(T=50)], ids=repr)
@pytest.mark.parametrize("spacing", ["uniform", "quadratic", "log-snr", "karras", "angle", 0.5, 3.0])
def test_no_step_vanishes(schedule, spacing):
    """The nearest free times replace times that rounding makes equal."""
    for steps in (1, 12, 20, 47, 48, 49, 500, 998, 999):
        if steps < schedule.T:
            times = schedule.timesteps(steps, spacing=spacing)
            assert len(times) == steps + 1
            assert (times[0], times[-1]) == (schedule.T - 1, 0)
            assert all(a > b for a, b in pairwise(times))
    assert schedule.timesteps(schedule.T, spacing=spacing) == list(range(schedule.T - 1, -1, -1))


def test_crowded_times_are_the_nearest_free_ones():
    times = VPCosine().timesteps(20, spacing="karras")
    even = VPCosine().grid(20, "karras").tolist()
    alone = [(t, e) for t, e in zip(times, even, strict=True) if 20 < e < 980]
    assert len(alone) > 4
    assert all(abs(t - e) <= 0.5 for t, e in alone)


def test_too_few_whole_times_are_said():
    with pytest.warns(UserWarning, match=r"taking 4 steps instead of 10: VPLinear\(T=1000\) has no more"):
        assert VPLinear().timesteps(10, t_max=4.2) == [4, 3, 2, 1, 0]


def test_zero_terminal_snr():
    """betas that end with 1 leave no signal at the end; alpha is linear before it."""
    betas = VPLinear(T=100).betas.clone()
    betas[-1] = 1
    schedule = VP(betas)
    assert (float(schedule.alpha(99)), float(schedule.sigma(99))) == (0, 1)
    assert torch.equal(schedule.alpha([0, 50, 98]), VPLinear(T=100).alpha([0, 50, 98]))
    assert float(schedule.alpha(98.75)) == pytest.approx(float(schedule.alpha(98)) / 4, rel=1e-12)
    times = torch.tensor([98.75, 98.5, 98, 97.5, 3, 0], dtype=torch.float64)
    torch.testing.assert_close(schedule.inverse_log_snr(schedule.log_snr(times)), times, rtol=1e-9, atol=1e-9)
    assert float(schedule.inverse_log_snr(-math.inf)) == 99
    for spacing in ("uniform", "quadratic", "angle"):
        assert len(schedule.timesteps(7, spacing=spacing)) == 8
    with pytest.raises(ValueError, match="spacing 'karras' needs finite"):
        schedule.timesteps(7, spacing="karras")


def test_quadratic_grid_of_discrete_times_counts_from_the_data():
    times = torch.tensor(VPLinear().timesteps(5, spacing="quadratic"), dtype=torch.float64)
    gaps = ((times + 1) / 1000).sqrt().diff()
    assert times[0] == 999
    assert times[-1] == 0
    assert (gaps - gaps.mean()).abs().max() < 0.01  # because times are rounded


def test_cosine_schedule_refuses_a_fraction_of_steps():
    with pytest.raises(ValueError, match="T must be an integer"):
        VPCosine(T=10.5)
