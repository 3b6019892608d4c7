"""Checks of a kernel against the float64 oracle, for the compiled and the Triton kernels.

The error budget is the sum of three parts: twice the error of the same formulas in plain float32 torch, a few
roundings of the result, and the change of the oracle itself when its inputs change by a few roundings (the released
clipping has jumps).
"""

import itertools
import math

import torch

import gms_fast
from bench.faults.random_fits import Problem, in_units_of_the_bound
from gms_fast import ops
from gms_fast.ops import fused
from gms_fast.ops.checks import rows_of
from gms_fast.ops.types import COLUMNS, Draws, Fit, Linear, Reading, Watch
from gms_fast.schedules import VPLinear

EPS = 2.0**-23
FITS = ["exact", "free", "gaussian", "adan"]
# Relative error from storing a result in a narrow dtype.
NARROW = {torch.float32: 0.0, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


def network_moments(shape, t, central=False, device="cpu"):
    """Return noise moments like a network's, consistent but for an error of one percent."""
    torch.manual_seed(0)
    schedule = VPLinear()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x_0, spread = torch.rand(shape) * 2 - 1, 0.2 * torch.rand(shape)
    eps = torch.randn(shape)
    r2, r3 = (alpha / sigma * spread) ** 2, (alpha / sigma * spread) ** 3 * torch.randn(shape)
    e2, e3 = (r2, r3) if central else (r2 + eps**2, r3 + 3 * eps * r2 + eps**3)
    return [m.to(device) for m in (alpha * x_0 + sigma * eps, eps * (1 + 0.01 * torch.randn(shape)), e2, e3)]


def weights_by_element(terms, like):
    """Return weights (terms + 2, *) of either sign: of x, of the terms, and of the noise."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((terms + 2, *like.shape[1:]), generator=generator).to(like.device)


READING = Reading(0.7, -0.4, -1.0, 1.0, guidance=2.5)
_WEIGHTS = (0.9, -0.4, 0.3, -0.2, 0.25, 1.5, -0.7)


def linear(terms, results=1, *, reading=READING, columns=None, **switches):
    """Return a linear step; `columns`, the inputs of its first result, makes weights by element."""
    weights = *_WEIGHTS[: terms + (1 if reading is None else 2)], 0.3
    present = 0
    if columns is not None:
        rest = range(1 if reading is not None else 2, terms + 2)
        present = rows_of(1, columns) | rows_of(results, rest) >> COLUMNS << COLUMNS
    return Linear(reading, weights, terms, results, present=present, **switches)


LINEAR = {
    "the estimate alone": linear(0, 0, keeps=True),
    "no terms": linear(0),
    "no terms, noisy": linear(0, keeps=True, noisy=True),
    "one term": linear(1, keeps=True),
    "two terms, noisy": linear(2, noisy=True),
    "three terms": linear(3),
    "three terms, noisy": linear(3, keeps=True, noisy=True),
    "four terms": linear(4, noisy=True),
    "no output": linear(2, reading=None, noisy=True),
    "no output, four terms": linear(4, reading=None),
    "by element": linear(0, columns=[1], keeps=True),
    "by element, noisy": linear(2, columns=[1, 2, 3], noisy=True),
    "by element, two results": linear(1, 2, columns=[2], keeps=True),
    "by element, three results": linear(4, 3, columns=[1, 5], keeps=True, noisy=True),
    "by element, no output": linear(2, 2, columns=[3], reading=None, noisy=True),
}
FIRST = Draws()
SEEN, UNSEEN = 8, (1 << 31) - 1  # code of a watched step, and initial value of a watch


def linear_tensors(step, shape, state=torch.float32, network=torch.float32, guided=True, device="cpu"):
    """Return the tensors of a step and its weights by element.

    The tensors are x, output, unconditional and terms, each in the dtype of the state or of the network.
    """
    x, output, unconditional, *others = [*network_moments(shape, 400), *network_moments(shape, 100)]
    terms = [(others[i % 4] + i).to(state) for i in range(step.terms)]
    given = [t.to(network) if step.reading is not None else None for t in (output, unconditional)]
    rows = step.present.bit_count()
    numbers = weights_by_element(rows - 2, x).to(device) if rows else None
    tensors = [x.to(state), given[0], given[1] if guided else None, *terms]
    return [None if t is None else t.to(device) for t in tensors], numbers


def run_linear(step, tensors, numbers=None, draws=FIRST):
    """Return the results of a watched step, and the code that the watch saw."""
    x, output, unconditional, *terms = tensors
    if step.reading is not None and unconditional is None:
        step = step._replace(reading=step.reading._replace(guidance=1.0))
    watch = Watch(torch.full((1,), UNSEEN, dtype=torch.int32, device=x.device), SEEN)
    made = fused.linear_step(x, output, terms, step, draws, numbers=numbers, unconditional=unconditional, watch=watch)
    return *made, watch.first


def run_step(x, e1, e2, e3, unconditional, step, fit="exact", *, draws=FIRST, **options):
    """Return the result of a watched step with guidance, and the code that the watch saw."""
    watch = Watch(torch.full((1,), UNSEEN, dtype=torch.int32, device=x.device), SEEN)
    guidance = 1.0 if unconditional is None else 2.5
    made = fused.gms_step(
        x, e1, e2, e3, step, Fit(fit, iterations=3), draws, unconditional=unconditional, guidance=guidance,
        watch=watch, **options,
    )  # fmt: skip
    return made, watch.first


def before_nan(tensor):
    """Copy the tensor to memory that is followed by NaN."""
    if tensor is None:
        return None
    memory = torch.full((tensor.numel() + 16,), math.nan, dtype=tensor.dtype, device=tensor.device)
    return memory[: tensor.numel()].view(tensor.shape).copy_(tensor)


def spoiled(tensors, which, value, at=-1):
    """Copy the tensors, with one element of one of them replaced."""
    given = [None if t is None else t.clone() for t in tensors]
    given[which].view(-1)[at] = value
    return given


def cast(tensors, dtype, noise=0.0):
    """Cast the tensors, and change each element by a random part of `noise`."""
    given = [None if t is None else t.to(dtype) for t in tensors]
    return [None if t is None else t * (1 + noise * (2 * torch.rand_like(t) - 1)) for t in given] if noise else given


def on_plain_torch(run, tensors, backend):
    gms_fast.set_backend("torch")
    try:
        return run(tensors)
    finally:
        gms_fast.set_backend(backend)


def check(run, inputs, dtype=torch.float32, scale=1.0, *, backend=None, fit=None):
    """Check run(tensors) on `backend` against float64, within the budget.

    fit="adan" divides by sums near zero in every iteration. So any element may change as much as the one that changes
    most.
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
    """Return (mean, var, third), each (1, 284), of skewness +-10^-3 to +-10^4 above the floor."""
    third = torch.logspace(-3, 4, 142, dtype=torch.float64) * (var - floor) ** 1.5
    third = torch.cat([third, -third]).float()[None].to(device)
    return torch.full_like(third, mean), torch.full_like(third, var), third


def check_light_component(mean, floor, device="cpu"):
    """Check fit="free": component a is the light one on either side, drawn where u < w.

    Mirrored moments give the mirrored mixture.
    """
    given = skewed(mean, 0.25, floor, device)
    fit = ops.fit_mixture(*given, floor, fit="free")
    w, a, b, v = fit
    assert (w <= 0.5).all()
    mirrored = ops.fit_mixture(-given[0], given[1], -given[2], floor, fit="free")
    assert all(map(torch.equal, mirrored, (w, -a, -b, v)))
    worst = in_units_of_the_bound(fit, Problem("free", 1 / 3, floor, *given))
    assert max(float(error.max()) for error in worst.values()) <= 1
    for u, node in ((w * (1 - 2.0**-19), a), (w * (1 + 2.0**-19), b)):  # u h < near is exact to 17 roundings of 2^-24
        assert torch.equal(ops.sample_mixture(*given, floor, fit="free", noise=(torch.zeros_like(w), u)), node)


def check_missing(device="cpu"):
    """Check that NaN in a moment is NaN in the mixture and in the draw, there and nowhere else.

    A single Gaussian does not read the third moment.
    """
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
    """Check the same for a step.

    A single Gaussian does not read e3. Released clipping uses E[x_0] where E[x_0^3] is NaN.
    """
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
    """Check that a step of mirrored state, moments and noise is the mirrored step, bit for bit."""
    x, e1, e2, e3 = network_moments((3, 63), 400, device=device)
    step = gms_fast.StepCoefficients.between(VPLinear(), 400, 300)
    z, u = torch.randn_like(x), torch.rand_like(x)
    for fit, moments in itertools.product(("exact", "free"), ("cumulant", "released")):
        options = {"fit": fit, "moments": moments, "component": "element"}
        here = ops.gms_step(x, e1, e2, e3, step, noise=(z, u), **options)
        assert torch.equal(ops.gms_step(-x, -e1, e2, -e3, step, noise=(-z, u), **options), -here)
