"""Derivatives of a network: against finite differences, and one method against the other."""

import pytest
import torch
from published_statistics import SCHEDULES, Mixture, draw, network, normal
from toys import Model

from gms_fast.derivatives import derivative_for, double_backward, forward_mode
from gms_fast.measure.noise import noise_of
from gms_fast.schedules import EDM, VPLinear
from gms_fast.statistics import empirical_model

pytestmark = pytest.mark.usefixtures("one_thread")


class OneWay(torch.autograd.Function):
    """sin, with a backward pass only."""

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
    value, (got, still) = derivative(noise, (x, t), [(dx, dt), (dx, 0 * dt)])
    torch.testing.assert_close(value, noise(x, t), rtol=0, atol=1e-14)
    torch.testing.assert_close(got, directional(noise, x, t, dx, dt), rtol=1e-6, atol=1e-8)
    assert (got - still).abs().max() > 1e-6  # the derivative depends on time
    assert not any(v.requires_grad for v in (value, got))


def test_both_ways_of_deriving_a_network_agree():
    noise = noise_of(network(), VPLinear(), "noise")
    x, dx = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1)
    t, dt = torch.tensor(300.5, dtype=torch.float64), torch.tensor(20.0, dtype=torch.float64)
    (value, (one,)), (same, (other,)) = (d(noise, (x, t), [(dx, dt)]) for d in (forward_mode, double_backward))
    assert derivative_for(noise, (x, t)) is forward_mode
    torch.testing.assert_close(value, same, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert one.abs().max() > 0.1


def test_attention_is_derived_both_ways_whatever_kernels_there_are():
    def attend(x):
        return torch.nn.functional.scaled_dot_product_attention(x, 2 * x, x.sin())

    x, dx = normal(2, 1, 4, 4).float(), normal(2, 1, 4, 4, seed=1).float()
    (_, (one,)), (_, (other,)) = (d(attend, (x,), [(dx,)]) for d in (forward_mode, double_backward))
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_network_without_forward_mode_gives_the_same_statistics():
    def model(sin):
        return Model(lambda x, t: sin(0.8 * x) * (1 + t[:, None]).log(), schedule=EDM(), sample_shape=(2,))

    one_way, both_ways = model(OneWay.apply), model(torch.sin)
    noise = noise_of(one_way, EDM(), "noise")
    assert derivative_for(noise, (normal(1, 2), torch.tensor(1.0, dtype=torch.float64))) is double_backward
    settings = {"N": 4, "samples": 8, "t_max": 10.0}
    one, other = (empirical_model(m, draw(8), **settings) for m in (one_way, both_ways))
    for name in "lsb":
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)


def test_a_network_that_fails_says_so_itself():
    def broken(x, t):
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match="out of cheese"):
        empirical_model(Model(broken, schedule=EDM()), normal(4, 4), N=2, samples=2)
