"""Derivatives of a network: against finite differences, and one way against the other."""

import pytest
import torch
from published_statistics import SCHEDULES, Mixture, draw, network, normal
from toys import Model

from gms_fast.measure.derivatives import derivative_for, double_backward, forward_mode, noise_of
from gms_fast.schedules import EDM, VPLinear
from gms_fast.statistics import empirical_model

pytestmark = pytest.mark.usefixtures("one_thread")


class OneWay(torch.autograd.Function):
    """sin with a backward pass only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


def directional(noise, x, t, dx, dt, h=1e-5):
    return (noise(x + h * dx, t + h * dt) - noise(x - h * dx, t - h * dt)) / (2 * h)


@pytest.mark.parametrize("derivative", [forward_mode, double_backward])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_derivative_agrees_with_finite_differences(derivative, schedule):
    t = torch.tensor(0.3, dtype=torch.float64) * schedule.t_max + 0.15
    noise = noise_of(Mixture(schedule), schedule, "noise")
    x, dx, dt = 0.5 * normal(5, 2), normal(5, 2, seed=1), torch.tensor(1.0, dtype=torch.float64)
    got = derivative(noise, x, t, dx, dt)
    torch.testing.assert_close(got, directional(noise, x, t, dx, dt), rtol=1e-6, atol=1e-8)
    assert (got - derivative(noise, x, t, dx, 0 * dt)).abs().max() > 1e-6  # time counts


def test_time_of_a_discrete_schedule_has_a_slope_at_integers_too():
    schedule = VPLinear()
    noise = noise_of(Mixture(schedule), schedule, "noise")
    x, zero = normal(3, 2), torch.zeros(3, 2, dtype=torch.float64)
    t, dt = torch.tensor(400.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    above = (noise(x, t + 0.01) - noise(x, t)) / 0.01
    torch.testing.assert_close(forward_mode(noise, x, t, zero, dt), above, rtol=1e-3, atol=1e-7)


def test_both_ways_of_deriving_a_network_agree():
    noise = noise_of(network(), VPLinear(), "noise")
    x, dx = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1)
    t, dt = torch.tensor(300.5, dtype=torch.float64), torch.tensor(20.0, dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        one, other = (d(noise, x, t, dx, dt) for d in (forward_mode, double_backward))
        assert derivative_for(noise, x, t) is forward_mode
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert one.abs().max() > 0.1


def test_network_without_forward_mode_gives_the_same_statistics():
    def model(sin):
        return Model(lambda x, t: sin(0.8 * x) * (1 + t[:, None]).log(), schedule=EDM(), sample_shape=(2,))

    one_way, both_ways = model(OneWay.apply), model(torch.sin)
    noise = noise_of(one_way, EDM(), "noise")
    assert derivative_for(noise, normal(1, 2), torch.tensor(1.0, dtype=torch.float64)) is double_backward
    settings = {"N": 4, "samples": 8, "t_max": 10.0}
    one, other = (empirical_model(m, draw(8), **settings) for m in (one_way, both_ways))
    for name in "lsb":
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)


def test_a_network_that_fails_says_so_itself():
    def broken(x, t):
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match="out of cheese"):
        empirical_model(Model(broken, schedule=EDM()), normal(4, 4), N=2, samples=2)
