"""Schedules made of a table of levels or of two formulas."""

import pytest
import torch

from gms_fast import schedules
from gms_fast.schedules import Levels, Schedule
from gms_fast.steps import StepCoefficients


def test_levels_are_a_table_in_either_order():
    alphas, sigmas, asked = [0.0, 0.6, 0.8, 1.0], [1.0, 0.8, 0.6, 0.0], [999, 700, 300, 0]
    for flip in (1, -1):
        levels = Levels(alphas[::flip], sigmas[::flip], asked[::flip])
        assert levels.times == levels.timesteps(3) == [3, 2, 1, 0]
        assert levels.alpha(levels.times).tolist() == alphas
        assert levels.sigma(levels.times).tolist() == sigmas
        assert levels.network_time(levels.times).tolist() == asked
        assert levels.from_network_time(torch.tensor(asked).float()).tolist() == levels.times
        assert levels.timesteps(2) == [3, 2, 0]
        assert levels.inverse_log_snr(levels.log_snr([3.0, 1.0, 0.0])).tolist() == [3, 1, 0]
        assert schedules.build(levels.config).agrees(levels, levels.times)
    assert Levels([1.0], [2.0]).network_time([0.0]).tolist() == [0]


def test_two_formulas_are_a_schedule():
    class Squared(Schedule):
        def alpha(self, t):
            return 1 - self.sigma(t)

        def sigma(self, t):
            return torch.as_tensor(t, dtype=torch.float64) ** 2

    k = StepCoefficients.between(Squared(), 0.5, 0.0)
    assert (k.alpha_t, k.sigma_t, k.A, k.B, k.c) == (0.75, 0.25, 0, 1, 0)
    with pytest.raises(NotImplementedError, match="give timesteps"):
        Squared().inverse_log_snr(0.0)


def test_levels_that_an_angle_cannot_tell_apart_are_levels():
    """arctan(sigma/alpha) rounds where there is almost no signal or almost no noise."""
    levels = Levels([1e-18, 3e-18, 1.0, 1.0], [1.0, 1.0, 3e-18, 1e-18])
    assert levels.times == [3.0, 2.0, 1.0, 0.0]
    with pytest.raises(ValueError, match="strictly increase or decrease"):
        Levels([1e-18, 1e-18], [1.0, 1.0])
