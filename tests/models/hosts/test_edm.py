"""Adapter for EDM."""

import itertools

import pytest
import torch
from host_networks import EDMPrecond, normal

import gms_fast
from gms_fast.models import wrap
from gms_fast.schedules import EDM

pytestmark = pytest.mark.usefixtures("one_thread")


def test_edm():
    model = wrap(EDMPrecond())
    assert (model.sample_shape, model.prediction) == ((3, 4, 4), "x0")
    assert not hasattr(model, "clip")  # the range is assumed, and checked while sampling
    assert (repr(model.schedule), model.dtype) == (repr(EDM(0.002, 80.0)), torch.float32)
    x_T = 80 * normal(2, 3, 4, 4)
    got = gms_fast.sample(model, 40, solver="ddim", x_T=x_T, clip=None)
    x, levels = x_T, EDM(0.002, 80.0).timesteps(40)
    for sigma, following in itertools.pairwise(levels):  # Euler's steps of the paper's algorithm 1
        d = (x - EDMPrecond()(x.float(), torch.full((2,), sigma)).double()) / sigma
        x = x + (following - sigma) * d
    torch.testing.assert_close(got, x, rtol=0, atol=1e-5)  # D is float32, of x up to 250


def test_edm_within_what_the_network_knows():
    narrow = wrap(EDMPrecond(sigma_min=0.02, sigma_max=50.0)).schedule
    assert (narrow.t_min, narrow.t_max) == (0.02, 50.0)
    discrete = EDMPrecond(channels=4)
    discrete.u = torch.tensor([200.0, 60.0, 3.0, 0.1, 0.0])  # levels to which an improved DDPM network rounds
    model = wrap(discrete)
    assert model.clip is None
    assert model.schedule.sigma(model.schedule.times).tolist() == pytest.approx([60.0, 3.0, 0.1, 0.0])
    assert model.schedule.network_time(model.schedule.times).tolist() == pytest.approx([60.0, 3.0, 0.1, 0.0])


def test_edm_does_not_take_zeros_for_labels():
    with pytest.raises(ValueError, match="class_labels must be given"):
        gms_fast.sample(wrap(EDMPrecond(label_dim=4)), 2, solver="ddim", n=1)
    model = wrap(EDMPrecond(label_dim=4), class_labels=torch.eye(4)[:1])
    assert gms_fast.sample(model, 2, solver="ddim", n=2).shape == (2, 3, 4, 4)
