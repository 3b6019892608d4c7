"""Adapter for DiT."""

import pytest
import torch
from host_networks import DiT, made, normal

from gms_fast.models import wrap
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def test_dit():
    network = made(DiT)
    with pytest.raises(ValueError, match="schedule must be given: it cannot be read from DiT"):
        wrap(network)
    model = wrap(network, schedule=VPLinear(), y=torch.tensor([2]))
    assert (model.sample_shape, model.prediction, model.clip) == ((4, 4, 4), "noise", None)
    assert model(normal(3, 4, 4, 4), torch.zeros(3)).e2.shape == (3, 4, 4, 4)
    with pytest.raises(ValueError, match="y must be given"):
        wrap(network, schedule=VPLinear())(normal(3, 4, 4, 4), torch.zeros(3))


class SiT(DiT):
    """A network with the same parts, and time from noise to data."""


def test_relatives_that_only_look_like_a_kind_are_not_taken_for_it():
    with pytest.raises(
        ValueError,
        match=r"kind must be given, one of diffusers, edm, .*: wrap does not recognise a network of class SiT",
    ):
        wrap(made(SiT), schedule=VPLinear())
    assert wrap(made(SiT), "dit", schedule=VPLinear(), y=torch.tensor([2])).sample_shape == (4, 4, 4)
