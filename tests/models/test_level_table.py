"""Noise levels by network time equal those of the schedule, on any device and in any dtype."""

import pytest
import torch

from gms_fast.models.level_table import LevelTable
from gms_fast.models.normalised import unit
from gms_fast.schedules import EDM, VP, Flow, Levels, VPContinuous, VPContinuousCosine, VPCosine, VPLinear

WHOLE = [
    VPLinear(),
    VPCosine(T=50, rescale_time=True),
    VP([0.1, 0.2, 1.0], time_shift=1),
    Levels([1, 0.7, 0.4], [0, 0.5, 2.0], [3.0, 20.0, 900.0]),
    Levels([0.6], [0.8]),
]
CONTINUOUS = [VPContinuous(), VPContinuousCosine(), EDM(), Flow(), Flow(time_scale=1000.0)]


def looked_up(table, t):
    return [row.flatten().double() for row in table(t.float(), torch.zeros(len(t), 2))]


@pytest.mark.parametrize("schedule", WHOLE, ids=repr)
def test_whole_times_have_their_own_levels(schedule):
    t = schedule.whole_times
    alpha, sigma, *_ = looked_up(LevelTable(schedule), schedule.network_time(t))
    assert torch.equal(alpha, schedule.alpha(t).float().double())
    assert torch.equal(sigma, schedule.sigma(t).float().double())


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=repr)
def test_levels_between_the_nodes_are_near(schedule):
    """A chord of f over a step h has an error of f'' h^2/8.

    Nodes that are uniform in the root of time have steps of 2^-13 sqrt(t).
    """
    t = schedule.grid(997, "uniform").flip(0)
    alpha, sigma, *_ = looked_up(LevelTable(schedule), schedule.network_time(t))
    torch.testing.assert_close(alpha, schedule.alpha(t), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(sigma, schedule.sigma(t), rtol=1e-5, atol=1e-7)


def test_unit_is_the_spread_of_the_noise_about_its_mean_for_gaussian_data():
    """Var[eps|x_t] = (alpha/sigma)^2 Var[x_0|x_t].

    For Gaussian data Var[x_0|x_t] = (s sigma)^2/((alpha s)^2 + sigma^2).
    """
    schedule, std = VPLinear(), 2.5
    t = torch.tensor([0.0, 300, 999])
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    variance = (std * sigma) ** 2 / ((std * alpha) ** 2 + sigma**2)
    _, _, found, angle = looked_up(LevelTable(schedule, std), t)
    torch.testing.assert_close(found**2, (alpha / sigma) ** 2 * variance, rtol=3e-7, atol=0)
    torch.testing.assert_close(angle.tan(), sigma / (std * alpha), rtol=2e-4, atol=0)  # steep at pi/2
    torch.testing.assert_close(unit(alpha, sigma, 1.0), alpha)  # of the velocity, where s = 1 and VP


def test_units_beyond_the_table_are_those_of_their_level():
    """Linear extrapolation from the last two nodes would make a unit negative at sigma = 200."""
    t = torch.tensor([0.0001, 200.0, 1000.0])
    alpha, sigma, found, angle = looked_up(LevelTable(EDM(), 0.5), t)
    torch.testing.assert_close(sigma, t.double())
    torch.testing.assert_close(found, unit(alpha, sigma, 0.5), rtol=1e-6, atol=0)
    torch.testing.assert_close(angle, torch.atan2(sigma, 0.5 * alpha), rtol=1e-6, atol=0)


def test_module_casts_leave_the_numbers_alone():
    table = LevelTable(VPLinear())
    want = looked_up(table, torch.tensor([0.0, 999.0]))
    assert all(
        torch.equal(a, b) for a, b in zip(looked_up(table.bfloat16(), torch.tensor([0.0, 999.0])), want, strict=True)
    )
    assert table.state_dict() == {}


def test_each_sample_has_the_level_of_its_time():
    table, t = LevelTable(EDM()), torch.tensor([80.0, 0.5])
    alpha, sigma, *_ = table(t, torch.zeros(2, 3, 4, 4))
    assert alpha.shape == sigma.shape == (2, 1, 1, 1)
    assert sigma.flatten().tolist() == [80.0, 0.5]
