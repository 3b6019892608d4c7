"""Effect of guards on the fit when moments are learned.

    python -m bench.experiments.guards [--out FILE.json]

On 8x8 digits, grid 0.5. First the share of elements whose learned moments no law on [-1, 1] can have, step by step,
beside that of exact moments of the same data. Then the quality of samples with more and more guards on the fit:
none          E[x_0|x_t] in the range, variance not negative
variance      and v <= (m - lo)(hi - m): no law on the range has more (Bhatia and Davis)
skewness      and |k| <= 2 v^(3/2)
nodes         and both nodes of the two-point law in the range: what `fit="free"` does in `gms_step`
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import gms_fast
from bench.records.record import environment, save
from gms_fast import data
from gms_fast.estimate import Estimate
from gms_fast.models import PointCloud
from gms_fast.ops import fused
from gms_fast.ops.types import Draws, Fit
from gms_fast.quality import cells, subjects
from gms_fast.solvers import GMS, Solver, TimeStep
from gms_fast.solvers.base import bounded_last_step
from gms_fast.steps import StepCoefficients
from gms_fast.types import NoiseMoments

GUARDS = ("none", "variance", "skewness", "nodes")
SHOWN = ("frechet", "energy", "precision", "recall")


def data_moments(
    x: Tensor, moments: NoiseMoments, k: StepCoefficients, *, central: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the network's mean, variance and third central moment of x_0|x_t, not clipped."""
    e1, e2, e3 = moments
    if not central:
        e2, e3 = e2 - e1**2, e3 - 3 * e1 * e2 + 2 * e1**3
    r = k.sigma_t / k.alpha_t
    return (x - k.sigma_t * e1) / k.alpha_t, r**2 * e2, -(r**3) * e3


def impossible(m: Tensor, v: Tensor, k: Tensor, lo: float = -1.0, hi: float = 1.0) -> dict[str, float]:
    """Return shares of elements whose moments belong to no law on [lo, hi], by the first reason."""
    tolerance = 1e-6  # for float32 moments
    inside = (m >= lo - tolerance) & (m <= hi + tolerance)
    positive = v >= -tolerance
    possible = v <= (m.clamp(lo, hi) - lo) * (hi - m.clamp(lo, hi)) + tolerance
    skew = k / v.clamp(min=1e-12) ** 1.5
    half, h = v.clamp(min=0).sqrt() / 2, (4 + skew**2).sqrt()
    nodes = (m + half * (skew + h) <= hi + 1e-3) & (m + half * (skew - h) >= lo - 1e-3)
    shares, left = {}, torch.ones_like(inside)
    for name, fine in (("mean", inside), ("negative", positive), ("variance", possible), ("nodes", nodes)):
        shares[name] = float((left & ~fine).double().mean())
        left &= fine
    return shares


@dataclass(frozen=True, kw_only=True)
class Guarded(Solver):
    """GMS with the guards up to and including `guard`, made of `sample_mixture`."""

    fit: str = "free"
    guard: str = "nodes"
    moments_needed = 3
    spacing = 0.5

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        if bounded_last_step(x, step, GMS().clip_pixel) or self.guard == "nodes":
            return GMS(fit=self.fit).step(x, estimate, step, draws, state)
        (lo, hi), k = estimate.clip, step.coefficients
        m, v, third = data_moments(x, estimate.moments, k, central=estimate.central)
        m, v = m.clamp(lo, hi), v.clamp(min=0)
        if self.guard != "none":
            v = torch.minimum(v, (m - lo) * (hi - m))
        if self.guard == "skewness":
            third = third.clamp(-2 * v**1.5, 2 * v**1.5)
        mean, var = k.A * x + k.B * m, k.c + k.B**2 * v
        return fused.sample_mixture(mean, var, k.B**3 * third, k.c, Fit(self.fit), draws), state


@dataclass(frozen=True, kw_only=True)
class Watched(GMS):
    """GMS that records the shares of impossible moments of each step in `seen`."""

    seen: list[dict[str, float]]

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        k = step.coefficients
        moments = data_moments(x, estimate.moments, k, central=estimate.central)
        self.seen.append({"sigma/alpha": k.sigma_t / k.alpha_t, **impossible(*moments)})
        return super().step(x, estimate, step, draws, state)


def shares(model: Any, steps: int, n: int) -> list[dict[str, float]]:
    """Return the shares of impossible moments at each step of the default solver."""
    seen: list[dict[str, float]] = []
    gms_fast.sample(model, steps, solver=Watched(seen=seen), n=n, dtype=torch.float64)
    return seen


def quality(fit: str, guard: str, steps: int, n: int, index: int) -> dict[str, float]:
    subject = subjects.build("digits")
    solver = Guarded(fit=fit, guard=guard)
    x = gms_fast.sample(subject.model, steps, solver=solver, n=n, sample_offset=index * n)
    return cells.measure(x, subject)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10], help="numbers of steps K")
    parser.add_argument("--samples", type=int, default=1000, help="samples of a range")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    result: dict[str, Any] = {"environment": environment(), "samples": args.samples, "shares": {}, "quality": []}
    models = {"exact moments": PointCloud(data.load("digits")), "learned moments": subjects.build("digits").model}
    for name, model in models.items():
        result["shares"][name] = shares(model, 10, min(args.samples, 200))
        print(f"\n| {name}: sigma/alpha | mean outside | variance < 0 | variance too large | node outside |")
        print("|---|---|---|---|---|")
        for row in result["shares"][name]:
            figures = (f"{row[key]:.1%}" for key in ("mean", "negative", "variance", "nodes"))
            print(f"| {row['sigma/alpha']:.3g} | {' | '.join(figures)} |")
    print("\n| fit | guards | K | Fréchet | energy | precision | recall |\n|---|---|---|---|---|---|---|")
    todo = [(f, g, k) for k in args.steps for f in ("free", "exact") for g in GUARDS]
    for fit, guard, steps in tqdm(todo, disable=not sys.stderr.isatty()):
        found = [quality(fit, guard, steps, args.samples, index) for index in range(3)]
        row = {m: (fmean(f[m] for f in found), stdev(f[m] for f in found)) for m in SHOWN}
        result["quality"].append({"fit": fit, "guard": guard, "steps": steps, **row})
        print(f"| {fit} | {guard} | {steps} | " + " | ".join(f"{a:.3f} ±{b:.3f}" for a, b in row.values()) + " |")
    if args.out:
        save(args.out, result)


if __name__ == "__main__":
    main()
