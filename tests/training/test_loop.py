"""Two-stage training: what it learns, and exact resumption after a stop."""

import csv
import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from ended_runs import train_until

from gms_fast import data
from gms_fast.models.unet import MomentUNet
from gms_fast.schedules import VPCosine
from gms_fast.storage import checkpoint
from gms_fast.training import Settings, loop, losses, train_moment_heads, train_noise_network
from gms_fast.training.noising import Noised, seed_of

pytestmark = pytest.mark.usefixtures("one_thread")

QUIET = {"batch_size": 8, "warmup": 4, "progress": False, "checkpoint_every": 4}
HEADS = ("out2", "out3")


def tiny(**options):
    torch.manual_seed(0)
    return MomentUNet(
        image_size=8,
        in_channels=1,
        model_channels=32,
        channel_mult=(1,),
        num_res_blocks=1,
        attention_resolutions=(),
        **{"head": "simple", **options},
    )


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")[:64]


def weights(model):
    return {n: w.clone() for n, w in model.state_dict().items()}


def assert_identical(got, want):
    assert got.keys() == want.keys()
    assert [n for n in want if not torch.equal(got[n], want[n])] == []


# --- learning ---


def test_noise_loss_falls(tmp_path, digits):
    train_noise_network(tiny(head=None), digits, steps=150, out=tmp_path, lr=2e-3, **{**QUIET, "warmup": 20})
    with (tmp_path / "curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["50", "100", "150"]
    losses = [float(row["loss"]) for row in rows]
    assert losses[0] > losses[1] > losses[2]
    assert losses[2] < 0.6  # a network that has learned nothing is at E eps^2 = 1


def test_second_moment_head_learns_the_variance_of_the_noise(tmp_path):
    # With e1 = 0 and x_0 = 0 the noise is eps = x_t / sigma_t. By the tower property e2 averages to E[eps^2] = 1 and
    # e3 to E[eps^3] = 0 over x_t.
    model, zeros = tiny(), torch.zeros(4, 1, 8, 8)
    train_moment_heads(model, zeros, steps=120, out=tmp_path, target="central", lr=1e-2, **{**QUIET, "warmup": 5})
    generator = torch.Generator().manual_seed(5)
    t = torch.randint(1000, (256,), generator=generator)
    eps = torch.randn(256, 1, 8, 8, generator=generator)
    with torch.no_grad():
        moments = model(model.schedule.sigma(t).float().view(-1, 1, 1, 1) * eps, t.float())
    assert moments.e1.abs().max() == 0
    assert abs(moments.e2.mean() - 1) < 0.2
    assert abs(moments.e3.mean()) < 0.5


def test_normalised_heads_learn_deviations_from_the_clipped_mean():
    """(m - x_0)/sigma_t is (eps - e1)/alpha_t, except where m is clipped to the data range."""
    schedule, x_0 = tiny().schedule, torch.tensor([-0.5, 0.25, 1.0])
    for t, rtol in ((999, 1e-4), (300, 1e-5), (5, 1e-3)):  # float32 loses digits where alpha or sigma is small
        alpha, sigma = (f(t).float() for f in (schedule.alpha, schedule.sigma))
        eps, m = torch.tensor([0.3, -1.0, 2.0]), torch.tensor([0.1, 0.9, -1.0])
        x_t = alpha * x_0 + sigma * eps
        batch = Noised(x_0, eps, alpha, sigma, x_t, torch.tensor([t]), {})
        deviation = partial(losses._deviation, tiny(moments="central", normalised=True), batch)
        e1 = (x_t - alpha * m) / sigma
        torch.testing.assert_close(deviation(e1), (m - x_0) / sigma, rtol=rtol, atol=1e-3)
        wild = (x_t - alpha * torch.tensor([7.0, -3.0, 1.5])) / sigma
        clipped = (torch.tensor([1.0, -1.0, 1.0]) - x_0) / sigma
        torch.testing.assert_close(deviation(wild), clipped, rtol=rtol, atol=1e-3)


def test_normalised_heads_learn_the_mean_square_deviation(tmp_path):
    """The second head averages to E (m - x_0)^2/sigma_t^2 over t, x_0 and eps (tower property)."""
    model, images = tiny(moments="central", normalised=True), torch.full((2, 1, 8, 8), 0.5)
    train_moment_heads(model, images, steps=150, out=tmp_path, target="central", lr=1e-2, **{**QUIET, "warmup": 5})
    generator = torch.Generator().manual_seed(5)
    t = torch.randint(1000, (1000,), generator=generator)
    alpha, sigma = (f(t).float().view(-1, 1, 1, 1) for f in (model.schedule.alpha, model.schedule.sigma))
    x_t = alpha * 0.5 + sigma * torch.randn(1000, 1, 8, 8, generator=generator)
    with torch.no_grad():
        learned = (model(x_t, t.float()).e2 / alpha**2).mean()
    m = (x_t / alpha).clamp(-1, 1)  # e1 = 0 before stage 1
    assert float(learned) == pytest.approx(float(((m - 0.5) ** 2 / sigma**2).mean()), rel=0.2)


def test_normalised_heads_learn_central_moments_only(tmp_path, digits):
    model = tiny(moments="central", normalised=True)
    with pytest.raises(ValueError, match="target must be \"central\" for a model with normalised=True: got 'raw'"):
        train_moment_heads(model, digits, steps=1, out=tmp_path, target="raw", **QUIET)


def test_every_seed_and_step_draws_its_own(tmp_path, digits):
    """Every seed and step has its own generator.

    torch's CPU generator takes 32 bits of a seed, so (seed << 32) + step would ignore the seed.
    """
    assert len({seed_of(seed, step) for seed in range(40) for step in range(50)}) == 2000
    one, two = (
        train_noise_network(tiny(), digits, steps=2, out=tmp_path / str(seed), seed=seed, **QUIET) for seed in (0, 1)
    )
    assert not torch.equal(one.out[2].weight, two.out[2].weight)


def test_bfloat16_and_flips_train(tmp_path, digits):
    start = weights(tiny())
    model = train_noise_network(
        tiny(), digits, steps=2, out=tmp_path, precision="bfloat16", flips=True, decay="linear", **QUIET
    )
    assert all(w.dtype == torch.float32 and w.isfinite().all() for w in model.state_dict().values())
    assert not torch.equal(model.out[2].weight, start["out.2.weight"])


# --- heads ---


@pytest.mark.parametrize("target", ["raw", "central"])
def test_heads_leave_the_noise_network_untouched(tmp_path, digits, target):
    model = tiny(head="complex", dropout=0.5)
    before = weights(model)
    train_moment_heads(model, digits, steps=3, out=tmp_path, target=target, **QUIET)
    after = weights(model)
    changed = {n for n in after if not torch.equal(after[n], before[n])}
    assert {n for n in changed if not n.startswith(HEADS)} == set()
    assert {"out2.3.weight", "out3.3.weight"} <= changed
    assert model.moments == model.config["moments"] == target
    assert not model.training
    assert all(p.requires_grad for p in model.parameters())


def test_second_moment_is_learned_alone(tmp_path, digits):
    model = tiny(head=("simple", None))
    before, loss, moments = weights(model), losses.moment_loss("raw"), tiny(head="simple")
    x, t, eps = torch.randn(4, 1, 8, 8), torch.full((4,), 300.0), torch.randn(4, 1, 8, 8)
    batch = Noised(x, eps, torch.ones(4, 1, 1, 1), torch.ones(4, 1, 1, 1), x, t, {})
    both, third = loss(moments, batch, torch.float32), (eps**3).square().mean()  # heads start at 0
    torch.testing.assert_close(loss(model, batch, torch.float32), both - third, rtol=1e-5, atol=0)
    train_moment_heads(model, digits, steps=3, out=tmp_path, **QUIET)
    changed = {n for n, w in model.state_dict().items() if not torch.equal(w, before[n])}
    assert {n.partition(".")[0] for n in changed} == {"out2"}


def test_noise_network_leaves_the_heads_untouched_and_returns_the_average(tmp_path, digits):
    model = tiny()
    before = weights(model)
    train_noise_network(model, digits, steps=3, out=tmp_path, **QUIET)
    after = weights(model)
    assert [n for n in after if n.startswith(HEADS) and not torch.equal(after[n], before[n])] == []
    average = checkpoint.read(tmp_path / "checkpoint.pt")["average"]
    assert_identical({n: after[n] for n in average}, average)
    assert not torch.equal(after["out.2.bias"], checkpoint.read(tmp_path / "checkpoint.pt")["weights"]["out.2.bias"])


def test_heads_are_refused_where_there_are_none(tmp_path, digits):
    with pytest.raises(ValueError, match='no moment heads: create it with head="simple" or "complex"'):
        train_moment_heads(tiny(head=None), digits, steps=1, out=tmp_path)
    with pytest.raises(ValueError, match='target must be "raw" or "central": got \'cumulant\''):
        train_moment_heads(tiny(), digits, steps=1, out=tmp_path, target="cumulant")


# --- stopping and resuming ---


@pytest.mark.parametrize("stage", ["noise", "heads"])
def test_interrupted_run_ends_with_the_weights_of_an_uninterrupted_one(tmp_path, digits, monkeypatch, stage):
    train = train_noise_network if stage == "noise" else train_moment_heads
    options = {"steps": 12, "flips": True, **QUIET}
    whole = train(tiny(dropout=0.3), digits, out=tmp_path / "whole", **options)
    train_until(6, monkeypatch, train, tiny(dropout=0.3), digits, out=tmp_path / "cut", **options)
    assert checkpoint.read(tmp_path / "cut" / "checkpoint.pt")["step"] == 4
    torch.manual_seed(99)  # neither the global generator nor earlier work may matter
    resumed = tiny(dropout=0.3)
    torch.rand(7)
    train(resumed, digits, out=tmp_path / "cut", **options)
    assert_identical(weights(resumed), weights(whole))
    curves = [checkpoint.read(tmp_path / name / "checkpoint.pt")["smooth"] for name in ("whole", "cut")]
    assert curves[0] == curves[1]


KILLED = """
import os, signal, sys, torch
sys.path[:0] = sys.argv[2:]
import test_loop as tests
torch.set_num_threads(1)
from gms_fast.storage import checkpoint

original = torch.save
def save(state, file):
    if state["step"] == 8:
        file.write(b"half a checkpoint")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    original(state, file)
torch.save = save
tests.train_noise_network(tests.tiny(), tests.data.load("digits")[:64], steps=12, out=sys.argv[1], **tests.QUIET)
"""


def test_run_killed_while_writing_a_checkpoint_goes_on_from_the_one_before(tmp_path, digits):
    here = Path(__file__).parent
    command = [sys.executable, "-c", KILLED, str(tmp_path / "cut"), str(here), str(here.parent / "support")]
    root = str(Path(loop.__file__).parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    assert [p.name for p in (tmp_path / "cut").glob("*.partial")]
    assert checkpoint.read(tmp_path / "cut" / "checkpoint.pt")["step"] == 4
    resumed = train_noise_network(tiny(), digits, steps=12, out=tmp_path / "cut", **QUIET)
    whole = train_noise_network(tiny(), digits, steps=12, out=tmp_path / "whole", **QUIET)
    assert_identical(weights(resumed), weights(whole))
    assert {p.name for p in (tmp_path / "cut").iterdir()} == {"checkpoint.pt", "curve.csv"}


def test_finished_run_is_loaded_without_further_steps(tmp_path, digits, monkeypatch):
    first = weights(train_noise_network(tiny(), digits, steps=3, out=tmp_path, **QUIET))
    curve = (tmp_path / "curve.csv").read_bytes()
    (tmp_path / "curve.csv").rename(tmp_path / ".curve.csv.0123abcd.partial")  # killed after the last checkpoint
    monkeypatch.setattr(loop._Step, "__call__", lambda *_: pytest.fail("a finished run took another step"))
    assert_identical(weights(train_noise_network(tiny(), digits, steps=3, out=tmp_path, **QUIET)), first)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint.pt", "curve.csv"}
    assert (tmp_path / "curve.csv").read_bytes() == curve


# --- errors ---


@pytest.fixture(scope="module")
def finished(tmp_path_factory, digits):
    """A folder with a finished run of one step."""
    folder = tmp_path_factory.mktemp("finished")
    train_noise_network(tiny(), digits, steps=1, out=folder, **QUIET)
    return folder


@pytest.mark.parametrize(
    ("model", "options", "named"),
    [
        ({}, {"lr": 0.5}, "lr: 0.0002 there, 0.5 asked for"),
        ({}, {"steps": 2}, "steps: 1 there, 2 asked for"),
        ({}, {"seed": 1}, "seed: 0 there, 1 asked for"),
        ({"dropout": 0.1}, {}, "model: .*'dropout': 0.0.*'dropout': 0.1"),
        ({"schedule": VPCosine()}, {}, "schedule: .*VPLinear.*VPCosine"),
    ],
)
def test_folder_of_another_configuration_is_refused(finished, digits, model, options, named):
    before = (finished / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=rf"made with another configuration.*\n.*{named}"):
        train_noise_network(tiny(**model), digits, **{"steps": 1, "out": finished, **QUIET, **options})
    assert (finished / "checkpoint.pt").read_bytes() == before


def test_folder_of_other_data_another_stage_or_another_noise_network_is_refused(tmp_path, finished, digits):
    with pytest.raises(ValueError, match="data: '"):
        train_noise_network(tiny(), digits[1:], steps=1, out=finished, **QUIET)
    with pytest.raises(ValueError, match="stage: 'noise' there, 'heads' asked for"):
        train_moment_heads(tiny(), digits, steps=1, out=finished, **QUIET)
    model = train_moment_heads(tiny(), digits, steps=1, out=tmp_path, **QUIET)
    with torch.no_grad():
        model.out[2].bias.add_(1)
    with pytest.raises(ValueError, match="frozen: '"):
        train_moment_heads(model, digits, steps=1, out=tmp_path, **QUIET)


def test_existing_run_is_refused_without_resume(finished, digits):
    with pytest.raises(FileExistsError, match="already holds a training run"):
        train_noise_network(tiny(), digits, steps=1, out=finished, resume=False, **QUIET)


@pytest.mark.parametrize("keep", [0, 1000, -100])
def test_truncated_checkpoint_is_named(tmp_path, finished, digits, keep):
    (tmp_path / "checkpoint.pt").write_bytes((finished / "checkpoint.pt").read_bytes()[:keep])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is truncated or not a checkpoint"):
        train_noise_network(tiny(), digits, steps=1, out=tmp_path, **QUIET)


def test_foreign_checkpoint_is_named(tmp_path, digits):
    for content in ({"step": 3}, [1, 2]):
        torch.save(content, tmp_path / "checkpoint.pt")
        with pytest.raises(ValueError, match=r"checkpoint\.pt is of another kind"):
            train_noise_network(tiny(), digits, steps=1, out=tmp_path, **QUIET)
    (tmp_path / "checkpoint.pt").write_text("not even an archive")
    with pytest.raises(ValueError, match=r"checkpoint\.pt is truncated or not a checkpoint"):
        train_noise_network(tiny(), digits, steps=1, out=tmp_path, **QUIET)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(4, 3, 8, 8), r"data must be \(N, 1, 8, 8\) for this model: got \(4, 3, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), r"got \(0, 1, 8, 8\)"),
        (torch.zeros(8, 8), r"got \(8, 8\)"),
        (torch.full((4, 1, 8, 8), 2.0), r"finite and lie in \[-1, 1\]"),
        (torch.full((4, 1, 8, 8), torch.nan), r"finite and lie in \[-1, 1\]"),
    ],
)
def test_unsuitable_data_is_refused(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        train_noise_network(tiny(), images, steps=1, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_divergence_stops_the_run_and_spares_the_checkpoint(tmp_path, digits, monkeypatch):
    original = loop._Step.__call__

    def broken(self, state, signals):
        told = original(self, state, signals)
        return told if state.step < 6 else told * torch.nan

    monkeypatch.setattr(loop._Step, "__call__", broken)
    with pytest.raises(FloatingPointError, match="loss is nan at step 6"):
        train_noise_network(tiny(), digits, steps=12, out=tmp_path, **QUIET)
    assert checkpoint.read(tmp_path / "checkpoint.pt")["step"] == 4


# --- settings ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1: got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1: got 0"),
        ({"lr": 0.0}, r"lr must be positive: got 0\.0"),
        ({"lr": float("nan")}, "lr must be positive: got nan"),
        ({"decay": "step"}, 'decay must be "cosine", "linear" or "constant": got \'step\''),
        ({"precision": "half"}, "precision must be one of float32, bfloat16, float16: got 'half'"),
        ({"ema": 1.0}, r"ema must lie in \[0, 1\): got 1\.0"),
        ({"ema": -0.1}, r"ema must lie in \[0, 1\): got -0\.1"),
    ],
)
def test_settings_refuse_what_cannot_work(options, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"steps": 10, **options})


def test_settings_refuse_unknown_names(tmp_path, digits):
    with pytest.raises(TypeError, match="learning_rate"):
        train_noise_network(tiny(), digits, steps=1, out=tmp_path, learning_rate=1.0)
