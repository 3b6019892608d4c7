"""Networks of other libraries as models: detection, conversion and errors."""

import functools

import pytest
import torch
from host_networks import EDMPrecond, UNetModel, made, normal

import gms_fast
from gms_fast.models import wrap
from gms_fast.schedules import EDM, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def test_weights_mode_and_device_are_those_of_the_network():
    network = made(UNetModel)
    model = wrap(network, schedule=VPLinear())
    assert [id(p) for p in model.parameters()] == [id(p) for p in network.parameters()]
    assert not model.training
    assert wrap(network.train(), schedule=VPLinear()).training
    bound = functools.partial(made(UNetModel, num_classes=3), y=torch.tensor([1, 2]))
    model = wrap(bound, schedule=VPLinear())  # the partial provides its labels
    assert len(list(model.parameters())) == 2
    assert gms_fast.sample(model, 3, solver="ddim", n=2).shape == (2, 3, 4, 4)


@pytest.mark.parametrize(
    "around", [torch.nn.DataParallel, torch.optim.swa_utils.AveragedModel, torch.compile, functools.partial]
)
def test_wrappers_are_looked_through(around):
    model = wrap(around(made(UNetModel)), schedule=VPLinear())
    assert (model.sample_shape, model.dtype) == ((3, 4, 4), torch.float64)


def test_copies_are_models_of_their_own():
    network = made(UNetModel)
    model = wrap(network, schedule=VPLinear())
    average = torch.optim.swa_utils.AveragedModel(model)
    x, t = normal(2, 3, 4, 4), torch.full((2,), 500.0)
    before = average(x, t)
    with torch.no_grad():
        network.out.weight.zero_()
    torch.testing.assert_close(average(x, t).e1, before.e1)
    assert float((model(x, t).e1 - before.e1).abs().max()) > 0.1


class Labelled(UNetModel):
    """A network that records its arguments."""

    def forward(self, x, timesteps, **conditions):
        self.given = conditions
        return super().forward(x, timesteps, None if self.num_classes is None else conditions["y"])


def test_conditions_of_all_samples_and_of_single_ones():
    network = made(Labelled, num_classes=5)
    model = wrap(network, schedule=VPLinear(), y=torch.tensor([3]), extra={"text": torch.ones(1, 2, 7), "scale": 2.0})
    gms_fast.sample(model, 2, solver="ddim", n=3)
    assert network.given["y"].tolist() == [3, 3, 3]
    assert network.given["extra"]["text"].shape == (3, 2, 7)
    assert network.given["extra"]["text"].dtype == torch.float64  # as the network
    assert network.given["extra"]["scale"] == 2.0
    labels = torch.arange(3)
    whole = gms_fast.sample(model, 2, solver="ddim", n=3, condition={"y": labels})
    assert network.given["y"].tolist() == [0, 1, 2]
    parts = gms_fast.sample(model, 2, solver="ddim", n=3, condition={"y": labels}, batch_size=1)
    torch.testing.assert_close(parts, whole)
    assert network.given["y"].tolist() == [2]


@pytest.mark.parametrize("name", ["y", "extra"])
def test_conditions_of_another_number_of_samples_are_refused(name):
    labels = torch.arange(2)
    given = {"y": torch.tensor([1]), **({"y": labels} if name == "y" else {"extra": {"text": labels}})}
    model = wrap(made(Labelled, num_classes=5), schedule=VPLinear(), **given)
    with pytest.raises(ValueError, match=r"(y|extra\['text'\]) must have 1 row or 3 rows.*: got \(2,\); .*`condition`"):
        gms_fast.sample(model, 2, solver="ddim", n=3)


def test_missing_labels_are_named_before_the_network_is_called():
    network = made(UNetModel, num_classes=5)
    with pytest.raises(
        ValueError, match=r"y must be given, as in wrap\(network, y=\.\.\.\) or sample\(.*: UNetModel needs"
    ):
        gms_fast.sample(wrap(network, schedule=VPLinear()), 2, solver="ddim", n=2)
    assert not network.times


@pytest.mark.parametrize("moments", ["raw", "central"])
def test_a_network_may_give_moments_itself(moments):
    class Moments(UNetModel):
        def forward(self, x, timesteps, y=None):
            return 0.8 * x, 0.3 * x * x

    model = wrap(Moments(), schedule=VPLinear(), moments=moments)
    assert model.moments == moments
    x = normal(2, 3, 4, 4).float()
    assert model(x, torch.zeros(2)).e2.equal(0.3 * x * x)


def test_outputs_of_other_shapes_are_refused():
    class Wide(UNetModel):
        def forward(self, x, timesteps, y=None):
            return torch.cat([x, x, x], 1)

    with pytest.raises(
        ValueError, match=r"network must return as many channels as x, \(1, 3, 4, 4\): got \(1, 9, 4, 4\)"
    ):
        wrap(Wide(), schedule=VPLinear())(normal(1, 3, 4, 4), torch.zeros(1))
    with pytest.raises(ValueError, match=r'"learned-range" and schedule must be a VP .*returns 6 channels for 3'):
        wrap(made(UNetModel), schedule=EDM())(normal(1, 3, 4, 4), torch.zeros(1))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"network": 3}, TypeError, "network must be callable, a pipeline, or .*: got int"),
        ({"network": torch.nn.Linear(1, 1)}, ValueError, "kind must be given, one of diffusers, .* class Linear"),
        ({"kind": "keras"}, ValueError, "kind must be one of diffusers, .*, or None: got 'keras'"),
        (
            {"moments": "second"},
            ValueError,
            "moments must be one of raw, central, learned-range, or None: got 'second'",
        ),
        ({"prediction": "score"}, ValueError, "prediction must be one of noise, .*: got 'score'"),
        ({"schedule": "fast"}, ValueError, "schedule must be one of .*: got 'fast'"),
        ({"schedule": None}, ValueError, "schedule must be given: it cannot be read from UNetModel"),
    ],
)
def test_arguments_that_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        wrap(**{"network": made(UNetModel), "schedule": "linear", **arguments})


def test_conditions_that_are_bound_are_needed_no_more():
    network = EDMPrecond(label_dim=3).eval()
    assert wrap(network).needed == ("class_labels",)
    assert wrap(network, class_labels=torch.zeros(1, 3)).needed == ()
    assert wrap(functools.partial(network, class_labels=torch.zeros(1, 3))).needed == ()
