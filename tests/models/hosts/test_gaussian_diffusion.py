"""Adapter for networks that come with a GaussianDiffusion."""

import pytest
import torch
from host_networks import SpacedDiffusion, UNetModel, made, normal

import gms_fast
from gms_fast import NoiseMoments
from gms_fast.models import wrap
from gms_fast.schedules import VP, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_pair_is_the_network_with_what_its_diffusion_says():
    network = made(UNetModel)
    alone, pair = wrap(network, schedule=VPLinear()), wrap((network, SpacedDiffusion()))
    x, t = normal(2, 3, 4, 4), torch.tensor([3.0, 700.0])
    assert (pair.sample_shape, pair.prediction, pair.schedule.T) == ((3, 4, 4), "noise", 1000)
    assert pair.network is network
    for got, want in zip(pair(x, t)[:2], alone(x, t)[:2], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(("rescale", "asked"), [(False, 3999.0), (True, 999.75)])
def test_times_are_asked_for_as_in_training(rescale, asked):
    network = made(UNetModel)
    model = wrap((torch.nn.DataParallel(network), SpacedDiffusion(times=4000, rescale=rescale)))
    gms_fast.sample(model, 2, n=1, solver="ddim")
    assert network.times[0] == asked


def test_second_half_is_a_learned_variance_only_where_the_diffusion_says_so():
    x, t = normal(2, 3, 4, 4), torch.tensor([3.0, 700.0])
    assert isinstance(wrap((made(UNetModel), SpacedDiffusion()))(x, t), NoiseMoments)
    with pytest.raises(ValueError, match='moments must be "learned-range"'):
        wrap((made(UNetModel), SpacedDiffusion(var="LEARNED")))(x, t)


def test_form_of_the_prediction():
    assert wrap((made(UNetModel), SpacedDiffusion("START_X"))).prediction == "x0"
    with pytest.raises(ValueError, match="must be one of EPSILON, START_X: got PREVIOUS_X"):
        wrap((made(UNetModel), SpacedDiffusion("PREVIOUS_X")))
    assert wrap((made(UNetModel), SpacedDiffusion("PREVIOUS_X")), prediction="v").prediction == "v"


def test_fewer_times_than_the_training_had_are_refused():
    pair = (made(UNetModel), SpacedDiffusion(kept=250))
    with pytest.raises(ValueError, match="all training times: got 250 of 1000"):
        wrap(pair)
    assert wrap(pair, schedule=VP(SpacedDiffusion().betas)).schedule.T == 1000
