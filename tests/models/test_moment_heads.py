"""Moment heads on any network: one call, an unchanged network, and no needless work."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from host_networks import EDMPrecond, SpacedDiffusion, UNetModel
from strange_networks import OF_PICTURES, convolutional, learned
from torch import nn

import gms_fast
from gms_fast import guidance, models, schedules
from gms_fast.models import MomentHeads
from gms_fast.types import NoiseMoments

pytestmark = pytest.mark.usefixtures("one_thread")
X, T = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([10.0, 500, 900])


def heads(network=None, features="last", **options):
    network = network or convolutional()
    torch.manual_seed(0)
    return learned(MomentHeads(network, features, **{**OF_PICTURES, **options}))


@torch.no_grad()
def test_moments_come_with_the_first_one_of_the_network():
    network = convolutional()
    model = heads(network)
    e1, e2, e3 = model(X, T)
    assert torch.equal(e1, network(X, T))
    assert e2.shape == e3.shape == X.shape
    assert (e2 > 0).all()
    assert (e3 != 0).any()
    assert torch.equal(model.first_moment(X, T), e1)


@pytest.mark.parametrize("form", ["noise", "x0", "v", "flow", "edm"])
@pytest.mark.parametrize(
    "schedule", [schedules.VPLinear(), schedules.EDM(), schedules.Flow(), schedules.VPContinuous()]
)
@torch.no_grad()
def test_any_prediction_on_any_schedule_is_sampled_as_the_bare_network_is(form, schedule):
    """E[x_0|x_t] from e1 of the moments equals that of the network's own form, up to rounding."""
    network = convolutional()
    model = heads(network, schedule=schedule, prediction=form)
    times = schedule.timesteps(4)
    times = times if float(schedule.alpha(times[0])) > 0 else [0.98, *times[1:]]
    options = {"timesteps": times, "schedule": schedule, "clip": None, "prediction": form, "shape": (1, 8, 8), "n": 2}
    options["x_T"] = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    bare = gms_fast.sample(lambda x, t: network(x, t), solver="ddim", **options)
    assert torch.equal(gms_fast.sample(model, solver="ddim", **options), bare)
    moments = lambda x, t: model(x, t)._replace(e2=None, e3=None)  # noqa: E731 - so that the heads' own call is asked
    torch.testing.assert_close(gms_fast.sample(moments, solver="ddim", **options), bare, rtol=2e-3, atol=2e-3)
    assert gms_fast.sample(model, solver="gms", **options).isfinite().all()


def test_heads_are_skipped_where_nobody_reads_them():
    model, called = heads(), []
    model.heads.register_forward_hook(lambda *_: called.append(1))
    gms_fast.sample(model, 4, solver="ddim", n=2)
    assert not called
    gms_fast.sample(model, 4, solver="sn-ddpm", n=2)
    assert len(called) == 4  # not in the last call, which computes one moment


def test_heads_are_skipped_with_a_condition_and_under_guidance_too():
    network = convolutional(classes=3)
    label = {"label": torch.tensor([1])}
    model, called = heads(network, condition=label), []
    model.heads.register_forward_hook(lambda *_: called.append(1))
    condition = {"label": torch.tensor([0, 2])}
    bare = gms_fast.sample(network, 4, solver="ddim", n=2, condition=condition, clip=(-1, 1), **shape())
    assert torch.equal(gms_fast.sample(model, 4, solver="ddim", n=2, condition=condition), bare)
    guided = guidance.ClassifierFree(model, unconditional=label, scale=2.0)
    of_network = guidance.ClassifierFree(network, unconditional=label, scale=2.0, schedule=OF_PICTURES["schedule"])
    bare = gms_fast.sample(of_network, 4, solver="ddim", n=2, condition=condition, clip=(-1, 1), shape=(1, 8, 8))
    assert torch.equal(gms_fast.sample(guided, 4, solver="ddim", n=2, condition=condition), bare)
    assert not called
    assert gms_fast.sample(guided, 4, n=2, condition=condition).isfinite().all()
    assert called


def shape():
    return {"shape": OF_PICTURES["sample_shape"], "schedule": OF_PICTURES["schedule"], "prediction": "noise"}


@torch.no_grad()
def test_guided_moments_are_those_of_the_conditional_network_about_the_guided_mean():
    network = convolutional(classes=3)
    none, given = torch.tensor([0]), torch.tensor([1, 2, 1])
    model = heads(network, condition={"label": none})
    guided = guidance.ClassifierFree(model, {"label": given}, {"label": none}, scale=3.0)
    e1, e2, e3 = guided(X, T)
    of_none, of_given = network(X, T, none.expand(3)), network(X, T, given)
    torch.testing.assert_close(e1, of_none + 3 * (of_given - of_none))
    torch.testing.assert_close((e2, e3), model(X, T, label=given)[1:])


@torch.no_grad()
def test_compiled_heads_are_the_plain_ones():
    model = heads()
    compiled = torch.compile(model, fullgraph=True)
    for plain, made in zip(model(X, T), compiled(X, T), strict=True):
        torch.testing.assert_close(made, plain, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_narrow_networks_keep_heads_in_float32_or_take_them_along():
    wide, narrow = heads(), heads(convolutional().bfloat16())
    assert narrow.dtype == torch.bfloat16
    for model in (narrow, heads().bfloat16()):
        assert gms_fast.sample(model, 3, n=2).dtype == torch.float32
        e1, e2, _ = model(X.bfloat16(), T)
        assert (e1.dtype, e2.dtype) == (torch.bfloat16, torch.float32)
        torch.testing.assert_close(e2, wide(X, T).e2, rtol=0.1, atol=0.02)


def test_network_is_left_as_it_was():
    network = convolutional()
    before, flags = copy.deepcopy(network.state_dict()), [w.requires_grad for w in network.parameters()]
    model = heads(network)
    model.train()
    assert not network.training
    assert model.heads.training
    gms_fast.sample(model.eval(), 3, n=1)
    assert [w.requires_grad for w in network.parameters()] == flags
    assert all(torch.equal(w, before[n]) for n, w in network.state_dict().items())
    assert {n.partition(".")[0] for n in model.head_parameters()} == {"heads"}


def test_copies_have_activations_of_their_own():
    model = heads()
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.network.first.weight.zero_()
        assert not torch.equal(other(X, T).e2, model(X, T).e2)


@torch.no_grad()
def test_two_heads_on_one_network_do_not_disturb_each_other():
    network = convolutional()
    first, second = heads(network), heads(network, "norm")
    want = first(X, T)
    second(X, T)
    assert all(torch.equal(a, b) for a, b in zip(first(X, T), want, strict=True))


@torch.no_grad()
def test_known_kinds_are_wrapped_and_their_activations_found():
    model = heads((UNetModel(channels=1).eval(), SpacedDiffusion()), None, schedule=None, prediction=None,
                  sample_shape=(1, 4, 4))  # fmt: skip
    assert (model.features, model.prediction, model.layout.of_moments) == ("out", "noise", True)
    wrapped = models.wrap((UNetModel(channels=1).eval(), SpacedDiffusion()))
    x = X[:, :, :4, :4]
    assert torch.equal(heads(wrapped, None, schedule=None, prediction=None)(x, T).e1, wrapped(x, T).e1)


def test_raw_moments_and_plain_central_ones_are_in_no_unit():
    for options in ({"moments": "raw"}, {"normalised": False}):
        model = heads(**options)
        assert not model.normalised
        second, third = model.heads(*model.observed(X, T)[1])
        assert torch.equal(model(X, T).e2, second)
        assert torch.equal(model(X, T).e3, third)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.last = nn.Conv2d(1, 1, 1)
        nn.init.ones_(self.last.weight)  # a weight near zero would hide what comes before it

    def forward(self, x, t):
        return self.last(self.last(x))


class Doubled(Twice):
    def forward(self, x, t):
        return self.last(torch.cat([x, x]))[: len(x)] if len(x) > 1 else self.last(x)


def dropping():
    network = convolutional()
    network.norm = nn.Sequential(network.norm, nn.Dropout(0.5))
    network.norm.train()
    return network


class Dropping(Twice):
    def forward(self, x, t):
        return self.last(nn.functional.dropout(x, 0.5))


class Writing(Twice):
    def forward(self, x, t):
        return self.last(x.mul_(0.5))


@torch.no_grad()
def test_networks_may_write_to_their_input():
    model = heads(Writing().eval(), prediction="v")
    x = X.clone()
    e1 = model(x, T).e1
    assert torch.equal(x, X)
    level = model.levels(T, X)
    torch.testing.assert_close(e1, level.alpha * model.network.last(0.5 * X) + level.sigma * X)


def test_hooks_go_with_the_heads():
    network = convolutional()
    kept = heads(network)
    heads(network)
    with pytest.raises(ValueError, match="head must be"):
        heads(network, head="linear")
    gc.collect()
    assert len(network.last._forward_pre_hooks) == 1
    del kept
    gc.collect()
    assert not network.last._forward_pre_hooks


def test_heads_on_heads_are_refused():
    with pytest.raises(ValueError, match="network must not have heads already: got MomentHeads"):
        MomentHeads(heads())


def test_networks_set_to_training_later_are_refused():
    model = heads()
    model.network.norm.train()
    assert model(X, T).e1.isfinite().all()
    model.network.train()
    with pytest.raises(ValueError, match="network must be in eval mode"):
        model(X, T)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"network": Dropping().eval()},
            "network must be deterministic, without dropout: two calls with the same input differ",
        ),
        ({"features": "lst"}, "features must be the name of a module of Conv.*got 'lst'; the closest names are last"),
        ({"features": None}, "features must be given: the last activations of Convolutional are not known"),
        ({"features": "labels"}, "features must be the name of a module"),
        ({"network": Twice().eval()}, "features must be a module that runs once .*called 2 times"),
        ({"network": convolutional().train()}, "network must be in eval mode: Convolutional is in training mode"),
        ({"network": dropping()}, "network must be in eval mode: norm is in training mode"),
        ({"sample_shape": (1, 8, 6), "network": nn.Sequential()}, "features must be the name"),
        ({"schedule": None}, "schedule must be given"),
        (
            {"prediction": None},
            "prediction, one of noise, .*, must be given: this model has no attribute `prediction`$",
        ),
        ({"prediction": "score"}, "prediction, one of noise, .*, must be given: got 'score'$"),
        ({"sample_shape": None}, "sample_shape must be given"),
        ({"head": "linear"}, 'head must be "simple" or "complex"|head must be .*linear'),
        ({"moments": "cumulant"}, "moments must be .*cumulant"),
        ({"moments": "raw", "normalised": True}, 'moments must be "central" for normalised heads: got "raw"'),
        ({"data_std": 0.0}, "data_std must be "),
        ({"clip": (1, -1)}, "clip must be"),
    ],
)
def test_bad_input_is_named(change, message):
    given = {"network": convolutional(), "features": "last", **OF_PICTURES, **change}
    with pytest.raises(ValueError, match=message):
        MomentHeads(given.pop("network"), given.pop("features"), **given)


def test_what_is_no_network_is_refused():
    with pytest.raises(TypeError, match="network must be a torch"):
        MomentHeads(lambda x, t: x, "last", **OF_PICTURES)
    with pytest.raises(TypeError, match="network must be callable"):
        MomentHeads(3, "last", **OF_PICTURES)


def test_activations_of_another_batch_are_refused():
    model = heads(Doubled().eval())
    with pytest.raises(ValueError, match="features must have one row for each of 3 samples: 'last' got 6; apply"):
        model(X, T)


def test_conditional_networks_are_tried_with_a_condition():
    network = EDMPrecond(label_dim=3).eval()
    with pytest.raises(ValueError, match="condition must be given, with class_labels for one sample"):
        MomentHeads(network, "torso")
    labels = {"class_labels": torch.zeros(1, 3)}
    with pytest.raises(ValueError, match=r"features must be a module that runs once .*called 0 times"):
        MomentHeads(network, "torso", condition=labels)


def test_threads_do_not_see_each_other_s_activations():
    model = heads()
    inputs = [torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    t = torch.tensor([10.0, 500])
    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda x: model(x, t).e2, inputs))
        assert all(torch.equal(model(x, t).e2, e2) for x, e2 in zip(inputs, found, strict=True))


def test_moments_are_noise_moments():
    assert isinstance(heads()(X, T), NoiseMoments)
