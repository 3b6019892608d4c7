"""The captured loop draws the samples of `sample`, with real CUDA graphs and simulated ones."""

import inspect
import math
import warnings
from functools import partial

import played_graphs
import pytest
import torch

import gms_fast
from gms_fast import NoiseMoments, guidance, solvers, statistics
from gms_fast.schedules import VPLinear

GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")]
GAUSSIAN = statistics.gaussian(torch.linspace(-1, 1, 40 * 16).reshape(40, 1, 4, 4) ** 3, rank=3)
SOLVERS = {
    "gms": "gms",
    "ddpm": "ddpm",
    "er-sde": "er-sde",
    "unip": "unip",
    "heun": "heun",
    "teleport": solvers.Teleport(GAUSSIAN, 5.0, solvers.DPMSolverPP()),
}
SEEDS = {"one": 7, "negative": -1, "unsigned": (1 << 64) - 1, "each": [3, -1], "tensor": torch.tensor([5, 6])}


class Net(torch.nn.Module):
    """Network with image moments, all shifted by `level`; counts its calls."""

    sample_shape, schedule, moments, clip, has_graphs = (1, 4, 4), VPLinear(), "central", None, True

    def __init__(self):
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.9))
        self.calls = 0

    def forward(self, x, t, level=0.1):
        self.calls += 1
        level = level if isinstance(level, float) else level.reshape(-1, 1, 1, 1)
        late = (t / 1000).reshape(-1, 1, 1, 1) + 0 * x
        return NoiseMoments(self.slope * x + 0.1 * level, 0.2 + 0.1 * late, 0.05 + 0.1 * late)


@pytest.fixture(params=["cpu", "played", pytest.param("cuda", marks=GPU)])
def net(request, monkeypatch):
    """Network on a CPU without graphs, on a CPU with simulated graphs, and on a GPU."""
    if request.param == "played":
        played_graphs.play(monkeypatch)
    made = Net().to("cuda" if request.param == "cuda" else "cpu")
    made.has_graphs = request.param != "cpu"
    return made


@pytest.fixture(params=["played", pytest.param("cuda", marks=GPU)])
def place(request, monkeypatch):
    """Device that has graphs."""
    if request.param == "played":
        played_graphs.play(monkeypatch)
    return "cuda" if request.param == "cuda" else "cpu"


def same(got, want):
    assert torch.equal(got, want)
    assert got.dtype == want.dtype


def graphed(net, *args, **options):
    """Call `gms_fast.graphed` and check that it captured wherever there are graphs."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "gms_fast.graphed runs the loop")
        draw = gms_fast.graphed(net, *args, **options)
    assert (draw.why is None) == net.has_graphs
    return draw


# --- samples ---


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_samples_are_those_of_sample(net, solver):
    draw = graphed(net, 4, n=2, solver=solver, seed=1)
    sample = partial(gms_fast.sample, net, 4, n=2, solver=solver)
    same(draw(), sample(seed=1))
    for seed in SEEDS.values():
        same(draw(seed), sample(seed=seed))
    same(draw(7), sample(seed=7))


def test_options_are_those_of_sample(net):
    options = {"n": 3, "timesteps": [900, 500.0, 20], "sample_offset": 5, "step_offset": 2, "clip": (-0.5, 0.5)}
    options |= {"denoise": False, "dtype": torch.float64, "batch_size": 2, "schedule": "cosine"}
    draw = graphed(net, seed=[1, 2, 3], **options)
    same(draw(), gms_fast.sample(net, seed=[1, 2, 3], **options))
    same(draw(9), gms_fast.sample(net, seed=9, **options))


def test_conditions_may_change(net):
    first, second = (torch.tensor(levels, device=net.slope.device) for levels in ([0.0, 2.0], [-4.0, 1.0]))
    draw = graphed(net, 3, n=2, condition={"level": first})
    for level in (second, first):
        same(draw(4, condition={"level": level}), gms_fast.sample(net, 3, n=2, seed=4, condition={"level": level}))
    same(draw(4), gms_fast.sample(net, 3, n=2, seed=4, condition={"level": first}))
    assert first.tolist() == [0, 2]


def test_guided_network(net):
    none, first, second = (
        {"level": torch.tensor(v, device=net.slope.device)} for v in ([0.0], [1.0, 2.0], [3.0, -1.0])
    )
    model = guidance.ClassifierFree(net, None, none, scale=2.0)
    model.has_graphs = net.has_graphs
    draw = graphed(model, 3, n=2, condition=first)
    same(draw(4, condition=second), gms_fast.sample(model, 3, n=2, seed=4, condition=second))


def test_start_may_change(net):
    first, second = (gms_fast.ops.philox_normal((2, 1, 4, 4), seed=seed, device=net.slope.device) for seed in (1, 2))
    draw = graphed(net, 3, x_T=first)
    for x_T in (second, first):
        kept = x_T.clone()
        same(draw(4, x_T=x_T), gms_fast.sample(net, 3, seed=4, x_T=x_T))
        same(x_T, kept)
    same(draw(), gms_fast.sample(net, 3, x_T=first))


def test_each_call_has_memory_of_its_own(net):
    draw = graphed(net, 2, n=2)
    first = draw(1)
    kept = first.clone()
    draw(2).zero_()
    same(first, kept)
    same(draw(1), kept)


def test_works_in_every_mode_of_autograd(net):
    want = gms_fast.sample(net, 2, n=2, seed=3)
    with torch.inference_mode():
        draw = graphed(net, 2, n=2)
        same(draw(3), want)
    draw(4)
    same(draw(3), want)
    start = torch.zeros(2, 1, 4, 4, device=net.slope.device, requires_grad=True)
    draw = graphed(net, 2, n=2, x_T=start)
    assert not draw(x_T=start).requires_grad
    same(draw([3, 4], x_T=start), gms_fast.sample(net, 2, seed=[3, 4], x_T=start.detach()))


# --- one capture ---


def test_replays_do_not_call_the_network(place):
    net = Net().to(place)
    draw = graphed(net, 3, n=2)
    calls = net.calls
    assert calls == 3 * 4  # two runs before the capture, and the capture
    for seed in (1, 2, 3):
        draw(seed)
    assert net.calls == calls
    for seeds in ([1, 2], [3, 4]):  # one more capture
        draw(seeds)
    assert net.calls == 2 * calls


def test_weights_are_read_at_every_replay(place):
    net = Net().to(place)
    draw = graphed(net, 3, n=2)
    with torch.no_grad():
        net.slope.mul_(0.5)
    same(draw(1), gms_fast.sample(net, 3, n=2, seed=1))


def test_seed_that_is_given_says_what_is_captured_first(place):
    net = Net().to(place)
    draw = graphed(net, 2, n=2, seed=[1, 2])
    calls = net.calls
    draw([3, 4])
    assert net.calls == calls


# --- bad input ---


def test_signature_is_that_of_sample_but_for_what_the_host_does_at_every_step():
    own, its = (inspect.signature(f).parameters for f in (gms_fast.graphed, gms_fast.sample))
    its = {name: p for name, p in its.items() if name not in ("noise", "progress", "callback")}
    assert {name: p for name, p in own.items() if name != "compile"} == its
    for name in ("noise", "progress", "callback"):
        with pytest.raises(TypeError, match=name):
            gms_fast.graphed(Net(), **{name: None})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"n": -1}, "n must"),
        ({"seed": [1, 2, 3]}, "seed must be one integer or one per sample, 2 of them: got 3"),
        ({"seed": "a"}, "seed"),
        ({"solver": "gsm"}, "solver"),
        ({"shape": (1.5,)}, "shape"),
        ({"device": "nowhere"}, "device"),
        ({"sample_offset": 0.5}, "sample_offset"),
        ({"x_T": 3}, "x_T"),
        ({"condition": [1]}, "condition"),
    ],
)
def test_bad_argument_is_named_before_the_network_is_called(net, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        gms_fast.graphed(net, **{"n": 2} | options)
    assert net.calls == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": [1, 2, 3]}, "seed must be one integer or one per sample, 2 of them: got 3"),
        ({"seed": 0.5}, "seed"),
        ({"x_T": torch.zeros(3, 1, 4, 4)}, r"x_T must match .* torch.float32 \(2, 1, 4, 4\): got .* \(3, 1, 4, 4\)"),
        ({"x_T": torch.zeros(2, 1, 4, 4).double()}, "x_T must match .*float32.*: got torch.float64"),
        ({"condition": {"level": torch.zeros(1)}}, r"condition\['level'\] must match .* \(2,\): got .* \(1,\)"),
        ({"condition": {"level": 0.5}}, r"condition\['level'\] must match .* \(2,\): got 0.5"),
        ({"condition": {"label": 1}}, "condition must match .* the keywords level: got the keywords label"),
    ],
)
def test_what_does_not_fit_the_capture_is_named(net, options, message):
    given = {"x_T": torch.zeros(2, 1, 4, 4), "condition": {"level": torch.zeros(2)}}
    given = {"x_T": given["x_T"].to(net.slope.device), "condition": {"level": given["condition"]["level"]}}
    draw = graphed(net, 2, solver="ddim", **given)
    with pytest.raises((ValueError, TypeError), match=message):
        draw(**options)


def test_what_was_not_given_cannot_change(net):
    draw = graphed(net, 2, n=2, condition={"level": 0.5})
    same(draw(3, condition={"level": 0.5}), gms_fast.sample(net, 2, n=2, seed=3, condition={"level": 0.5}))
    with pytest.raises(ValueError, match=r"condition\['level'\] must match the one given to graphed, 0.5: got 0.25"):
        draw(condition={"level": 0.25})
    with pytest.raises(ValueError, match=r"x_T must match the one given to graphed, None: got torch.float32"):
        draw(x_T=torch.zeros(2, 1, 4, 4))


def test_bad_values_of_a_replay_are_named(net):
    device = net.slope.device
    good, bad = (torch.tensor([0.0, value], device=device) for value in (1.0, math.inf))
    start = torch.ones(2, 1, 4, 4, device=device)
    draw = graphed(net, 2, x_T=start, condition={"level": good})
    for _ in range(2):
        with pytest.raises(ValueError, match="model returned NaN or infinity in e1 at step 0"):
            draw(condition={"level": bad})
        with pytest.raises(ValueError, match="x_T must be finite"):
            draw(x_T=start * math.nan)
        same(draw(5), gms_fast.sample(net, 2, seed=5, x_T=start, condition={"level": good}))


# --- loops without a graph ---


class Reading(Net):
    def forward(self, x, t):
        return super().forward(x, t) if x.sum().item() < 1e9 else None


class Refusing(Net):
    def forward(self, x, t):
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError("not in a capture\nat all")
        return super().forward(x, t)


class Random(Net):
    def forward(self, x, t):
        return super().forward(x + 0.1 * torch.randn_like(x), t)


class Counting(Net):
    """Network that computes with a number on the host."""

    def forward(self, x, t):
        return super().forward(x * (1 + 0.01 * self.calls), t)


class Settling(Net):
    """Network that computes differently in its first run."""

    def forward(self, x, t):
        return super().forward(x * (0.5 if self.calls < 3 else 1), t)


BREAKING = {
    "reads": (Reading, r"the host waits for the GPU in the loop, first at .*test_graphed.py:\d+"),
    "refuses": (Refusing, r"capturing failed at .*test_graphed.py:\d+: not in a capture$"),
    "is random": (Random, "a replay differs from the loop"),
    "counts": (Counting, "a replay differs from the loop"),
    "settles": (Settling, "a replay differs from the loop"),
}


@pytest.mark.parametrize(("kind", "message"), BREAKING.values(), ids=BREAKING)
def test_model_that_breaks_a_capture_is_run_step_by_step(place, kind, message):
    net = kind().to(place)
    with pytest.warns(UserWarning, match=f"gms_fast.graphed runs the loop step by step: {message}"):
        draw = gms_fast.graphed(net, 2, n=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = net.calls
        got = draw(5)
    assert net.calls == before + 3
    if kind in (Reading, Refusing):
        same(got, gms_fast.sample(net, 2, n=2, seed=5))
        torch.rand(3, device=place)  # the device and its random numbers still work
        good = Net().to(place)
        same(graphed(good, 2, n=2)(5), gms_fast.sample(good, 2, n=2, seed=5))


def test_errors_of_the_model_are_raised_as_they_are(net):
    class Broken(Net):
        def forward(self, x, t):
            raise KeyError("weights")

    with pytest.raises(KeyError, match="weights"):
        gms_fast.graphed(Broken().to(net.slope.device), 2, n=2)()


def test_cpu_says_that_it_has_no_graphs():
    with pytest.warns(UserWarning, match="step by step: CUDA graphs need a CUDA device: got cpu"):
        draw = gms_fast.graphed(Net(), 2, n=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(1)
        draw([1, 2])
    assert draw.why == "CUDA graphs need a CUDA device: got cpu"
