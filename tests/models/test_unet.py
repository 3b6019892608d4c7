"""The U-Net: its heads, times, initial values and errors."""

import json
import math

import pytest
import torch

import gms_fast
from gms_fast.models import MomentUNet
from gms_fast.models.unet import ComplexHead, SimpleHead, timestep_embedding
from gms_fast.schedules import VPCosine, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def network(**options):
    torch.manual_seed(0)
    small = {"image_size": 8, "in_channels": 2, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
    return MomentUNet(**small | {"attention_resolutions": (2,)} | options).eval()


def awake(model):
    """The network with random values in place of its zero-initialised weights."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("head", ["simple", "complex", ("simple", "complex")])
@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (1, 2, 4, 12), (0, 2, 8, 8)])
@torch.no_grad()
def test_network_with_heads_gives_three_moments(head, shape):
    moments = awake(network(head=head))(torch.randn(shape), torch.zeros(shape[0]))
    assert isinstance(moments, gms_fast.NoiseMoments)
    for e in moments:
        assert e.shape == shape
        assert not torch.equal(e, torch.zeros_like(e)) or shape[0] == 0
    assert not torch.equal(moments.e2, moments.e3) or shape[0] == 0


@torch.no_grad()
def test_each_head_has_the_form_asked_for():
    heads = {"simple": SimpleHead, "complex": ComplexHead, None: type(None)}
    for head in ("simple", "complex", ("simple", "complex"), ["complex", "simple"], ("simple", None)):
        model = network(head=head)
        second, third = (head, head) if isinstance(head, str) else head
        assert (type(model.out2), type(model.out3)) == (heads[second], heads[third])
        assert model.config["head"] == (head if isinstance(head, str) else list(head))
        again = MomentUNet(**json.loads(json.dumps(model.config)))
        assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("options", [{}, {"moments": "central", "normalised": True}], ids=str)
@torch.no_grad()
def test_second_moment_may_be_the_only_one(options):
    model, x, t = awake(network(head=("complex", None), **options)), torch.randn(2, 2, 8, 8), torch.tensor([3.0, 600])
    assert model.has_heads
    e1, e2, e3 = model(x, t)
    assert e3 is None
    assert e2.shape == x.shape
    assert torch.equal(e1, model.first_moment(x, t))
    assert gms_fast.sample(model, 3, solver="sn-ddpm", n=2).isfinite().all()
    with pytest.raises(ValueError, match="model must return NoiseMoments with 3 moments for GMS, but returns 2"):
        gms_fast.sample(model, 3, solver="gms", n=2)


@torch.no_grad()
def test_normalised_heads_are_scaled_by_powers_of_alpha():
    model = awake(network(moments="central", normalised=True))
    x, t = torch.randn(4, 2, 8, 8), torch.tensor([0.0, 500, 998.5, 999])
    alpha = model.schedule.alpha(model.schedule.from_network_time(t)).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(model.levels(t, x).unit, alpha, rtol=1.4e-5, atol=0)  # a chord of exp: (beta_T/2)^2/8
    moments, (second, third) = model(x, t), model.heads(*model.features(x, t))
    torch.testing.assert_close(moments.e2, alpha**2 * second, rtol=3e-5, atol=0)
    torch.testing.assert_close(moments.e3, alpha**3 * third, rtol=4e-5, atol=0)
    assert (moments.e2 > 0).all()
    assert network(moments="central", normalised=True).state_dict().keys() == network().state_dict().keys()
    half = model.bfloat16()(x.bfloat16(), t)
    torch.testing.assert_close(half.e2.float(), moments.e2, rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("rescale_time", [None, False, True])
@pytest.mark.parametrize("time_shift", [0, 1])
def test_units_of_the_heads_are_of_the_time_that_the_network_is_asked_at(rescale_time, time_shift):
    schedule = VPCosine(T=50, time_shift=time_shift, rescale_time=rescale_time)
    model, t = network(moments="central", normalised=True, schedule=schedule), torch.tensor([0.0, 7, 31, 49])
    alpha = schedule.alpha(t).float().view(-1, 1, 1, 1)
    # float32 rounds a time of 50 by 3e-6, where alpha falls by 1/20 in a unit of time, and alpha by 6e-8 twice
    torch.testing.assert_close(model.levels(model.schedule.network_time(t), alpha).unit, alpha, rtol=0, atol=3e-7)
    assert float(model.schedule.network_time(49)) == (49 + time_shift) * (1 if rescale_time is False else 20)


@torch.no_grad()
def test_network_without_heads_gives_the_noise_alone():
    model = awake(network(head=None))
    assert not model.has_heads
    assert model(torch.randn(2, 2, 8, 8), torch.zeros(2)).shape == (2, 2, 8, 8)


@torch.no_grad()
def test_learned_variance_channels_are_left_out():
    wide, x, t = awake(network(head="simple", out_channels=4)), torch.randn(2, 2, 8, 8), torch.tensor([3.0, 600])
    e1 = wide(x, t).e1
    assert e1.shape == x.shape
    assert torch.equal(e1, wide.out(wide.features(x, t)[0])[:, :2])


@pytest.mark.parametrize("head", [None, "simple", "complex"])
@torch.no_grad()
def test_network_starts_at_zero(head):
    moments = network(head=head)(torch.randn(2, 2, 8, 8), torch.tensor([0.0, 500]))
    for e in [moments] if head is None else moments:
        assert torch.equal(e, torch.zeros_like(e))


@torch.no_grad()
def test_every_sample_has_its_own_time():
    model, x = awake(network()), torch.randn(1, 2, 8, 8).expand(3, -1, -1, -1)
    t = torch.tensor([0.0, 250, 999])
    e1 = model(x, t).e1
    assert (e1[0] - e1[1]).abs().max() > 1e-4
    assert (e1[1] - e1[2]).abs().max() > 1e-4
    torch.testing.assert_close(model(x, t.flip(0)).e1, e1.flip(0), rtol=0, atol=1e-5)


def test_timestep_embedding_is_cosines_then_sines():
    t = torch.tensor([0.0, 1.0, 999.0])
    features = timestep_embedding(t, 8)
    for row, time in zip(features.tolist(), t.tolist(), strict=True):
        angles = [time * 10_000 ** (-i / 4) for i in range(4)]
        want = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert row == pytest.approx(want, abs=999 * 2**-23)  # float32 rounds the angle
    assert timestep_embedding(t, 7).shape == (3, 7)
    assert timestep_embedding(t, 7)[:, -1].tolist() == [0, 0, 0]


def test_defaults_for_sampling_come_with_the_network():
    model = network(schedule=VPCosine(T=50), moments="central")
    assert model.sample_shape == (2, 8, 8)
    assert (model.prediction, model.moments, model.schedule.T) == ("noise", "central", 50)
    assert model.clip == (-1.0, 1.0)
    assert isinstance(network().schedule, VPLinear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear"}, "head must be None, .* got 'linear'"),
        ({"head": ("simple", "linear")}, r"head must be None, .* or a pair of these: got \('simple', 'linear'\)"),
        ({"head": ["simple"]}, r"head must be None, .* or a pair of these: got \['simple'\]"),
        (
            {"head": (None, "simple")},
            r"head must not have a third moment without .*: got \(None, 'simple'\)",
        ),
        ({"normalised": True}, "normalised heads need moments=\"central\" and a head: got 'raw'"),
        ({"normalised": True, "moments": "central", "head": None}, "normalised heads need .* head=None"),
        ({"normalised": True, "moments": "central", "head": (None, None)}, "normalised heads need .* head="),
        ({"moments": "cumulants"}, "moments must be .* got 'cumulants'"),
        ({"image_size": float("nan")}, "image_size must be an integer from 1 .*: got nan"),
        ({"image_size": True}, "image_size must be an integer from 1 .*: got True"),
        ({"dropout": float("nan")}, r"dropout must be a finite number in \[0, 1\): got nan"),
        ({"dropout": 1}, r"dropout must be .*: got 1$"),
        ({"out_channels": 0}, "out_channels must be an integer from 1 .*: got 0"),
        ({"out_channels": 5}, "out_channels must be 2 or 4, or None: got 5"),
        ({"channel_mult": ()}, r"channel_mult must be a list of 1 to 32, .*: got \(\)"),
        ({"num_res_blocks": 10**6}, "num_res_blocks must be an integer from 1 to 1000: got 1000000"),
        ({"num_heads": 0}, "num_heads must be an integer from 1 .*: got 0"),
        ({"model_channels": 48}, "model_channels must be a multiple of 32: got 48"),
        ({"num_heads": 5}, "num_heads must divide the channels: got 5 heads for 64 channels"),
    ],
)
def test_network_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 8, 8), (1, 2, 7, 8), (1, 2, 8, 5)])
def test_network_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"x must be \(B, 2, H, W\) with H and W divisible by 2: got"):
        network()(torch.zeros(shape), torch.zeros(1))
