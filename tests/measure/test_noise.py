"""A network's noise as a differentiable function of the schedule's time."""

import torch
from published_statistics import Mixture, normal

from gms_fast.derivatives import forward_mode
from gms_fast.measure.noise import noise_of
from gms_fast.schedules import VPLinear


def test_time_of_a_discrete_schedule_has_a_slope_at_integers_too():
    schedule = VPLinear()
    noise = noise_of(Mixture(schedule), schedule, "noise")
    x, zero = normal(3, 2), torch.zeros(3, 2, dtype=torch.float64)
    t, dt = torch.tensor(400.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    above = (noise(x, t + 0.01) - noise(x, t)) / 0.01
    _, (along,) = forward_mode(noise, (x, t), [(zero, dt)])
    torch.testing.assert_close(along, above, rtol=1e-3, atol=1e-7)
