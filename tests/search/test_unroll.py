"""Gradients through the sampler against vectors and finite differences, and their memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_search import SCHEDULE, TOY, VECTORS, data_of_toy, double, sampler, seven
from toys import Model

import gms_fast
from gms_fast import search
from gms_fast.models import MomentUNet
from gms_fast.plan import COUNTED
from gms_fast.search.parameters import VARIANTS, Parameters
from gms_fast.search.unroll import Sampler
from gms_fast.solvers import DDIM, DPMSolverPP, GGDMTable, UniP
from gms_fast.tables.ggdm import tied, update_weights


def shifted(tau):
    """Times of the schedule for the tau of the vectors."""
    return torch.cat([tau.new_zeros(1), tau[1:] - 1])


class Given(Sampler):
    """A sampler with the noise of the vectors."""

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
    """Loss of `sampler_grad` for tables with gradients; tau counts as in the vectors."""
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
    """Compare with central differences, away from the first table and at times between integers."""
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
    scale_free = 1 if variant == "constrained" else 0  # in a row with one entry, only the direction matters
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
    """The gradient of a batch does not depend on the number of samples per network call."""
    known = Parameters(GGDMTable.of(DDIM(), SCHEDULE, [999, 400, 50]), "pred", stochastic=False)
    distance, made = search.KernelDistance(seven(data_of_toy(30))), known()
    distance(seven(sampler(chunk=chunk)(made["tau"], known.updates(made), 16, 0))).backward()
    whole = Parameters(known.first, "pred", stochastic=False)
    made = whole()
    distance(seven(sampler(chunk=16)(made["tau"], whole.updates(made), 16, 0))).backward()
    for name, p in whole.named_parameters():
        assert (known.get_parameter(name).grad - p.grad).abs().max() < 1e-12 * p.grad.abs().max()


def test_without_noise_the_mean_gradient_to_sigma_is_zero():
    """The gradient at sigma = 0 cancels over z and -z.

    The distribution of the sample is even in sigma. This is why sigma starts above 0.
    """
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
            x_s = gms_fast.ops.reference.linear_step([x, *terms], weights.unbind()) + std * z[3 - i]
            x, older = x_s, [x, *older]
        seven(x).square().sum().backward()
        slopes.append(sigma.grad[1:4])
    assert slopes[0].abs().min() > 1e-3
    assert (slopes[0] + slopes[1]).abs().max() < 1e-9 * slopes[0].abs().max()


def saved_bytes(steps, rematerialise):
    """Bytes that an unrolled sampler keeps for the backward pass.

    Each storage counts once, and the weights of the network do not count.
    """
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
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # a reference, so that the address is not reused
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run(made["tau"], known.updates(made), 64, 0)
    return sum(size for size, _ in kept.values())


def test_a_step_keeps_states_alone():
    """A step keeps a few states and the numbers of the table, and not the inside of the network.

    The states are x, m and the network's output. The vectors keep 2 kB a step of a network like this one, and 787 kB of
    its inside.
    """
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
    """Peak memory in KiB that a search adds.

    Freed memory returns to the system at once, so that it does not count.
    """
    command = [sys.executable, "-c", MEMORY, str(steps), str(rematerialise)]
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}
    return int(subprocess.run(command, capture_output=True, text=True, check=True, env=settings).stdout)


@pytest.mark.slow(60)
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak is read from /proc")
def test_memory_does_not_grow_with_the_steps():
    few, many, kept = peak(5, True), peak(20, True), peak(5, False)
    assert many < 1.3 * few
    assert kept > 2 * few


pytestmark = pytest.mark.usefixtures("one_thread")
