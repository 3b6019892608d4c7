"""Objects as JSON: what tells one from another, and what is the same however it is held."""

import enum
import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from generated import Net
from host_networks import UNetModel, made
from torch import nn

from bench.faults.kills import tiny
from gms_fast import guidance, io, sample
from gms_fast.generation.described import described
from gms_fast.models import wrap
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def module_level(x):
    return x


def another(x):
    return x


class Kind(enum.Enum):
    ONE = 1
    TWO = 2


class Held:
    def __init__(self, **inside):
        self.__dict__.update(inside)

    def method(self, x):
        return x


def closure(value):
    return lambda x, t: value


def guided(scale=2.0, label=1, none=0, model=None):
    held = {"label": torch.tensor([label])}, {"label": torch.tensor([none])}
    return guidance.ClassifierFree(Net() if model is None else model, *held, scale=scale)


def changed(**attributes):
    model = Net()
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def led(scale=1.0, by=module_level):
    return guidance.Classifier(Net(), by, scale=scale)


def wrapped(label):
    return wrap(made(UNetModel, num_classes=3), schedule=VPLinear(), y=torch.tensor([label]))


def bound(label):
    return wrap(functools.partial(made(UNetModel, num_classes=3), y=torch.tensor([label])), schedule=VPLinear())


def filled(network):
    nn.init.zeros_(network.weight)
    return network


PAIRS = {
    "numbers": (1, 2),
    "number and text": (1, "1"),
    "number and float": (1, 1.0),
    "floats": (0.1, 0.1 + 1e-16),
    "truth and number": (True, 2),
    "tensors": (torch.zeros(3), torch.ones(3)),
    "shapes": (torch.zeros(3), torch.zeros(1, 3)),
    "dtypes of tensors": (torch.zeros(4), torch.zeros(4, dtype=torch.float64)),
    "zeros": (torch.zeros(2), -torch.zeros(2)),
    "arrays": (np.zeros(3), np.ones(3)),
    "numbers of numpy": (np.int64(3), np.int64(4)),
    "dtypes": (torch.float16, torch.bfloat16),
    "members": (Kind.ONE, Kind.TWO),
    "paths": (Path("a"), Path("b")),
    "sets": ({1, 2}, {1, 3}),
    "lists": ([1, 2], [2, 1]),
    "mappings": ({"a": 1}, {"a": 2}),
    "functions": (module_level, another),
    "classes": (Held, Kind),
    "partials": (functools.partial(module_level, 1), functools.partial(module_level, 2)),
    "keywords of partials": (functools.partial(module_level, a=1), functools.partial(module_level, a=2)),
    "functions of partials": (functools.partial(module_level, 1), functools.partial(another, 1)),
    "objects": (Held(scale=1), Held(scale=2)),
    "objects in objects": (Held(inner=Held(scale=1)), Held(inner=Held(scale=2))),
    "conditions of wrapped ones": (wrapped(1), wrapped(2)),
    "conditions bound to wrapped ones": (bound(1), bound(2)),
    "methods": (Held(scale=1).method, Held(scale=2).method),
    "methods of networks": (Net(0).forward, Net(1).forward),
    "networks in closures": (closure(Net(0)), closure(Net(1))),
    "numbers in closures": (closure(1.5), closure(2.5)),
    "weights": (Net(0), Net(1)),
    "weights in lists": ([Net(0)], [Net(1)]),
    "weights of partials": (functools.partial(Net(0), a=1), functools.partial(Net(1), a=1)),
    "classes of networks": (nn.Identity(), nn.Flatten(0)),
    "numbers of networks": (changed(gain=1.0), changed(gain=2.0)),
    "scales": (guided(2.0), guided(3.0)),
    "conditions that are held": (guided(label=1), guided(label=2)),
    "held for none": (guided(none=0), guided(none=3)),
    "guided networks": (guided(), guided(model=Net(1))),
    "guided functions": (guided(model=module_level), guided(model=another)),
    "guidance and none": (guided(), Net()),
    "scales inside": (guided(model=guided(2.0)), guided(model=guided(3.0))),
    "scales of classifiers": (led(1.0), led(2.0)),
    "classifiers": (led(by=module_level), led(by=another)),
    "classifier networks": (led(by=nn.Linear(2, 2)), led(by=filled(nn.Linear(2, 2)))),
}


@pytest.mark.parametrize("pair", PAIRS)
def test_what_differs_is_told_apart(pair):
    one, other = (described(value) for value in PAIRS[pair])
    assert one != other
    assert json.loads(json.dumps(one)) == one, "it must be of JSON"


def test_network_that_was_loaded_from_another_folder_is_the_same(tmp_path):
    for name in "ab":
        io.save(tiny(), tmp_path / name)
    one, other = (io.load(tmp_path / name) for name in "ab")
    assert one.origin != other.origin
    assert described(one) == described(other) == described(tiny())
    assert described(tiny(1)) != described(one)


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda model: torch.compile(model, backend="eager"), lambda model: model.train().eval()],
    ids=["parallel", "compiled", "trained"],
)
def test_wrappers_that_change_nothing_are_not_seen(wrap):
    assert described(wrap(Net())) == described(Net())
    assert described(wrap(guided())) == described(guided())


def test_compiled_network_that_is_guided_is_the_same():
    assert described(guided(model=torch.compile(Net(), backend="eager"))) == described(guided())


@pytest.mark.parametrize(
    "make",
    [
        Net,
        tiny,
        lambda: guidance.ClassifierFree(Net(), {"brightness": torch.ones(1)}, {"brightness": torch.zeros(1)}, scale=2),
        lambda: torch.compile(Net(), backend="eager"),
        lambda: wrapped(1),
    ],
    ids=["network", "own network", "guided", "compiled", "wrapped"],
)
def test_network_that_was_used_is_the_same_as_a_new_one(make):
    model, before = make(), described(make())
    sample(model, 2, solver="ddim", n=2)
    assert described(model) == before


def test_notes_that_a_function_makes_are_not_of_it():
    noted, network = [], Net()

    def model(x, t):
        noted.append(len(x))
        return network(x, t)

    before = described(model)
    assert before == described(model)
    model(torch.zeros(2, 1, 4, 4), torch.zeros(2))
    assert described(model) == before


def test_circles_end():
    one, network = Held(), Net()
    one.self, network.call, network.held = one, network.forward, {"it": network}
    for circle in (one, network):
        assert json.dumps(described(circle))
    nested = Held()
    for _ in range(50):
        nested = Held(inner=nested)
    assert len(json.dumps(described(nested))) < 1000
