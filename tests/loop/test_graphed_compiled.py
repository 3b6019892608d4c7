"""The loop that `graphed` compiles: samples of `sample`, no recompilation, and its messages."""

import math
import re
from functools import partial

import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def quick_compiler(monkeypatch):
    """Replace the compiler by one that traces and runs the trace."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    yield
    torch.compiler.reset()


class Net(torch.nn.Module):
    """Network with image moments; `level` shifts the first."""

    sample_shape, schedule, moments, clip = (1, 4, 4), VPLinear(), "central", None

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.9))

    def forward(self, x, t, level=0.1):
        late = (t / 1000).reshape(-1, 1, 1, 1) + 0 * x
        return NoiseMoments(self.slope * x + 0.1 * level, 0.2 + 0.1 * late, 0.05 + 0.1 * late)


def test_compiled_loop_draws_for_every_seed_and_says_once_how_long_that_took(quick_compiler, capsys):
    net = Net()
    draw = gms_fast.graphed(net, 3, n=2, compile=True)
    assert draw.why is None
    assert re.fullmatch(r"gms_fast.graphed: compiled in \d+\.\d s\n", capsys.readouterr().err)
    with torch.compiler.set_stance("fail_on_recompile"):
        for seed in (1, -1, 7):
            assert torch.equal(draw(seed), gms_fast.sample(net, 3, n=2, seed=seed))
        with torch.no_grad():
            assert torch.equal(draw(), gms_fast.sample(net, 3, n=2))
    assert not capsys.readouterr().err
    assert torch.equal(draw([3, 4]), gms_fast.sample(net, 3, n=2, seed=[3, 4]))
    assert "compiled in" in capsys.readouterr().err


def test_compiled_loop_takes_other_starts_and_names_what_is_not_finite(quick_compiler):
    net, start = Net(), torch.ones(2, 1, 4, 4)
    draw = gms_fast.graphed(net, 2, x_T=start, compile=True)
    assert draw.why is None
    assert torch.equal(draw(3, x_T=start / 2), gms_fast.sample(net, 2, seed=3, x_T=start / 2))
    with pytest.raises(ValueError, match="x_T must be finite"):
        draw(x_T=start * math.nan)
    net.slope.data.fill_(math.inf)
    with pytest.raises(ValueError, match="model returned NaN or infinity in e1 at step 0"):
        draw()


def test_compiled_loop_takes_other_conditions(quick_compiler):
    net, level = Net(), torch.full((1,), 2.0)
    draw = gms_fast.graphed(net, 2, n=2, condition={"level": level}, compile=True)
    assert draw.why is None
    given = {"n": 2, "seed": 3, "condition": {"level": level + 1}}
    assert torch.equal(draw(3, condition=given["condition"]), gms_fast.sample(net, 2, **given))


def test_more_loops_are_compiled_than_one_piece_of_code_may_give_graphs(quick_compiler):
    with torch._dynamo.config.patch(recompile_limit=2):
        for steps in (1, 2, 3):
            assert gms_fast.graphed(Net(), steps, n=1, solver="ddim", compile=True).why is None


class Reading(Net):
    def forward(self, x, t):
        return super().forward(x, t) if x.sum().item() < 1e9 else None


def test_model_that_does_not_compile_is_run_step_by_step(quick_compiler, capsys):
    net = Reading()
    with pytest.warns(UserWarning, match=r"step by step: torch.compile failed at .*test_graphed_compiled.py:\d+: \w"):
        draw = gms_fast.graphed(net, 2, n=2, compile=True)
    assert torch.equal(draw(5), gms_fast.sample(net, 2, n=2, seed=5))
    assert "compiled in" not in capsys.readouterr().err


def test_errors_of_a_model_that_is_compiled_are_raised_as_they_are(quick_compiler):
    class Broken(Net):
        def forward(self, x, t):
            raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        gms_fast.graphed(Broken(), 2, n=2, compile=True)


@pytest.mark.slow(30)
def test_inductor_agrees_to_rounding():
    """Two steps without noise; test_compile.py derives the bound for more."""
    net = Net()
    draw = gms_fast.graphed(net, 2, n=2, solver="ddim", compile=True)
    assert draw.why is None
    want = gms_fast.sample(net, 2, n=2, seed=5, solver="ddim")
    assert (draw(5) - want).abs().max() <= 1e-5 * want.abs().max()
    torch.compiler.reset()
