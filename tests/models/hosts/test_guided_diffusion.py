"""Adapter for guided-diffusion."""

import pytest
import torch
from host_networks import UNetModel, made, normal

from gms_fast.models import wrap
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def test_guided_diffusion_says_what_it_is():
    model = wrap(made(UNetModel), schedule=VPLinear())
    assert (model.sample_shape, model.prediction) == ((3, 4, 4), "noise")
    assert not hasattr(model, "clip")  # the range is assumed, and checked while sampling
    assert model.dtype == torch.float64  # dtype of the first and last weights, not of the inner ones
    assert wrap(made(UNetModel, 4), schedule=VPLinear()).clip is None  # latents
    one = wrap(made(UNetModel, learned=False), schedule=VPLinear())
    assert isinstance(one(normal(2, 3, 4, 4), torch.zeros(2)), torch.Tensor)


class SuperResModel(UNetModel):
    def forward(self, x, timesteps, low_res=None, y=None):
        return super().forward(torch.cat([x, low_res], 1), timesteps, y)


def test_a_network_that_enlarges_needs_the_small_picture():
    network = made(SuperResModel, 6, learned=False)
    network.out = torch.nn.Conv2d(6, 6, 1).double()
    model = wrap(network, schedule=VPLinear())
    assert model.sample_shape == (3, 4, 4)
    with pytest.raises(ValueError, match="low_res must be given"):
        model(normal(1, 3, 4, 4), torch.zeros(1))
    assert model(normal(1, 3, 4, 4), torch.zeros(1), low_res=normal(1, 3, 4, 4)).e2 is not None
