"""Adapter for azula."""

import pytest
import torch
from host_networks import Cosine, Denoiser, normal

import gms_fast
from gms_fast import NoiseMoments
from gms_fast.models import wrap

pytestmark = pytest.mark.usefixtures("one_thread")


def test_azula():
    model = wrap(Denoiser(tells_variance=False))
    assert (model.sample_shape, model.prediction, model.clip) == (None, "x0", None)
    t = torch.linspace(0.05, 0.95, 9, dtype=torch.float64)
    torch.testing.assert_close(model.schedule.inverse_log_snr(model.schedule.log_snr(t)), t, rtol=0, atol=1e-9)
    samples = gms_fast.sample(model, 50, solver="ddim", n=4000, shape=(2,))
    assert float(samples.mean()) == pytest.approx(0.2, abs=4 * 0.5 / 8000**0.5 + 0.01)
    assert float(samples.std()) == pytest.approx(0.5, rel=0.05)


def test_azula_variance_is_a_moment_of_the_noise():
    """Var[x_0|x_t] + E[x_0|x_t]^2 averages to E[x_0^2], with either form of the variance."""
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
    assert float(samples.std()) == pytest.approx(0.5, rel=0.03)  # exact at any number of steps, except for the start
