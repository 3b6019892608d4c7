"""Continuous schedules against their formulas, and their grids."""

import math

import pytest
import torch

from gms_fast import schedules
from gms_fast.schedules import EDM, Flow, VPContinuous, VPContinuousCosine

EPS = 2.0**-52


def test_flow_shifts_its_even_grid():
    """t becomes s t/(1 + (s - 1) t), which has s times the noise level."""
    even, shifted = Flow(), Flow(shift=3.0)
    a, b = (torch.tensor(f.timesteps(8), dtype=torch.float64)[1:-1] for f in (even, shifted))
    torch.testing.assert_close(b / (1 - b), 3 * a / (1 - a), rtol=1e-12, atol=0)
    assert (shifted.timesteps(8)[0], shifted.timesteps(8)[-1]) == (1, 0)
    assert shifted.timesteps(8, spacing="angle") == even.timesteps(8, spacing="angle")
    inner = Flow(0.9, 0.1, shift=3.0).timesteps(8)
    assert (inner[0], inner[-1]) == (0.9, 0.1)


CONTINUOUS = [VPContinuous(), VPContinuousCosine(), EDM(), Flow(), Flow(t_max=0.99, t_min=0.01)]


@pytest.mark.parametrize("schedule", CONTINUOUS, ids=repr)
def test_continuous_schedule_round_trips_and_is_monotone(schedule):
    t = torch.linspace(schedule.t_min or 1e-6, min(schedule.t_max, 80.0), 500, dtype=torch.float64)[:-1]
    lam = schedule.log_snr(t)
    assert (lam.diff() < 0).all()
    torch.testing.assert_close(schedule.inverse_log_snr(lam), t, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(schedule.from_network_time(schedule.network_time(t)), t, rtol=1e-14, atol=0)
    again = schedules.build(schedule.config)
    assert type(again) is type(schedule)
    assert again.config == schedule.config
    assert repr(again) == repr(schedule)


def test_continuous_schedules_are_their_formulas():
    t = torch.tensor([0.001, 0.3, 0.9], dtype=torch.float64)
    for schedule in (VPContinuous(), VPContinuousCosine()):
        assert ((schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2) - 1).abs().max() <= 4 * EPS
        assert float(schedule.alpha(0.0)) == 1
        assert float(schedule.sigma(0.0)) == 0
    beta = torch.linspace(0, 0.3, 100_001, dtype=torch.float64) * 19.9 + 0.1
    assert float(VPContinuous().alpha(0.3).log()) == pytest.approx(-float(torch.trapezoid(beta, dx=3e-6)) / 2, rel=1e-9)
    # at 10^-3, 1 - alpha^2 in float32 would give 4.557594
    assert float(VPContinuous().log_snr(1e-3)) == pytest.approx(4.557715, abs=1e-6)
    cosine = (torch.tensor([0.308, 0.008], dtype=torch.float64) / 1.008 * math.pi / 2).cos()
    assert float(VPContinuousCosine().alpha(0.3)) == pytest.approx(float(cosine[0] / cosine[1]), rel=1e-14)
    assert EDM().alpha(t).tolist() == [1, 1, 1]
    assert torch.equal(EDM().sigma(t), t)
    assert torch.equal(Flow().alpha(t), 1 - t)
    assert VPContinuous().network_time(0.5) == 499.5


def test_edm_grid_is_that_of_karras_and_ends_at_zero():
    ends = 80.0 ** (1 / 7), 0.002 ** (1 / 7)
    want = [(ends[0] + i / 9 * (ends[1] - ends[0])) ** 7 for i in range(10)]
    times = EDM().timesteps(10)
    assert times[:-1] == pytest.approx(want, rel=1e-12)
    assert times[-1] == 0
    assert EDM().timesteps(1) == [80.0, 0.0]
    assert EDM(rho=3).timesteps(5)[1] == pytest.approx(
        (80 ** (1 / 3) + (0.002 ** (1 / 3) - 80 ** (1 / 3)) / 4) ** 3, rel=1e-12
    )


@pytest.mark.parametrize("schedule", [*CONTINUOUS, EDM(sigma_max=80.3), EDM(sigma_max=10.0)], ids=repr)
def test_rounding_does_not_lead_out_of_the_schedule(schedule):
    """float32 network times, and log-SNR converted back, stay in the schedule's range."""
    narrow = schedule.network_time(schedule.t_max).float()
    level, highest = (float(schedule.sigma(t)) for t in (schedule.from_network_time(narrow), schedule.t_max))
    assert level == pytest.approx(highest, rel=2.0**-20)
    if math.isfinite(lam := float(schedule.log_snr(schedule.t_max))):
        assert float(schedule.inverse_log_snr(lam)) <= schedule.t_max
