"""The search: its distance, its gradients against finite differences, its memory, and what it refuses."""

import csv
import dataclasses
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import damage_files
import places
import pytest
import torch
from toys import Model, Toy

import gms_fast
from gms_fast import data, guidance, search, solvers
from gms_fast.models import MomentUNet, PointCloud
from gms_fast.plan import COUNTED
from gms_fast.schedules import EDM, Flow, VPContinuous, VPCosine, VPLinear
from gms_fast.search import ddss
from gms_fast.search.checks import check_features
from gms_fast.search.features import pixels
from gms_fast.search.parameters import VARIANTS, Parameters, matched
from gms_fast.search.unroll import Sampler
from gms_fast.solvers import DDIM, GGDM, DPMSolverPP, GGDMTable, UniP
from gms_fast.tables.ggdm import marginals, tied, update_weights

VECTORS = json.loads((places.VECTORS / "ggdm_vectors.json").read_text())
SCHEDULE = VPLinear()
TOY = Toy(VECTORS["toy"])


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def sampler(model=TOY, **options):
    given = {"schedule": SCHEDULE, "form": "noise", "shape": (2,), "clip": None, "seed": 0, "dtype": torch.float64}
    return Sampler(model=model, device=torch.device("cpu"), **given | options)


def seven(x):
    """The features of the vectors."""
    a, b = x.unbind(1)
    return torch.stack([a, b, a * a, a * b, b * b, a.sin(), (2 * b).cos()], dim=1)


def data_of_toy(n, seed=0):
    """Draws of the mixture."""
    random, toy = torch.Generator().manual_seed(seed), VECTORS["toy"]
    which = torch.multinomial(double(toy["weights"]), n, replacement=True, generator=random)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=random)
    return double(toy["means"])[which] + double(toy["comp_var"])[which].sqrt()[:, None] * noise


# --- distance ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
def test_kernel_distance_of_the_vectors(kernel):
    entry = VECTORS["kid"]
    x = double(entry["X"]).requires_grad_()
    distance = search.KernelDistance(double(entry["Y"]), kernel)
    value = distance(x)
    value.backward()
    assert float(value.detach()) == pytest.approx(entry[kernel]["value"], abs=1e-12)
    assert (x.grad - double(entry[kernel]["grad_X"])).abs().max() < 1e-12
    flat = x.detach().flatten()
    for i in range(len(flat)):
        step = torch.zeros_like(flat)
        step[i] = 1e-6
        up, down = (float(distance((flat + sign * step).view_as(x))) for sign in (1, -1))
        assert (up - down) / 2e-6 == pytest.approx(float(x.grad.flatten()[i]), abs=1e-6)


def test_cubic_is_the_kernel_distance_of_the_quality_measures():
    from gms_fast.quality.measures import kernel_distance

    x, y = (torch.randn(80, 5, generator=torch.Generator().manual_seed(i), dtype=torch.float64) for i in (0, 1))
    assert float(search.KernelDistance(y)(x + 0.2)) == pytest.approx(kernel_distance(x + 0.2, y), abs=1e-9)


@pytest.mark.parametrize("kernel", ["linear", "cubic"])
def test_distance_has_no_bias(kernel):
    """Over many draws of both sides from one law its mean is 0, within 4 standard errors."""
    random = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 2, 6, 3, dtype=torch.float64, generator=random)
    found = double([float(search.KernelDistance(y, kernel)(x)) for x, y in draws])
    assert abs(float(found.mean())) < 4 * float(found.std()) / math.sqrt(len(found))


# --- gradients -----------------------------------------------------------------------------------------------------


def shifted(tau):
    """Times of the schedule for the tau of the vectors."""
    return torch.cat([tau.new_zeros(1), tau[1:] - 1])


class Given(Sampler):
    """With the noise of the vectors."""

    def __call__(self, tau, updates, n, offset):
        entry, real = VECTORS["sampler_grad"], gms_fast.ops.philox_normal

        def drawn(shape, *, step=0, stream=0, **_):
            first = double(entry["x_T"]) / float(SCHEDULE.sigma(tau[-1].detach()))
            return first if stream else double(entry["z"][entry["K"] - 1 - (step - COUNTED)])

        gms_fast.ops.philox_normal = drawn
        try:
            return super().__call__(tau, updates, n, offset)
        finally:
            gms_fast.ops.philox_normal = real


def loss_of_vectors(values, *, free, rematerialise):
    """The loss of `sampler_grad` for tables with gradients; tau as the vectors count it."""
    entry, tau = VECTORS["sampler_grad"], shifted(values["tau"])
    options = {"form": "noise", "shape": (2,), "clip": None, "seed": 0, "dtype": torch.float64, "chunk": 5}
    run = Given(model=TOY, schedule=SCHEDULE, device=torch.device("cpu"), rematerialise=rematerialise, **options)
    c, d = (values["c"], values["d"]) if free else tied(values["mu"], values["sigma"])
    levels = SCHEDULE.alpha(tau), SCHEDULE.sigma(tau)
    x = run(tau, update_weights(levels, values["mu"], values["sigma"], c, d), entry["K"] * 4, 0)
    return search.KernelDistance(seven(double(entry["real"])))(seven(x))


def values_of_vectors(free):
    entry = VECTORS["sampler_grad"]
    values = {"tau": double(entry["tau"]), "mu": double(entry["mu"]), "sigma": double(entry["sigma"])}
    if free:
        abar = torch.cat([double([1.0]), SCHEDULE.alpha(shifted(values["tau"])[1:]) ** 2])
        values |= {"c": 1 / abar.sqrt(), "d": ((1 - abar) / abar).sqrt()}
    return values


@pytest.mark.parametrize("rematerialise", [True, False])
@pytest.mark.parametrize("kind", ["tied", "pred"])
def test_gradients_of_the_vectors(kind, rematerialise):
    values = {k: v.requires_grad_() for k, v in values_of_vectors(kind == "pred").items()}
    loss = loss_of_vectors(values, free=kind == "pred", rematerialise=rematerialise)
    loss.backward()
    entry = VECTORS["sampler_grad"][kind]
    assert float(loss.detach()) == pytest.approx(entry["loss"], abs=1e-10)
    names = {"mu": "mu", "sg": "sigma", "tau": "tau", "c": "c", "d": "d"}
    for key, entries in entry["grad_autodiff_and_fd"].items():
        for at, (autodiff, finite) in entries.items():
            got = float(values[names[key]].grad[tuple(int(i) for i in at.split("_"))])
            assert got == pytest.approx(autodiff, abs=1e-8), (key, at)
            assert got == pytest.approx(finite, rel=1e-6, abs=1e-8), (key, at)


@pytest.mark.parametrize("stochastic", [False, True])
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradient_to_every_number_of_a_variant(variant, stochastic):
    """Against central differences, away from the first table, at times that are no integers."""
    first = GGDMTable.of(DPMSolverPP(), SCHEDULE, [998.6, 700.3, 300.4, 60.7])
    known = Parameters(first, variant, stochastic=stochastic)
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in known.parameters():
            p += 0.05 * torch.randn(p.shape, dtype=torch.float64, generator=random)
    distance, run = search.KernelDistance(seven(data_of_toy(40))), sampler(seed=5)

    def loss():
        made = known()
        return distance(seven(run(made["tau"], known.updates(made), 12, 0)))

    loss().backward()
    checked = 0
    for name, p in known.named_parameters():
        flat, slopes = p.data.view(-1), p.grad.view(-1)
        for i in range(len(flat)):
            value = float(flat[i])
            with torch.no_grad():
                flat[i] = value + 1e-6
                up = float(loss())
                flat[i] = value - 1e-6
                down = float(loss())
                flat[i] = value
            finite = (up - down) / 2e-6
            assert float(slopes[i]) == pytest.approx(finite, rel=2e-5, abs=2e-7), (name, i)
            checked += abs(finite) > 5e-9  # the rounding of a loss near 1
    K = 4
    free = {"ggdm": K * (K - 1) // 2 + K - 1, "constrained": K * (K - 1) // 2}
    free["pred"] = free["ggdm"] + 2 * K
    free["time"] = free["pred"] + K
    scale_free = 1 if variant == "constrained" else 0  # of a row with one entry, only the direction counts
    assert checked == free[variant] - scale_free + (K - 1) * stochastic


def test_rematerialised_gradients_are_identical():
    model = MomentUNet(image_size=8, in_channels=1, model_channels=32, channel_mult=(1, 1), head=None)
    torch.manual_seed(0)
    for p in model.parameters():  # `out` starts at zero
        p.data.normal_(0, 0.05)
    model.requires_grad_(False)
    first = GGDMTable.of(UniP(), SCHEDULE, [999, 600, 200, 40])
    found = []
    for rematerialise in (True, False):
        known = Parameters(first, "time", stochastic=True)
        run = sampler(model, shape=(1, 8, 8), dtype=torch.float32, rematerialise=rematerialise, clip=(-1.0, 1.0))
        made = known()
        run(made["tau"], known.updates(made), 6, 0).square().sum().backward()
        found.append({name: p.grad for name, p in known.named_parameters()})
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name]), name
        assert name == "q" or grad.any()


@pytest.mark.parametrize("chunk", [1, 5, 64])
def test_accumulation_is_exact(chunk):
    """The gradient of a batch does not depend on how many samples the network sees at a time."""
    known = Parameters(GGDMTable.of(DDIM(), SCHEDULE, [999, 400, 50]), "pred", stochastic=False)
    distance, made = search.KernelDistance(seven(data_of_toy(30))), known()
    distance(seven(sampler(chunk=chunk)(made["tau"], known.updates(made), 16, 0))).backward()
    whole = Parameters(known.first, "pred", stochastic=False)
    made = whole()
    distance(seven(sampler(chunk=16)(made["tau"], whole.updates(made), 16, 0))).backward()
    for name, p in whole.named_parameters():
        assert (known.get_parameter(name).grad - p.grad).abs().max() < 1e-12 * p.grad.abs().max()


def test_without_noise_the_mean_gradient_to_sigma_is_zero():
    """The law of the sample is even in sigma: over z and -z the gradient at 0 cancels, which is why it starts above."""
    values = values_of_vectors(False)
    values["sigma"] = values["sigma"] * double([0, 0, 0, 0, 1])
    slopes = []
    entry = VECTORS["sampler_grad"]
    for sign in (1, -1):
        sigma = values["sigma"].clone().requires_grad_()
        z = [sign * double(v) for v in entry["z"]]
        x, older = double(entry["x_T"]), []
        levels = SCHEDULE.alpha(shifted(values["tau"])), SCHEDULE.sigma(shifted(values["tau"]))
        made = update_weights(levels, values["mu"], sigma, *tied(values["mu"], sigma))
        for i, (weights, std) in enumerate(made):
            t = shifted(values["tau"])[4 - i]
            m = (x - SCHEDULE.sigma(t) * TOY(x, t.expand(len(x)))) / SCHEDULE.alpha(t)
            terms = [m, *older[: len(weights) - 2]]
            x, older = gms_fast.ops.reference.affine_noise(x, terms, weights.unbind(), std, z[3 - i]), [x, *older]
        seven(x).square().sum().backward()
        slopes.append(sigma.grad[1:4])
    assert slopes[0].abs().min() > 1e-3
    assert (slopes[0] + slopes[1]).abs().max() < 1e-9 * slopes[0].abs().max()


# --- parameters ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=0.3), DPMSolverPP(), UniP()], ids=repr)
@pytest.mark.parametrize("variant", VARIANTS)
def test_they_begin_as_the_first_table(variant, solver):
    """What is drawn before the first iteration is what the solver draws."""
    times = [999, 600, 200, 40]
    table = GGDMTable.of(solver, SCHEDULE, times)
    known = Parameters(table, variant, stochastic=False)
    options = {"model": TOY, "solver": solver, "timesteps": times, "clip": None, "dtype": torch.float64, "n": 7}
    want = gms_fast.sample(**options, seed=4)
    made = known()
    got = sampler(seed=4)(made["tau"], known.updates(made), 7, 0)
    assert (got - want).abs().max() < 1e-11
    through_kernels = gms_fast.sample(
        TOY, 4, solver=GGDM(known.table(None)), n=7, seed=4, clip=None, dtype=torch.float64
    )
    assert (through_kernels - want).abs().max() < 1e-11


def test_matched_is_that_of_the_vectors():
    entry = VECTORS["constrained"]
    abar = double(entry["abar"])
    mu, sigma = matched(double(entry["raw"]), double(entry["eta"]), abar.sqrt(), (1 - abar).sqrt())
    assert (mu - double(entry["mu"])).abs().max() < 1e-14
    assert (sigma - double(entry["sigma"])).abs().max() < 1e-14
    a, v = marginals(mu, sigma)
    assert (a**2 - abar)[1:].abs().max() < 1e-14
    assert (v - 1 + abar)[1:].abs().max() < 1e-14


@pytest.mark.parametrize("stochastic", [False, True])
def test_constrained_stays_on_the_marginals(stochastic):
    known = Parameters(GGDMTable.of(UniP(), SCHEDULE, [999, 600, 200, 40]), "constrained", stochastic=stochastic)
    with torch.no_grad():
        for p in known.parameters():
            p += 0.3 * torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    table = known.table(None)
    a, v = table.marginals()
    assert (a - SCHEDULE.alpha(table.tau))[1:].abs().max() < 1e-12
    assert (v - SCHEDULE.sigma(table.tau) ** 2)[1:].abs().max() < 1e-12
    assert bool((table.sigma[1:-1] > 0).all()) == stochastic


def test_learned_times_stay_in_order():
    known = Parameters(GGDMTable.of(DDIM(), SCHEDULE, [999, 600, 200, 40]), "time", stochastic=False)
    with torch.no_grad():
        known.tau += 3 * torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tau = known()["tau"]
    assert (tau[0], tau[-1]) == (0, 999)
    assert bool((tau.diff() > 0).all())


# --- the loop ------------------------------------------------------------------------------------------------------


QUICK = {
    "clip": None, "dtype": torch.float64, "features": seven, "progress": False, "spacing": "uniform",
    "initial": "ddim", "batch_size": 256, "score_samples": 2000, "lr": 2e-2, "iterations": 250, "rematerialise": False,
    "chunk": 4000, "score_every": 25,
}  # fmt: skip


def searched(steps=3, **options):
    return search.ggdm(TOY, data_of_toy(4000), steps, **QUICK | options)


def judged(table, n=4000):
    """The distance of fresh samples through the kernels from fresh data."""
    x = gms_fast.sample(TOY, table.steps, solver=GGDM(table), n=n, seed=99, clip=None, dtype=torch.float64)
    return float(search.KernelDistance(seven(data_of_toy(n, seed=7)))(seven(x)))


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    out = tmp_path_factory.mktemp("search")
    return searched(out=out), out


def test_it_learns_a_better_sampler(learned):
    """On other seeds and data than it learned from the distance falls at least ten times."""
    times = [float(t) for t in SCHEDULE.grid(3, "uniform")][:-1]
    first = GGDMTable.of(DDIM(), SCHEDULE, times)
    assert judged(first) > 0.1
    assert judged(learned[0]) < judged(first) / 10


@pytest.mark.parametrize(("steps", "variant", "before", "after"), VECTORS["toy_ddss"]["rows"])
def test_toy_searches_of_the_vectors(steps, variant, before, after):
    """From the same distance to one as small, by fresh samples; theirs and ours have noise of up to .005 each."""
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
    # on the marginals of fixed times there is less to win
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
    searched(**options, out=tmp_path)  # finished, but what it stands for is there again
    assert torch.equal(GGDMTable.load(tmp_path / "table.safetensors").mu, want.mu)
    with pytest.raises(FileExistsError, match="already holds a search"):
        searched(**options, out=tmp_path, resume=False)
    with pytest.raises(ValueError, match="batch_size: 64 there, 65 asked for"):
        searched(**options | {"batch_size": 65}, out=tmp_path)
    with pytest.raises(ValueError, match="batch_size"):
        searched(**options | {"batch_size": 1}, out=tmp_path, replace=True)
    assert GGDMTable.load(tmp_path / "table.safetensors").steps == 3  # what is refused deletes nothing
    searched(**options | {"iterations": 1}, out=tmp_path, replace=True)
    assert len((tmp_path / "curve.csv").read_text().splitlines()) == 3


def test_it_stops_early_and_keeps_the_best(tmp_path):
    """A rate at which it only gets worse: what comes back is the first table."""
    first = GGDMTable.of(DDIM(), SCHEDULE, [999, 600, 200])
    table = searched(initial=first, spacing=None, lr=3.0, clip_norm=1e9, warmup=0, patience=2, score_every=2, ema=0.0,
                     batch_size=16, out=tmp_path)  # fmt: skip
    assert torch.equal(table.mu, first.mu)
    assert (
        len(list(csv.reader((tmp_path / "curve.csv").open()))) == 4
    )  # a heading, the first score and two without luck


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
    """Where clean data has no noise, and where the first level has almost no signal, too."""
    model = Model(lambda x, t: 0.4 * x.tanh() + 0.01 * t[:, None], sample_shape=(2,), schedule=schedule)
    quick = {"features": seven, "iterations": 2, "batch_size": 8, "score_samples": 8, "progress": False}
    table = search.ggdm(model, data_of_toy(50), 4, variant=variant, stochastic=True, dtype=torch.float64, **quick)
    assert table.tau[0] == schedule.t_min
    assert gms_fast.sample(model, 4, solver=GGDM(table), n=3).isfinite().all()


def test_modules_that_are_in_training():
    """Dropout and running statistics rest meanwhile, and go on after it."""
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
    """Against central differences: the gradient that guides has one itself."""
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
    """The loop on a backend against the unrolled reference: float32 has 24 bits, an update rounds a sum of terms."""
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
    """Network and features there, data here; the table then draws there what the unrolled sampler drew."""
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
    assert (got - want).abs().max() < 1e-3  # of a network in TF32 or with another convolution


def saved_bytes(steps, rematerialise):
    """What an unrolled sampler keeps for the way back, each storage once, but for the network's weights."""
    layers = [layer for _ in range(5) for layer in (torch.nn.Linear(256, 256), torch.nn.SiLU())]
    net = torch.nn.Sequential(torch.nn.Linear(2, 256), *layers, torch.nn.Linear(256, 2)).double().requires_grad_(False)
    weights, kept = {p.data_ptr() for p in net.parameters()}, {}
    known = Parameters(
        GGDMTable.of(DDIM(), SCHEDULE, [float(t) for t in SCHEDULE.grid(steps, 0.7)][:-1]), "pred", stochastic=False
    )
    made, run = known(), sampler(Model(lambda x, t: net(x)), rematerialise=rematerialise, chunk=64)

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(made["tau"], known.updates(made), 64, 0)
    return sum(size for size, _ in kept.values())


def test_a_step_keeps_states_alone():
    """The vectors keep 2 kB a step of a network like this one, and 787 kB of its inside: a few states are allowed here,
    of x, m and the network's output, and the numbers of the table."""
    rows = {(k, remat): size for k, remat, size in VECTORS["remat_saved_bytes"]["rows"]}
    a_step = (saved_bytes(20, True) - saved_bytes(5, True)) / 15
    assert a_step < 10 * (rows[20, True] - rows[5, True]) / 15
    assert (saved_bytes(20, False) - saved_bytes(5, False)) / 15 > 50 * a_step


MEMORY = """
import re, sys, torch
from pathlib import Path
from gms_fast import search
from gms_fast.models import MomentUNet
def memory(name):
    return int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
torch.set_num_threads(1)
torch.manual_seed(0)
model = MomentUNet(image_size=16, in_channels=1, model_channels=32, channel_mult=(1, 2), head=None).eval()
data = torch.rand(8, 1, 16, 16)
options = {"iterations": 1, "batch_size": 32, "chunk": 32, "score_samples": 4, "progress": False}
before = memory("VmRSS")
search.ggdm(model, data, int(sys.argv[1]), rematerialise=sys.argv[2] == "True", **options)
print(memory("VmHWM") - before)
"""


def peak(steps, rematerialise):
    """KiB that a search needs beside what was there; what is freed goes back at once, so that it is not counted."""
    command = [sys.executable, "-c", MEMORY, str(steps), str(rematerialise)]
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=settings).stdout)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_steps():
    few, many, kept = peak(5, True), peak(20, True), peak(5, False)
    assert many < 1.3 * few
    assert kept > 2 * few


# --- what it refuses -----------------------------------------------------------------------------------------------


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
        (Blocking(), ValueError, "features must let a gradient through"),
        (lambda x: torch.zeros(len(x), 3, requires_grad=True), ValueError, "features must let a gradient through"),
        (lambda x: x.detach().flatten(1), ValueError, "features must let a gradient through"),
        (lambda x: x.flatten(1) / 0, ValueError, "features must be finite"),
    ],
)
def test_features_that_are_none(features, error, says):
    with pytest.raises(error, match=says):
        searched(features=features)


def test_features_of_the_digits():
    net = search.load_features("digits")
    for dtype in (torch.float32, torch.float64):
        assert check_features(net, (1, 8, 8), torch.device("cpu"), dtype) == 160
        assert check_features(net.half(), (1, 8, 8), torch.device("cpu"), dtype) == 160
        assert check_features(pixels, (1, 8, 8), torch.device("cpu"), dtype) == 64
        net.float()
    with pytest.raises(ValueError, match=r"images must be \(N, 1, 8, 8\)"):
        check_features(net, (1, 28, 28), torch.device("cpu"), torch.float32)
    with pytest.raises(ValueError, match="features must be one of mnist5k, digits"):
        search.load_features("cifar")


def test_features_tell_digits_apart():

    for name in ("digits", "mnist5k"):
        images, labels = data.load(name), data.load_labels(name)
        net = search.load_features(name)
        assert (net.classes(net(images[:1000])).argmax(1) == labels[:1000]).float().mean() > 0.97


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
        ({"initial": "gms"}, TypeError, "solver must be a linear one"),
        ({"initial": "euler"}, ValueError, "solver must be a Solver or one of"),
        ({"steps": 0}, ValueError, "steps must be an integer of at least 1"),
        ({"initial": GGDMTable.of(DDIM(), SCHEDULE, [999, 10]), "spacing": None}, ValueError, "steps: 2 there, 3 here"),
        (
            {"initial": GGDMTable.of(DDIM(), SCHEDULE, [999, 9, 3])},
            ValueError,
            "spacing must not be given beside a table",
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
        (torch.zeros(3, 2), "data must be a floating tensor .* of at least 4 samples"),
        (torch.zeros(10, 2, dtype=torch.int64), "data must be a floating tensor"),
        ([[0.0, 1.0]], "data must be a floating tensor"),
        (torch.full((10, 2), math.nan), "data must be finite"),
    ],
)
def test_data_that_is_none(data, says):
    with pytest.raises(ValueError, match=says):
        search.ggdm(TOY, data, 3, **QUICK)


def test_data_that_is_all_the_same():
    with pytest.raises(ValueError, match="features of data must be finite and differ"):
        search.ggdm(TOY, torch.ones(10, 2), 3, **QUICK)


def test_tables_that_a_variant_cannot_begin_as():
    free = GGDMTable.of(DDIM(), SCHEDULE, [999, 600, 200])
    free = GGDMTable(SCHEDULE, free.tau, free.mu, free.sigma, 1.1 * free.c, free.d)
    mu = 1.1 * free.mu
    mu[3] = free.mu[3]
    wide = GGDMTable(SCHEDULE, free.tau, mu, free.sigma)
    for variant, table in (("ggdm", free), ("constrained", free), ("constrained", wide)):
        with pytest.raises(ValueError, match=f'initial must be a table that variant "{variant}" can begin as'):
            searched(initial=table, spacing=None, variant=variant)
    for variant, table in (("ggdm", wide), ("pred", free), ("pred", wide), ("time", free)):
        Parameters(table, variant, stochastic=False)


@pytest.mark.parametrize("variant", ["ggdm", "constrained"])
def test_nothing_to_learn(variant):
    with pytest.raises(ValueError, match="nothing to learn at steps = 1"):
        searched(1, variant=variant)


def test_a_network_without_gradient():
    with pytest.raises(ValueError, match="model must let a gradient through"):
        search.ggdm(Model(lambda x, t: (0.3 * x).detach(), sample_shape=(2,)), data_of_toy(20), 3, **QUICK)


def test_times_without_gradient():
    with pytest.raises(ValueError, match='variant "time" needs a network that is differentiable in t'):
        search.ggdm(Model(lambda x, t: 0.3 * x, sample_shape=(2,)), data_of_toy(20), 3, variant="time", **QUICK)


def test_it_is_there_without_an_import_of_its_own():
    code = "import gms_fast, sys; assert callable(gms_fast.search.ggdm); assert 'scipy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_solvers_by_name():
    assert isinstance(solvers.build("unip"), UniP)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("key", ["parameters", "average", "best"])
def test_search_that_cannot_be_gone_on_with_is_named(tmp_path, key):
    """Its numbers are finite, but no table can be made of them."""
    damage_files._searched(tmp_path)
    file = tmp_path / "checkpoint.pt"
    value = torch.load(file)
    parameters = {name: w.clone().fill_(1.7e308) for name, w in value["average"].items()}
    value[key] = {"score": 0.5, "iteration": 1, "parameters": parameters} if key == "best" else parameters
    torch.save(value, file)
    with pytest.raises(ValueError, match=rf"{file} is damaged: "):
        damage_files._searched(tmp_path)
