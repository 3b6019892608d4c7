"""Adapter for denoising-diffusion-pytorch."""

import pytest
import torch
from host_networks import GaussianDiffusion, Unet, made, normal

import gms_fast
from gms_fast.models import wrap
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("objective", "form"), [("pred_noise", "noise"), ("pred_x0", "x0"), ("pred_v", "v")])
def test_denoising_diffusion(objective, form):
    model = wrap(made(GaussianDiffusion, made(Unet), objective))
    assert (model.sample_shape, model.prediction, model.clip, model.schedule.T) == ((3, 4, 4), form, (-1.0, 1.0), 50)
    assert model.schedule.network_time(49) == 49
    assert gms_fast.sample(model, 5, n=2, solver="ddim").shape == (2, 3, 4, 4)


def test_denoising_diffusion_alone_tells_neither_schedule_nor_prediction():
    with pytest.raises(ValueError, match="schedule must be given: it cannot be read from Unet"):
        wrap(made(Unet), "denoising-diffusion")
    with pytest.raises(ValueError, match="prediction must be given: it cannot be read from Unet"):
        wrap(made(Unet), "denoising-diffusion", schedule=VPLinear())


def test_self_conditioning_is_refused():
    network = made(Unet, self_condition=True)
    for whole in (network, made(GaussianDiffusion, network, "pred_v")):
        with pytest.raises(ValueError, match=r"must not be self-conditioned.*Unet\(self_condition=True"):
            wrap(whole, "denoising-diffusion", schedule=VPLinear(), prediction="v")


def test_no_class_is_dropped_at_random():
    diffusion = made(GaussianDiffusion, made(Unet, classes=True), "pred_v")
    with pytest.raises(ValueError, match="classes must be given"):
        wrap(diffusion)(normal(8, 3, 4, 4), torch.zeros(8))
    x, t, classes = normal(8, 3, 4, 4), torch.zeros(8), torch.arange(8) % 4
    got = wrap(diffusion)(x, t, classes=classes)
    torch.testing.assert_close(got, diffusion.model(x, t, classes, cond_drop_prob=0.0))


def test_other_diffusions_of_the_library_are_refused():
    class ElucidatedDiffusion(GaussianDiffusion):
        pass

    with pytest.raises(ValueError, match=r"or one of GaussianDiffusion, .*: got Elucidated"):
        wrap(made(ElucidatedDiffusion, made(Unet), "pred_v"), "denoising-diffusion")
