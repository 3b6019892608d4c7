"""Descriptions of objects: different for different objects, independent of wrappers."""

import enum
import functools
import json
import os
import shutil
import subprocess
import sys
import types
from argparse import Namespace
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


class Lambda(nn.Module):
    """Network that keeps its argument in a private attribute."""

    def __init__(self, **inside):
        super().__init__()
        for name, value in inside.items():
            setattr(self, f"_{name}", value)

    def forward(self, x, t):
        return x


class Sine(nn.Module):
    def forward(self, x, t):
        return x.sin()


def renamed(forward):
    return type("Sine", (nn.Module,), {"forward": forward})()


def filled(network):
    nn.init.zeros_(network.weight)
    return network


def within(*layers):
    return nn.Sequential(nn.Identity(), *layers)


def dropping():
    model = within(nn.Dropout(0.5)).eval()
    model[1].train()
    return model


def calling(number):
    """Network whose function calls one of its layers."""
    model = within(nn.ReLU(), nn.ReLU())
    inner = model[1 + number]
    model.act = lambda x: inner(x)
    return model


def configured(**config):
    model = Net()
    model.__class__ = type("Configured", (Net,), {"config": property(lambda _: config)})
    return model


def buffered(value):
    model = nn.Sequential(nn.Identity())
    model[0].register_buffer("table", torch.tensor([value]), persistent=False)
    return model


def scaled(by):
    return lambda z: z / by.scale


def module_of(**numbers):
    module = types.ModuleType("of_numbers")
    vars(module).update(numbers)
    return module


def functions_of(number):
    """Functions of a module whose inner function has a number in its code."""
    found = {"__name__": "a_module"}
    exec(f"def inner(z): return z / {number}\ndef outer(z): return inner(z)", found)
    return found


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
    "numbers in code": (lambda z: z / 0.18215, lambda z: z / 0.13025),
    "numbers in code in code": (lambda z: (lambda y: y / 2)(z), lambda z: (lambda y: y / 3)(z)),
    "names in code": (lambda z: z.sin(), lambda z: z.cos()),
    "operations": (lambda z: z + 2, lambda z: z - 2),
    "sets in code": (lambda z: z in {"a", "b"}, lambda z: z in {"a", "c"}),
    "defaults": (lambda z, by=2: z / by, lambda z, by=3: z / by),
    "defaults by name": (lambda z, *, by=2: z / by, lambda z, *, by=3: z / by),
    "functions that are called": (functions_of(1)["outer"], functions_of(2)["outer"]),
    "arguments that are named": (scaled(Namespace(scale=1)), scaled(Namespace(scale=2))),
    "numbers of modules": (scaled(module_of(scale=1)), scaled(module_of(scale=2))),
    "networks of pipelines": (closure(Held(vae=Net(0))), closure(Held(vae=Net(1)))),
    "private numbers of objects": (Held(_scale=1.0), Held(_scale=2.0)),
    "functions that networks hold": (changed(act=torch.tanh), changed(act=torch.sin)),
    "slopes": (within(nn.LeakyReLU(0.1)), within(nn.LeakyReLU(0.9))),
    "slopes of the outermost": (nn.LeakyReLU(0.1), nn.LeakyReLU(0.9)),
    "layers": (within(nn.LeakyReLU(0.1)), within(nn.Sigmoid())),
    "code of layers": (within(Sine()), within(renamed(lambda self, x, t: x.cos()))),
    "private numbers": (Lambda(w=2.0), Lambda(w=3.0)),
    "private numbers inside": (within(Lambda(w=2.0)), within(Lambda(w=3.0))),
    "private tuples inside": (within(Lambda(w=(1, 2.0))), within(Lambda(w=(1, 3.0)))),
    "public numbers inside": (within(changed(gain=1.0)), within(changed(gain=2.0))),
    "configurations": (configured(freq_shift=0), configured(freq_shift=1)),
    "configurations inside": (within(configured(freq_shift=0)), within(configured(freq_shift=1))),
    "configurations deep inside": (within(configured(a=[[1], [(2, 3)]])), within(configured(a=[[1], [(2, 4)]]))),
    "layers that are called": (calling(0), calling(1)),
    "buffers that are not saved": (buffered(0.0), buffered(1.0)),
    "modes": (Net().train(), Net().eval()),
    "modes inside": (within(nn.Dropout(0.5)).eval(), dropping()),
    "guided modes": (guided(model=within(nn.Dropout(0.5)).eval()), guided(model=dropping())),
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
    assert described(one) == described(other) == described(tiny().eval())
    assert described(tiny(1)) != described(one)


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, lambda model: torch.compile(model, backend="eager"), lambda model: model.eval().train()],
    ids=["parallel", "compiled", "trained"],
)
def test_wrappers_that_change_nothing_are_not_seen(wrap):
    assert described(wrap(Net())) == described(Net())
    assert described(wrap(guided())) == described(guided())


EQUAL = {
    "functions": lambda: lambda z: z / 0.18215,
    "functions that are called": lambda: functions_of(1)["outer"],
    "sets in code": lambda: lambda z: z in {"a", "b", "c"},
    "layers": lambda: within(nn.LeakyReLU(0.1), Lambda(w=2.0), buffered(1.0)),
    "pipelines": lambda: closure(Held(vae=Net())),
}
EQUAL_PAIRS = {
    "notes of a library": (configured(_name_or_path="a", size=1), configured(_name_or_path="b", size=1)),
    "places": (changed(origin="a", _name_or_path="c"), changed(origin="b", _name_or_path="d")),
    "places inside": (within(changed(source={"path": "a"})), within(changed(source={"path": "b"}))),
    "devices": (changed(device="cpu"), changed(device="cuda:1")),
    "devices inside": (within(Lambda(device="cuda:0")), within(Lambda(device="cuda:1"))),
    "devices in code": (lambda z: z.to("cuda:0"), lambda z: z.to("cpu")),
    "devices in closures": (closure("cuda"), closure("cpu")),
    "arguments that are not named": (scaled(Namespace(scale=1, out="a")), scaled(Namespace(scale=1, out="b"))),
    "compiled functions": (torch.compile(module_level, backend="eager"), module_level),
    "compiled layers": (within(torch.compile(Net(), backend="eager")), within(Net())),
}


@pytest.mark.parametrize("name", EQUAL)
def test_what_is_made_twice_is_the_same(name):
    assert described(EQUAL[name]()) == described(EQUAL[name]())


@pytest.mark.parametrize("name", EQUAL_PAIRS)
def test_what_changes_no_picture_is_not_seen(name):
    one, other = (described(value) for value in EQUAL_PAIRS[name])
    assert one == other


def test_description_of_many_layers_is_short_and_soon_made():
    many = nn.Sequential(*(nn.Sequential(nn.Linear(2, 2), nn.SiLU()) for _ in range(300)))
    for layer in many:
        layer.whole, layer.act = many.forward, lambda x: many(x)  # described only once
    assert len(json.dumps(described(many))) < 300
    assert {*described(many)} == {"class", "attributes", "layers", "weights"}


def test_description_does_not_depend_on_the_hash_of_text():
    """The order of sets in code depends on that hash."""
    said = "from gms_fast.generation.described import described; print(described(lambda z: z in {'a', 'b', 'c', 'd'}))"
    command, paths = [sys.executable, "-P", "-c", said], {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = [
        subprocess.run(command, env={**os.environ, **paths, "PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in "12"
    ]
    assert found[0].stdout == found[1].stdout != b""


def test_network_of_diffusers_whose_configuration_was_edited_is_another(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    sizes = {"sample_size": 8, "block_out_channels": (8, 8), "norm_num_groups": 4, "layers_per_block": 1}
    kinds = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = diffusers.UNet2DModel(**sizes, **kinds).eval()
    network.save_pretrained(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    one, other = (described(diffusers.UNet2DModel.from_pretrained(tmp_path / name)) for name in "ab")
    assert one == other == described(network)
    for key, value in {"freq_shift": 1, "flip_sin_to_cos": False}.items():
        file = tmp_path / "b" / "config.json"
        file.write_text(json.dumps({**json.loads((tmp_path / "a" / "config.json").read_text()), key: value}))
        edited = described(diffusers.UNet2DModel.from_pretrained(tmp_path / "b"))
        assert edited["weights"] == one["weights"]
        assert edited["layers"] != one["layers"]


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
