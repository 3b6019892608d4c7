"""Heads on activations of every layout."""

import pytest
import torch

from gms_fast.models.activations import Layout
from gms_fast.models.heads import FORMS, Heads

CASES = {  # layout, activations and samples of a batch of 3
    "map": (Layout("map", 32, 1), (32, 8, 8), (1, 8, 8)),
    "coarse map": (Layout("map", 48, 2), (48, 4, 3), (3, 8, 6)),
    "odd features": (Layout("map", 7, 1), (7, 8, 8), (1, 8, 8)),
    "tokens": (Layout("tokens", 96, 2), (16, 96), (4, 8, 8)),
    "packed": (Layout("last", 96, 1), (16, 96), (16, 12)),
    "sequence": (Layout("map", 16, 1), (16, 20), (2, 20)),
    "volume": (Layout("tokens", 32, 2), (8, 32), (1, 4, 4, 4)),
    "vector": (Layout("map", 24, 1), (24,), (2,)),
}
SIGMA = torch.tensor([0.002, 1.0, 80.0])


def made(layout, shape, form="complex", **options):
    torch.manual_seed(0)
    channels = shape[-1] if layout.kind == "last" else shape[0]
    return Heads(layout, channels, len(shape) - 1, form, **{"positive": True, **options})


def given(h, shape):
    return torch.randn(3, *h), torch.randn(3, *shape), SIGMA.atan().view(-1, *[1] * len(shape))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_moments_are_shaped_like_samples_and_every_weight_learns(case, form):
    layout, h, shape = CASES[case]
    heads, inputs = made(layout, shape, form), given(h, shape)
    second, third = heads(*inputs)
    assert second.shape == third.shape == (3, *shape)
    assert torch.allclose(second, torch.full_like(second, 0.6931), atol=1e-4)  # softplus of zero
    assert not third.any()
    with torch.no_grad():
        for weight in heads.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    sum(moment.square().sum() for moment in heads(*inputs)).backward()
    assert all(weight.grad.abs().sum() > 0 for weight in heads.parameters())


@pytest.mark.parametrize("case", CASES)
def test_samples_do_not_see_each_other(case):
    layout, h, shape = CASES[case]
    heads, inputs = made(layout, shape), given(h, shape)
    with torch.no_grad():
        heads.out[-1].weight.normal_()
        both, one = heads(*inputs), heads(*(v[1:2] for v in inputs))
    for whole, alone in zip(both, one, strict=True):
        torch.testing.assert_close(whole[1:2], alone)


def test_complex_heads_know_the_noise_level():
    layout, h, shape = CASES["map"]
    heads = made(layout, shape)
    with torch.no_grad():
        for weight in heads.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
        act, x, angle = given(h, shape)
        second, _ = heads(act[:1].expand(3, -1, -1, -1), x, angle)
    assert not torch.allclose(second[0], second[1])
    assert not torch.allclose(second[1], second[2])


def test_second_moment_is_positive_only_where_it_is_asked_for():
    layout, h, shape = CASES["map"]
    for positive in (True, False):
        heads = made(layout, shape, positive=positive)
        with torch.no_grad():
            heads.out[-1].bias.fill_(-2.0)
            second, third = heads(*given(h, shape))
        assert bool((second > 0).all()) is positive
        assert bool((third == -2).all())


def test_heads_take_activations_of_a_narrow_network():
    layout, h, shape = CASES["tokens"]
    act, *others = given(h, shape)
    assert made(layout, shape)(act.bfloat16(), *others)[0].dtype == torch.float32
    assert made(layout, shape).bfloat16()(act, *others)[0].dtype == torch.bfloat16
