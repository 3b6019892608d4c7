"""Check that closed fits stay finite and within their bounds at every number of steps.

    python -m bench.faults.finite

It runs the embedded models with K = 1 .. 100, states in float32 and bfloat16, and the network in the same precision.
Each step is checked: with x_0 in [-1, 1] and its variance at most 1, x_s - A x_t lies within B + 7 sqrt(c + B^2). That
is 7 standard deviations, exceeded with probability 1e-12 per element. The nodes need no allowance: x_0's range bounds
them.
"""

import argparse
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import gms_fast
from bench.records.record import environment, save
from gms_fast.estimate import Estimate
from gms_fast.models import MomentUNet
from gms_fast.ops.types import Draws
from gms_fast.solvers import GMS, TimeStep

FITS, DTYPES, SAMPLES = ("free", "exact"), (torch.float32, torch.bfloat16), 2
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7}  # relative rounding of x_s and x_t


@dataclass(frozen=True, kw_only=True)
class Watched(GMS):
    """GMS that records the largest |x_s - A x_t| over its bound of each step in `seen`.

    The value is inf if x_s is not finite.
    """

    seen: list[float]

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        x_s, state = super().step(x, estimate, step, draws, state)
        k, x_t, after = step.coefficients, x.double(), x_s.double()
        bound = k.B + 7 * math.sqrt(k.c + k.B**2) + ROUNDING[x.dtype] * (x_t.abs() + after.abs())
        self.seen.append(float(((after - k.A * x_t).abs() / bound).nan_to_num(math.inf, math.inf).max()))
        return x_s, state


def excess(model: MomentUNet, fit: str, steps: int, seed: int = 0) -> float:
    """Return the largest value of `Watched` over all steps and elements."""
    seen: list[float] = []
    dtype = next(model.parameters()).dtype
    gms_fast.sample(model, steps, solver=Watched(fit=fit, seen=seen), n=SAMPLES, seed=seed, dtype=dtype)
    return max(seen)


def survey(names: Iterable[str], steps: Iterable[int], progress: bool = False) -> dict[str, float]:
    """Return the largest value over all numbers of steps, by model, fit and precision."""
    worst: dict[str, float] = {}
    for name, dtype in product(names, DTYPES):
        model = gms_fast.load(name).to(dtype)
        for fit in FITS:
            label = f"{name}, {fit}, {str(dtype).removeprefix('torch.')}"
            worst[label] = max(excess(model, fit, k) for k in tqdm(steps, desc=label, disable=not progress))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["digits", "mnist"], help="embedded models")
    parser.add_argument("--steps", type=int, default=100, help="the largest K")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    worst = survey(args.models, range(1, args.steps + 1), sys.stderr.isatty())
    for label, value in worst.items():
        print(f"{label}: {'fine' if value <= 1 else 'NOT FINE'}, at most {value:.2f} of the bound")
    if args.out:
        save(args.out, {"environment": environment(), "steps": args.steps, "worst": worst})
    raise SystemExit(max(worst.values()) > 1)


if __name__ == "__main__":
    main()
