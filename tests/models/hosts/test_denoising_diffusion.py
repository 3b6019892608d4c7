"""Networks of denoising-diffusion-pytorch."""

import pytest
import torch
from host_networks import made, normal

import gms_fast
from gms_fast.models import wrap
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


class Unet(torch.nn.Module):
    """The attributes and the call of a network of denoising-diffusion-pytorch."""

    def __init__(self, self_condition=False, classes=False):
        super().__init__()
        self.channels, self.self_condition = 3, self_condition
        self.conv = torch.nn.Conv2d(3, 3, 3, padding=1)
        if classes:
            self.classes_emb = torch.nn.Embedding(4, 1)

    def forward(self, x, time, classes=None, cond_drop_prob=0.5):
        y = self.conv(x) + torch.sin(time / 9).reshape(-1, 1, 1, 1)
        if classes is None:
            return y
        dropped = torch.rand(len(x)) < cond_drop_prob
        return y + self.classes_emb(classes).reshape(-1, 1, 1, 1) * ~dropped.reshape(-1, 1, 1, 1)


class GaussianDiffusion(torch.nn.Module):
    """The training of a network as denoising-diffusion-pytorch keeps it."""

    def __init__(self, model, objective, image_size=(4, 4)):
        super().__init__()
        self.model, self.objective, self.channels, self.image_size = model, objective, 3, image_size
        self.register_buffer("betas", torch.linspace(0.002, 0.3, 50))

    def sample(self, batch_size):
        raise AssertionError


@pytest.mark.parametrize(("objective", "form"), [("pred_noise", "noise"), ("pred_x0", "x0"), ("pred_v", "v")])
def test_denoising_diffusion(objective, form):
    model = wrap(made(GaussianDiffusion, made(Unet), objective))
    assert (model.sample_shape, model.prediction, model.clip, model.schedule.T) == ((3, 4, 4), form, (-1.0, 1.0), 50)
    assert model.schedule.network_time(49) == 49
    assert gms_fast.sample(model, 5, n=2, solver="ddim").shape == (2, 3, 4, 4)


def test_denoising_diffusion_alone_tells_neither_schedule_nor_prediction():
    with pytest.raises(ValueError, match="schedule must be given: Unet does not tell it"):
        wrap(made(Unet), "denoising-diffusion")
    with pytest.raises(ValueError, match="prediction must be given: Unet does not tell it"):
        wrap(made(Unet), "denoising-diffusion", schedule=VPLinear())


def test_self_conditioning_is_refused():
    network = made(Unet, self_condition=True)
    for whole in (network, made(GaussianDiffusion, network, "pred_v")):
        with pytest.raises(ValueError, match=r"not ask for its own last answer.*Unet\(self_condition=True"):
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
