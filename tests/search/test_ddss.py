"""The search: what it learns, how it stops and resumes, and its files."""

import csv
import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from toy_search import QUICK, SCHEDULE, TOY, VECTORS, data_of_toy, sampler, searched, seven
from toys import Model

import gms_fast
from bench.faults import damage_files
from gms_fast import guidance, search, solvers
from gms_fast.models import MomentUNet, PointCloud
from gms_fast.schedules import EDM, Flow, VPContinuous, VPCosine
from gms_fast.search import ddss
from gms_fast.search.parameters import VARIANTS, Parameters
from gms_fast.solvers import DDIM, GGDM, GGDMTable, UniP


def judged(table, n=4000):
    """Distance of fresh samples, drawn by the kernels, from fresh data."""
    x = gms_fast.sample(TOY, table.steps, solver=GGDM(table), n=n, seed=99, clip=None, dtype=torch.float64)
    return float(search.KernelDistance(seven(data_of_toy(n, seed=7)))(seven(x)))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    out = tmp_path_factory.mktemp("search")
    return searched(out=out), out


def test_it_learns_a_better_sampler(learned):
    """The distance falls at least ten times on seeds and data that the search has not used."""
    times = [float(t) for t in SCHEDULE.grid(3, "uniform")][:-1]
    first = GGDMTable.of(DDIM(), SCHEDULE, times)
    assert judged(first) > 0.1
    assert judged(learned[0]) < judged(first) / 10


@pytest.mark.parametrize(("steps", "variant", "before", "after"), VECTORS["toy_ddss"]["rows"])
def test_toy_searches_of_the_vectors(steps, variant, before, after):
    """Searches start at the recorded distance and end at one as small, on fresh samples.

    Both have noise of up to .005.
    """
    variant = {"ggdm": "ggdm", "ggdm+pred": "pred", "ggdm+pred+time": "time"}[variant]
    first = GGDMTable.of(DDIM(), SCHEDULE, [1000 * (k / steps) ** 2 - 1 for k in range(steps, 0, -1)])
    assert judged(first) == pytest.approx(before, abs=0.01)
    table = searched(steps, initial=first, spacing=None, variant=variant, stochastic=True, iterations=200)
    assert judged(table) < after + 0.01


def test_what_it_leaves(learned):
    table, out = learned
    found = GGDMTable.load(out / "table.safetensors")
    assert torch.equal(found.mu, table.mu)
    rows = list(csv.DictReader((out / "curve.csv").open()))
    assert [int(r["iteration"]) for r in rows] == list(range(0, 251, 25))
    assert float(rows[-1]["score"]) < float(rows[0]["score"])


@pytest.mark.parametrize(("variant", "stochastic"), [("ggdm", True), ("time", False), ("constrained", True)])
def test_other_variants_learn_too(variant, stochastic):
    first = GGDMTable.of(DDIM(), SCHEDULE, [float(t) for t in SCHEDULE.grid(4, "uniform")][:-1])
    table = searched(4, variant=variant, iterations=100, stochastic=stochastic)
    # with fixed times and marginals the gain is smaller
    assert judged(table) < judged(first) * (0.95 if variant == "constrained" else 0.5)
    assert bool((table.tau != first.tau).any()) == (variant == "time")
    assert bool((table.sigma[1:-1] > 0).all()) == stochastic


def test_the_seed_determines_it_and_it_resumes(tmp_path, monkeypatch):
    options = {"iterations": 40, "score_every": 10, "batch_size": 64, "score_samples": 100}
    want = searched(**options)
    assert torch.equal(searched(**options).mu, want.mu)
    assert not torch.equal(searched(**options, seed=1).mu, want.mu)
    step, done = ddss._Search.step, []

    def stop(self):
        if len(done) == 25:
            raise KeyboardInterrupt
        done.append(step(self))

    with monkeypatch.context() as patch:
        patch.setattr(ddss._Search, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            searched(**options, out=tmp_path)
    assert GGDMTable.load(tmp_path / "table.safetensors").steps == 3
    found = searched(**options, out=tmp_path)
    for name in ("tau", "mu", "c", "d"):
        assert torch.equal(getattr(found, name), getattr(want, name))
    searched(**options, out=tmp_path / "whole")
    assert (tmp_path / "curve.csv").read_text() == (tmp_path / "whole" / "curve.csv").read_text()
    (tmp_path / "table.safetensors").unlink()
    searched(**options, out=tmp_path)  # the search is finished, but the deleted files are written again
    assert torch.equal(GGDMTable.load(tmp_path / "table.safetensors").mu, want.mu)
    with pytest.raises(FileExistsError, match="already holds a search"):
        searched(**options, out=tmp_path, resume=False)
    with pytest.raises(ValueError, match="batch_size: 64 there, 65 asked for"):
        searched(**options | {"batch_size": 65}, out=tmp_path)
    with pytest.raises(ValueError, match="batch_size"):
        searched(**options | {"batch_size": 1}, out=tmp_path, replace=True)
    assert GGDMTable.load(tmp_path / "table.safetensors").steps == 3  # a refused call deletes nothing
    searched(**options | {"iterations": 1}, out=tmp_path, replace=True)
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 3


def test_it_stops_early_and_keeps_the_best(tmp_path):
    """At a rate that makes all scores worse, the result is the first table."""
    first = GGDMTable.of(DDIM(), SCHEDULE, [999, 600, 200])
    table = searched(initial=first, spacing=None, lr=3.0, clip_norm=1e9, warmup=0, patience=2, score_every=2, ema=0.0,
                     batch_size=16, out=tmp_path)  # fmt: skip
    assert torch.equal(table.mu, first.mu)
    assert (
        len(list(csv.reader((tmp_path / "curve.csv").open()))) == 4
    )  # a heading, the first score and two without improvement


def test_divergence_names_the_iteration_and_leaves_the_best(tmp_path):
    calls = []

    def breaking(x):
        calls.append(len(x))
        return seven(x) * (math.nan if len(calls) > 12 and x.requires_grad else 1.0)

    with pytest.raises(FloatingPointError, match=r"loss is nan at iteration \d+; the best table so far is .*table"):
        searched(features=breaking, out=tmp_path, score_every=5)
    assert GGDMTable.load(tmp_path / "table.safetensors").steps == 3


def test_weights_of_the_network_stay_as_they_are():
    model = MomentUNet(image_size=8, in_channels=1, model_channels=32, channel_mult=(1, 1), head="simple").eval()
    before = {n: p.clone() for n, p in model.state_dict().items()}
    model.input_blocks[0].requires_grad_(False)
    flags = [p.requires_grad for p in model.parameters()]
    data = torch.rand(20, 1, 8, 8)
    features = search.load_features("digits")
    table = search.ggdm(model, data, 3, features=features, iterations=2, batch_size=4, score_samples=4, progress=False)
    assert all(torch.equal(before[n], p) for n, p in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None for p in model.parameters())
    assert table.network == gms_fast.statistics.fingerprint(model)
    assert gms_fast.sample(model, 3, solver=GGDM(table), n=2).shape == (2, 1, 8, 8)


def test_one_step_learns_its_prediction():
    table = searched(1, iterations=20, variant="pred")
    assert (table.steps, table.c[1] != 1 / SCHEDULE.alpha(999)) == (1, True)


@pytest.mark.parametrize("schedule", [Flow(t_max=0.99), VPCosine(), VPContinuous(), EDM()], ids=repr)
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_schedule(variant, schedule):
    """Schedules include clean data without noise, and a first level with little signal."""
    model = Model(lambda x, t: 0.4 * x.tanh() + 0.01 * t[:, None], sample_shape=(2,), schedule=schedule)
    quick = {"features": seven, "iterations": 2, "batch_size": 8, "score_samples": 8, "progress": False}
    table = search.ggdm(model, data_of_toy(50), 4, variant=variant, stochastic=True, dtype=torch.float64, **quick)
    assert table.tau[0] == schedule.t_min
    assert gms_fast.sample(model, 4, solver=GGDM(table), n=3).isfinite().all()


def test_modules_that_are_in_training():
    """Dropout and running statistics are off during the search, and on again afterwards."""
    features = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 8), torch.nn.Dropout(0.5)
    ).train()
    features[0].eval()
    before = {name: value.clone() for name, value in features.state_dict().items()}
    options = {"features": features, "iterations": 3, "batch_size": 8, "score_samples": 8, "dtype": torch.float32}
    found = [searched(**options, rematerialise=rematerialise) for rematerialise in (True, False)]
    assert torch.equal(found[0].mu, found[1].mu)
    assert [module.training for module in features] == [False, True, True, True]
    assert all(torch.equal(before[name], value) for name, value in features.state_dict().items())


def test_nobody_gets_a_gradient_who_did_not_ask():
    net = torch.nn.Linear(2, 5).double()
    searched(features=lambda x: net(x).tanh(), iterations=2, batch_size=8, score_samples=8)
    assert net.weight.grad is None


@torch.no_grad()
def test_it_learns_where_gradients_are_off():
    searched(iterations=1, batch_size=8, score_samples=8)


def test_gradient_through_the_guidance_of_a_classifier():
    """Gradients agree with central differences; the guiding gradient is differentiated itself."""
    guided = guidance.Classifier(TOY, lambda x, t: (x - 1).cos().sum(1), scale=0.5)
    known = Parameters(GGDMTable.of(DDIM(), SCHEDULE, [999, 600, 200]), "pred", stochastic=False)
    run = sampler(guided, seed=5)

    def loss():
        made = known()
        return run(made["tau"], known.updates(made), 6, 0).square().sum()

    loss().backward()
    slope = float(known.mu.grad[1, 2])
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            known.mu[1, 2] += sign * 1e-6
            values.append(float(loss()))
            known.mu[1, 2] -= sign * 1e-6
    assert slope == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5)


def test_moments_are_of_the_noise_whatever_the_prediction():
    model = Model(lambda x, t: gms_fast.NoiseMoments(0.4 * x.tanh(), None, None), sample_shape=(2,), prediction="v")
    table = search.ggdm(model, data_of_toy(50), 3, **QUICK | {"iterations": 1, "batch_size": 8, "score_samples": 8})
    got = gms_fast.sample(model, 3, solver=GGDM(table), n=4, clip=None, dtype=torch.float64)
    want = sampler(model)(table.tau, table.updates(), 4, 0)
    assert (got - want).abs().max() < 1e-12
    with pytest.raises(TypeError, match="model must return a tensor or NoiseMoments"):
        search.ggdm(Model(lambda x, t: None, sample_shape=(2,)), data_of_toy(50), 3, **QUICK)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_data_of_any_precision(dtype):
    images = torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    model = Model(lambda x, t: 0.4 * x.tanh(), sample_shape=(1, 8, 8))
    options = {"iterations": 1, "batch_size": 4, "score_samples": 4, "progress": False}
    assert search.ggdm(model, images, 2, features=search.load_features("digits"), **options).steps == 2


@pytest.mark.parametrize("prediction", ["x0", "v", "edm"])
def test_other_forms_of_prediction(prediction):
    schedule = EDM() if prediction == "edm" else SCHEDULE
    model = Model(lambda x, t: 0.4 * x.tanh(), sample_shape=(2,), schedule=schedule)
    options = {"clip": (-2.0, 2.0), "dtype": torch.float64}
    quick = {"iterations": 5, "batch_size": 32, "score_samples": 64, "progress": False, "features": seven}
    grid = "karras" if prediction == "edm" else 0.7
    table = search.ggdm(model, data_of_toy(200), 4, prediction=prediction, spacing=grid, **quick, **options)
    run = sampler(model, schedule=schedule, form=prediction, clip=(-2.0, 2.0))
    got = run(table.tau, table.updates(), 5, 0)
    want = gms_fast.sample(model, 4, solver=GGDM(table), prediction=prediction, n=5, **options)
    assert (got - want).abs().max() < 1e-10


@pytest.mark.parametrize("backend", ["torch", "cpp"])
def test_learned_table_runs_alike_on_the_kernels(backend):
    """The sampling loop on a backend against the unrolled reference.

    float32 has 24 bits, and an update rounds a sum of terms.
    """
    if backend not in gms_fast.backends()["available"]:
        pytest.skip("not built")
    points = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1
    model = PointCloud(points, 0.1)
    table = search.ggdm(model, points, 5, iterations=3, batch_size=8, score_samples=8,
                        variant="time", stochastic=True, progress=False, lr=2e-2)  # fmt: skip
    run = sampler(model, shape=(1, 4, 4), clip=(-1.0, 1.0), dtype=torch.float32)
    gms_fast.set_backend(backend)
    try:
        got = gms_fast.sample(model, 5, solver=GGDM(table), n=9)
    finally:
        gms_fast.set_backend(None)
    # 5 updates of a few terms, their weights near 1, each rounded to 24 bits; 157 is the first sigma/alpha
    assert (got - run(table.tau, table.updates(), 9, 0)).abs().max() < 157 * 5 * 4 * 2**-24


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible")
def test_on_a_gpu():
    """Network and features are on the GPU, the data on the CPU.

    The table then draws on the GPU what the unrolled sampler drew.
    """
    torch.manual_seed(0)
    model = MomentUNet(image_size=8, in_channels=1, model_channels=32, channel_mult=(1, 1), head=None).eval().cuda()
    for p in model.parameters():
        p.data.normal_(0, 0.05)
    options = {"iterations": 2, "batch_size": 8, "score_samples": 8, "progress": False, "variant": "time"}
    features = search.load_features("digits").cuda()
    table = search.ggdm(model, torch.rand(20, 1, 8, 8) * 2 - 1, 3, features=features, stochastic=True, **options)
    run = sampler(model, shape=(1, 8, 8), clip=(-1.0, 1.0), dtype=torch.float32)
    want = dataclasses.replace(run, device=torch.device("cuda"))(table.tau, table.updates(), 4, 0)
    got = gms_fast.sample(model, 3, solver=GGDM(table), n=4)
    assert (got - want).abs().max() < 1e-3  # the network may use TF32 or another convolution


def test_it_is_there_without_an_import_of_its_own():
    code = "import gms_fast, sys; assert callable(gms_fast.search.ggdm); assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_solvers_by_name():
    assert isinstance(solvers.build("unip"), UniP)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("key", ["parameters", "average", "best"])
def test_search_that_cannot_be_gone_on_with_is_named(tmp_path, key):
    """The stored numbers are finite, but no table can be made from them."""
    damage_files._searched(tmp_path)
    file = tmp_path / "checkpoint.pt"
    value = torch.load(file)
    parameters = {name: w.clone().fill_(1.7e308) for name, w in value["average"].items()}
    value[key] = {"score": 0.5, "iteration": 1, "parameters": parameters} if key == "best" else parameters
    torch.save(value, file)
    with pytest.raises(ValueError, match=rf"{file} is damaged: "):
        damage_files._searched(tmp_path)
