"""Denoisers of azula."""

import types

import pytest
import torch
from host_networks import normal

import gms_fast
from gms_fast import NoiseMoments
from gms_fast.models import wrap

pytestmark = pytest.mark.usefixtures("one_thread")


class Cosine:
    def __call__(self, t):
        alpha = torch.cos(1.5 * t)
        return alpha, (1 - alpha**2 + 1e-6).sqrt()


class Denoiser(torch.nn.Module):
    """The attributes and the call of a denoiser of azula: exact for data N(0.2, 0.5^2), on any shape."""

    schedule = Cosine()

    def __init__(self, tells_variance):
        super().__init__()
        self.tells_variance = tells_variance

    def forward(self, x_t, t, **conditions):
        alpha, sigma = (v[:, None] for v in self.schedule(t))
        total = 0.25 * alpha**2 + sigma**2
        mean = 0.2 + 0.25 * alpha / total * (x_t - 0.2 * alpha)
        var = {"var": 0.25 * sigma**2 / total} if self.tells_variance else {}
        return types.SimpleNamespace(mean=mean, **var)


Denoiser.__module__ = "azula.denoise"


def test_azula():
    model = wrap(Denoiser(tells_variance=False))
    assert (model.sample_shape, model.prediction, model.clip) == (None, "x0", None)
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    torch.testing.assert_close(model.schedule.inverse_log_snr(model.schedule.log_snr(t)), t, rtol=0, atol=1e-9)
    samples = gms_fast.sample(model, 50, solver="ddim", n=4000, shape=(2,))
    assert float(samples.mean()) == pytest.approx(0.2, abs=4 * 0.5 / 8000**0.5 + 0.01)
    assert float(samples.std()) == pytest.approx(0.5, rel=0.05)


def test_azula_variance_is_a_moment_of_the_noise():
    """Var[x_0|x_t] + E[x_0|x_t]^2 over all x_t is E[x_0^2], whatever the way it is told."""
    model = wrap(Denoiser(tells_variance=True))
    x, t = normal(5, 2), torch.full((5,), 0.4, dtype=torch.float64)
    moments = model(x, t)
    assert isinstance(moments, NoiseMoments)
    assert model.moments == "central"
    alpha, sigma = (v[:, None] for v in Cosine()(t))
    posterior = Denoiser(tells_variance=True)(x, t)
    torch.testing.assert_close((x - sigma * moments.e1) / alpha, posterior.mean)
    torch.testing.assert_close((sigma / alpha) ** 2 * moments.e2, posterior.var.expand_as(x))
    samples = gms_fast.sample(model, 8, solver="sn-ddpm", n=4000, shape=(2,))
    assert float(samples.std()) == pytest.approx(0.5, rel=0.03)  # exact at any number of steps, but for the start
