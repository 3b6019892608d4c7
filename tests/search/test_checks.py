"""Errors that a search raises before it starts."""

import math

import pytest
import torch
from toy_search import QUICK, SCHEDULE, TOY, data_of_toy, searched
from toys import Model

from gms_fast import search
from gms_fast.search.parameters import Parameters
from gms_fast.solvers import DDIM, GGDMTable


class Blocking(torch.nn.Module):
    @torch.no_grad()
    def forward(self, x):
        return x.sin().flatten(1)


@pytest.mark.parametrize(
    ("features", "error", "says"),
    [
        (3, TypeError, "features must be callable"),
        (lambda x: x.sum(), ValueError, r"features must return \(N, D\)"),
        (lambda x: x.flatten(), ValueError, r"features must return \(N, D\)"),
        (lambda x: x.view(1, -1), ValueError, r"features must return \(N, D\)"),
        (lambda x: [x], ValueError, r"features must return \(N, D\).*got list"),
        (Blocking(), ValueError, "features must be differentiable in the images"),
        (
            lambda x: torch.zeros(len(x), 3, requires_grad=True),
            ValueError,
            "features must be differentiable in the images",
        ),
        (lambda x: x.detach().flatten(1), ValueError, "features must be differentiable in the images"),
        (lambda x: x.flatten(1) / 0, ValueError, "features must be finite"),
    ],
)
def test_features_that_are_none(features, error, says):
    with pytest.raises(error, match=says):
        searched(features=features)


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"variant": "free"}, ValueError, "variant must be one of ggdm, pred, time, constrained"),
        ({"kernel": "rbf"}, ValueError, "kernel must be one of cubic, linear"),
        ({"batch_size": 1}, ValueError, "batch_size must be an integer of at least 2"),
        ({"iterations": 0}, ValueError, "iterations must be an integer of at least 1"),
        ({"lr": 0.0}, ValueError, "lr must be positive"),
        ({"ema": 1.0}, ValueError, "ema must lie in"),
        ({"held_out": 1.0}, ValueError, "held_out must lie in"),
        ({"seed": 1.5}, TypeError, "seed must be an integer"),
        ({"seed": 1 << 64}, ValueError, "seed must fit in 64 bits"),
        ({"dtype": torch.float16}, TypeError, r"dtype must be torch\.float32 or torch\.float64"),
        ({"chunk": 0}, ValueError, "chunk must be an integer of at least 1"),
        ({"initial": "gms"}, TypeError, "solver must be linear"),
        ({"initial": "rk4"}, ValueError, "solver must be a Solver or one of"),
        ({"steps": 0}, ValueError, "steps must be an integer of at least 1"),
        ({"initial": GGDMTable.of(DDIM(), SCHEDULE, [999, 10]), "spacing": None}, ValueError, "for 2 steps, not 3"),
        (
            {"initial": GGDMTable.of(DDIM(), SCHEDULE, [999, 9, 3])},
            ValueError,
            "spacing must be None if initial is a table",
        ),
        ({"clip": (1, -1)}, ValueError, "clip must be"),
        ({"speed": 3}, TypeError, "speed"),
    ],
)
def test_settings_that_make_no_sense(options, error, says):
    with pytest.raises(error, match=says):
        searched(**options)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (torch.zeros(10, 3), r"data must be \(N, 2\) for this model"),
        (torch.zeros(3, 2), "data must be a floating-point tensor .* of at least 4 samples"),
        (torch.zeros(10, 2, dtype=torch.int64), "data must be a floating-point tensor"),
        ([[0.0, 1.0]], "data must be a floating-point tensor"),
        (torch.full((10, 2), math.nan), "data must be finite"),
    ],
)
def test_data_that_is_none(data, says):
    with pytest.raises(ValueError, match=says):
        search.ggdm(TOY, data, 3, **QUICK)


def test_data_that_is_all_the_same():
    with pytest.raises(ValueError, match="features of data must be finite and vary"):
        search.ggdm(TOY, torch.ones(10, 2), 3, **QUICK)


def test_tables_that_a_variant_cannot_begin_as():
    free = GGDMTable.of(DDIM(), SCHEDULE, [999, 600, 200])
    free = GGDMTable(SCHEDULE, free.tau, free.mu, free.sigma, 1.1 * free.c, free.d)
    mu = 1.1 * free.mu
    mu[3] = free.mu[3]
    wide = GGDMTable(SCHEDULE, free.tau, mu, free.sigma)
    for variant, table in (("ggdm", free), ("constrained", free), ("constrained", wide)):
        with pytest.raises(ValueError, match=f'initial must be a table that variant "{variant}" can represent'):
            searched(initial=table, spacing=None, variant=variant)
    for variant, table in (("ggdm", wide), ("pred", free), ("pred", wide), ("time", free)):
        Parameters(table, variant, stochastic=False)


@pytest.mark.parametrize("variant", ["ggdm", "constrained"])
def test_nothing_to_learn(variant):
    with pytest.raises(ValueError, match="nothing to learn at steps = 1"):
        searched(1, variant=variant)


def test_a_network_without_gradient():
    with pytest.raises(ValueError, match="model must be differentiable in x"):
        search.ggdm(Model(lambda x, t: (0.3 * x).detach(), sample_shape=(2,)), data_of_toy(20), 3, **QUICK)


def test_times_without_gradient():
    with pytest.raises(ValueError, match='variant "time" needs a network that is differentiable in t'):
        search.ggdm(Model(lambda x, t: 0.3 * x, sample_shape=(2,)), data_of_toy(20), 3, variant="time", **QUICK)


pytestmark = pytest.mark.usefixtures("one_thread")
