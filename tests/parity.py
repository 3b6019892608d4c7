"""How a kernel is held against the float64 oracle; shared by the tests of the compiled and of the Triton kernels.

The budget is twice the error that the same formulas make in plain float32 torch, plus a few roundings of the result,
plus what the oracle itself moves by when its inputs move by a few roundings (the released clipping jumps).
"""

import torch

import gms_fast
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
