"""Checks of a kernel against the float64 oracle; shared by the tests of the compiled and of the Triton kernels.

The budget is twice the error that the same formulas make in plain float32 torch, plus a few roundings of the result,
plus what the oracle itself moves by when its inputs move by a few roundings (the released clipping jumps).
"""

import itertools
import math

import torch

import gms_fast
from bench.faults.random_fits import Problem, in_units_of_the_bound
from gms_fast import ops
from gms_fast.schedules import VPLinear

EPS = 2.0**-23
FITS = ["exact", "free", "gaussian", "adan"]
# What storing a result in a narrow dtype adds, relative to it.
NARROW = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def network_moments(shape, t, central=False, device="cpu"):
    """Noise moments like a network's: consistent but for an error of one percent."""
    torch.manual_seed(0)
    schedule = VPLinear()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x_0, spread = torch.rand(shape) * 2 - 1, 0.2 * torch.rand(shape)
    eps = torch.randn(shape)
    r2, r3 = (alpha / sigma * spread) ** 2, (alpha / sigma * spread) ** 3 * torch.randn(shape)
    e2, e3 = (r2, r3) if central else (r2 + eps**2, r3 + 3 * eps * r2 + eps**3)
    return [m.to(device) for m in (alpha * x_0 + sigma * eps, eps * (1 + 0.01 * torch.randn(shape)), e2, e3)]


def weights_by_element(terms, like):
    """Of x, of the terms, and what is added: (terms + 2, *), of either sign."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((terms + 2, *like.shape[1:]), generator=generator).to(like.device)


def cast(tensors, dtype, noise=0.0):
    """The tensors in another dtype, each element moved by a random part of `noise`."""
    given = [None if t is None else t.to(dtype) for t in tensors]
    return [None if t is None else t * (1 + noise * (2 * torch.rand_like(t) - 1)) for t in given] if noise else given


def on_plain_torch(run, tensors, backend):
    gms_fast.set_backend("torch")
    try:
        return run(tensors)
    finally:
        gms_fast.set_backend(backend)


def check(run, inputs, dtype=torch.float32, scale=1.0, *, backend=None, fit=None):
    """run(tensors) on `backend` against float64, within the budget.

    fit="adan" divides by sums near zero in every iteration: any element may move as far as the one that moved most.
    """
    given = cast(inputs, dtype)
    want = run(cast(given, torch.float64))  # float64 is always the reference
    eager = on_plain_torch(run, cast(given, torch.float32), backend)
    moved = [run(cast(given, torch.float64, 4 * EPS)) for _ in range(16)]
    results = [r if isinstance(r, tuple) else (r,) for r in (run(given), eager, want, *moved)]
    for got, e, w, *others in zip(*results, strict=True):
        assert got.dtype == dtype
        assert torch.isfinite(got).all()
        unstable = torch.stack([(o - w).abs() for o in others]).amax(0)
        if fit == "adan":
            unstable = unstable.amax().expand_as(unstable)
        rounding = (e.double() - w).abs()
        budget = 2 * rounding + 2 * unstable + 8 * EPS * (w.abs() + scale) + NARROW[dtype] * w.abs()
        assert ((got.double() - w).abs() <= budget.clamp(min=2 * rounding.max() + 8 * EPS * scale)).all()


def skewed(mean, var, floor, device="cpu"):
    """(mean, var, third), each (1, 284): skewness of +-10^-3 to +-10^4 of what lies above the floor."""
    third = torch.logspace(-3, 4, 142, dtype=torch.float64) * (var - floor) ** 1.5
    third = torch.cat([third, -third]).float()[None].to(device)
    return torch.full_like(third, mean), torch.full_like(third, var), third


def check_light_component(mean, floor, device="cpu"):
    """fit="free": component a is the light one on either side, drawn where u < w; mirrored moments, mirrored law."""
    given = skewed(mean, 0.25, floor, device)
    fit = ops.fit_mixture(*given, floor, fit="free")
    w, a, b, v = fit
    assert (w <= 0.5).all()
    mirrored = ops.fit_mixture(-given[0], given[1], -given[2], floor, fit="free")
    assert all(map(torch.equal, mirrored, (w, -a, -b, v)))
    worst = in_units_of_the_bound(fit, Problem("free", 1 / 3, floor, *given))
    assert max(float(error.max()) for error in worst.values()) <= 1
    for u, node in ((w * (1 - 2.0**-19), a), (w * (1 + 2.0**-19), b)):  # u h < near is told to 17 roundings of 2^-24
        assert torch.equal(ops.sample_mixture(*given, floor, fit="free", noise=(torch.zeros_like(w), u)), node)


def check_missing(device="cpu"):
    """NaN in a moment is NaN in the mixture and in the draw, there and nowhere else; one Gaussian reads no third."""
    given = skewed(0.3, 0.25, 0.0, device)
    at = torch.arange(given[0].numel(), device=device)[None] == 7
    for fit, bad, floor in itertools.product(FITS, range(3), (0.0, 0.1, 10.0)):
        spoiled = [m.masked_fill(at, math.nan) if i == bad else m for i, m in enumerate(given)]
        (*clean, draw), (*found, spoiled_draw) = (
            (*ops.fit_mixture(*m, floor, fit=fit), ops.sample_mixture(*m, floor, fit=fit)) for m in (given, spoiled)
        )
        missing = at if (fit, bad) != ("gaussian", 2) else torch.zeros_like(at)
        assert torch.equal(torch.stack(found).isnan().any(0), missing)
        assert torch.equal(spoiled_draw.isnan(), missing)
        for a, b in zip((*clean, draw), (*found, spoiled_draw), strict=True):
            assert torch.equal(a[~missing], b[~missing])


def check_missing_in_steps(device="cpu"):
    """The same of a step: one Gaussian does not read e3, and released clipping takes E[x_0] where E[x_0^3] is NaN."""
    given = network_moments((3, 63), 400, device=device)
    step = gms_fast.StepCoefficients.between(VPLinear(), 400, 300)
    at = torch.arange(given[0].numel(), device=device).view_as(given[0]) == 70
    for fit, moments, bad in itertools.product(FITS, ("cumulant", "released"), range(4)):
        options = {"fit": fit, "moments": moments, "iterations": 4}
        spoiled = [m.masked_fill(at, math.nan) if i == bad else m for i, m in enumerate(given)]
        clean, found = (ops.gms_step(*m, step, **options) for m in (given, spoiled))
        missing = at if bad < 3 or (fit != "gaussian" and moments == "cumulant") else torch.zeros_like(at)
        assert torch.equal(found.isnan(), missing)
        assert torch.equal(found[~at], clean[~at])
    without = ops.gms_step(*given[:3], None, step, fit="gaussian")
    assert torch.equal(ops.gms_step(*given[:3], given[3] * math.nan, step, fit="gaussian"), without)


def check_mirrored_steps(device="cpu"):
    """A step of the mirrored state, moments and noise is the mirrored step, bit for bit."""
    x, e1, e2, e3 = network_moments((3, 63), 400, device=device)
    step = gms_fast.StepCoefficients.between(VPLinear(), 400, 300)
    z, u = torch.randn_like(x), torch.rand_like(x)
    for fit, moments in itertools.product(("exact", "free"), ("cumulant", "released")):
        options = {"fit": fit, "moments": moments, "component": "element"}
        here = ops.gms_step(x, e1, e2, e3, step, noise=(z, u), **options)
        assert torch.equal(ops.gms_step(-x, -e1, e2, -e3, step, noise=(-z, u), **options), -here)
