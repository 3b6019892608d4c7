"""Noised batches: times of every kind of schedule, and the share of a rank."""

import pytest
import torch

from gms_fast.schedules import EDM, VP, Flow, Levels, VPContinuous, VPContinuousCosine, VPCosine, VPLinear
from gms_fast.training.noising import log_normal_times, noised, sent, times

pytestmark = pytest.mark.usefixtures("one_thread")

DRAWS = 20000
WITHOUT_SIGNAL = VP([0.1, 0.3, 0.5, 1.0])  # zero terminal SNR
CONTINUOUS = {  # share of the way from data to noise, by the mathematics of each
    "vp": (VPContinuous(), lambda t: (t - 1e-3) / (1 - 1e-3)),
    "vp-cosine": (VPContinuousCosine(), lambda t: (t - 1e-3) / (0.9946 - 1e-3)),
    "edm": (EDM(), lambda t: (t ** (1 / 7) - 0.002 ** (1 / 7)) / (80 ** (1 / 7) - 0.002 ** (1 / 7))),
    "edm, rho 3": (EDM(0.1, 9.0, 3.0), lambda t: (t ** (1 / 3) - 0.1 ** (1 / 3)) / (9 ** (1 / 3) - 0.1 ** (1 / 3))),
    "flow": (Flow(), lambda t: t),
    "flow, ends": (Flow(0.9, 0.2), lambda t: (t - 0.2) / 0.7),
    "flow, shift 3": (Flow(shift=3.0), lambda t: t / (3 - 2 * t)),
}


def generator():
    return torch.Generator().manual_seed(3)


@pytest.mark.parametrize(
    ("schedule", "wanted"),
    [
        (VPLinear(T=10), range(10)),
        (VPCosine(T=4), range(4)),
        (Levels([1.0, 0.9, 0.5], [0.1, 0.4, 0.9]), range(3)),
        (Levels([1.0, 1.0, 0.5], [0.0, 0.4, 0.9]), (1, 2)),  # the last level of a sampler
        (Levels([0.0, 0.4, 1.0], [1.0, 0.9, 0.0]), (1,)),
        (WITHOUT_SIGNAL, range(3)),
    ],
    ids=repr,
)
def test_times_of_a_discrete_schedule_are_uniform_among_those_with_signal_and_noise(schedule, wanted):
    found, counts = times(schedule, DRAWS, generator()).unique(return_counts=True)
    assert found.tolist() == [*wanted]
    share = DRAWS / len(wanted)
    assert (counts - share).abs().max() < 4 * share**0.5


@pytest.mark.parametrize("name", CONTINUOUS)
def test_times_of_a_continuous_schedule_lie_as_its_own_grid_does(name):
    """Compare by Kolmogorov's distance.

    For 20000 uniform numbers it exceeds 0.0138 once in a thousand times.
    """
    schedule, share = CONTINUOUS[name]
    shares = share(times(schedule, DRAWS, generator()).sort().values)
    even = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
    assert (shares - even).abs().max() < 0.0138


@pytest.mark.parametrize("name", CONTINUOUS)
def test_random_numbers_at_their_ends_give_signal_and_noise(monkeypatch, name):
    schedule, _ = CONTINUOUS[name]
    monkeypatch.setattr(torch, "rand", lambda *_, **__: torch.tensor([0.0, 1 - 2.0**-24]))
    t = times(schedule, 2, generator())
    assert t[0] > t[1]
    assert ((t >= schedule.t_min) & (t <= schedule.t_max)).all()
    for level in (schedule.alpha(t).float(), schedule.sigma(t).float()):
        assert (level > 0).all()


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), VPContinuous()], ids=repr)
def test_levels_as_of_edm_are_log_normal(schedule):
    t = log_normal_times(schedule, DRAWS, generator())
    ratio = (schedule.sigma(t) / schedule.alpha(t)).log()
    assert float(ratio.mean()) == pytest.approx(-1.2, abs=4 * 1.2 / DRAWS**0.5 + 0.01)  # whole times, and ends
    assert float(ratio.std()) == pytest.approx(1.2, abs=0.03)
    if schedule.whole_times is not None:
        assert set(t.tolist()) <= set(schedule.whole_times.tolist())


@pytest.mark.parametrize("schedule", [WITHOUT_SIGNAL, Levels([1.0, 1.0, 0.5], [0.0, 0.4, 0.9]), Flow()], ids=repr)
def test_levels_as_of_edm_have_signal_and_noise(schedule):
    t = log_normal_times(schedule, DRAWS, generator())
    assert (schedule.alpha(t) > 0).all()
    assert (schedule.sigma(t) > 0).all()


def test_tensors_are_sent_as_they_are():
    x = torch.arange(3)
    assert sent(x, torch.device("cpu")) is x


@pytest.mark.parametrize("schedule", [VPLinear(rescale_time=True, T=50), EDM(), Flow(time_scale=1000.0)], ids=repr)
def test_batches_are_noised_as_the_schedule_says(schedule):
    x_0 = torch.randn(6, 2, 3)
    batch = noised(schedule, x_0, {"y": torch.arange(6)}, slice(0, 6), 6, generator(), torch.device("cpu"))
    t = schedule.from_network_time(batch.time)
    for got, wanted in ((batch.alpha, schedule.alpha(t)), (batch.sigma, schedule.sigma(t))):
        assert got.shape == (6, 1, 1)
        torch.testing.assert_close(got.flatten().double(), wanted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(batch.x_t, batch.alpha * x_0 + batch.sigma * batch.eps, rtol=0, atol=0)
    assert {tensor.dtype for tensor in batch[:-1]} == {torch.float32}
    assert batch.condition["y"].tolist() == [*range(6)]


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), Flow()], ids=repr)
def test_rows_of_a_share_are_those_of_the_whole_batch(schedule):
    x_0, y, seven = torch.randn(7, 1, 2, 2), torch.arange(7), slice(0, 7)
    whole = noised(schedule, x_0, {"y": y}, seven, 7, generator(), torch.device("cpu"))
    for rows in (slice(0, 3), slice(3, 7), slice(6, 7)):
        share = noised(schedule, x_0[rows], {"y": y[rows]}, rows, 7, generator(), torch.device("cpu"))
        for got, wanted in zip(share[:-1], whole[:-1], strict=True):
            assert torch.equal(got, wanted[rows])
        assert torch.equal(share.condition["y"], y[rows])
