"""Do the closed fits stay finite and inside their guards at every number of steps? `python bench/finite.py`.

On the embedded models, K = 1 .. 100, states in float32 and bfloat16, the network in the same precision. Looked at after
each step: with x_0 in [-1, 1] and its variance at most 1, x_s - A x_t lies within B + 7 sqrt(c + B^2) (7 standard
deviations: 1e-12 for each element, and no more for the nodes, which the range holds); and the result within [-1, 1].
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable
from itertools import pairwise, product
from pathlib import Path

import torch
from timing import environment
from torch import Tensor
from tqdm import tqdm

import gms_fast
from gms_fast.models import MomentUNet
from gms_fast.solvers import GMS
from gms_fast.steps import StepCoefficients

FITS, DTYPES, SAMPLES = ("free", "exact"), (torch.float32, torch.bfloat16), 2
ROUNDING = {torch.float32: 1e-5, torch.bfloat16: 2**-7}  # relative: that of x_s, and of x_t before it


def excess(model: MomentUNet, fit: str, steps: int, seed: int = 0) -> float:
    """Largest |x_s - A x_t| over its bound in all steps and elements; inf for a result not finite or out of range."""
    dtype, seen = next(model.parameters()).dtype, []

    def watch(index: int, t: float, x: Tensor, x_0: Tensor) -> None:
        seen.append((t, x.double()))

    solver = GMS(fit=fit)
    x_0 = gms_fast.sample(model, steps, solver=solver, n=SAMPLES, seed=seed, dtype=dtype, callback=watch)
    if not torch.isfinite(x_0).all() or x_0.abs().max() > 1:
        return math.inf
    worst = 0.0
    for (t, x_t), (s, x_s) in pairwise(seen):
        k = StepCoefficients.between(model.schedule, t, s)
        bound = k.B + 7 * math.sqrt(k.c + k.B**2) + ROUNDING[dtype] * (x_t.abs() + x_s.abs())
        worst = max(worst, float(((x_s - k.A * x_t).abs() / bound).nan_to_num(math.inf).max()))
    return worst


def survey(names: Iterable[str], steps: Iterable[int], progress: bool = False) -> dict[str, float]:
    """The worst of all numbers of steps, for each model, fit and precision."""
    worst: dict[str, float] = {}
    for name, dtype in product(names, DTYPES):
        model = gms_fast.load(name).to(dtype)
        for fit in FITS:
            label = f"{name}, {fit}, {str(dtype).removeprefix('torch.')}"
            worst[label] = max(excess(model, fit, k) for k in tqdm(steps, desc=label, disable=not progress))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["digits", "mnist"])
    parser.add_argument("--steps", type=int, default=100, help="the largest K")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    worst = survey(args.models, range(1, args.steps + 1), sys.stderr.isatty())
    for label, value in worst.items():
        print(f"{label}: {'fine' if value <= 1 else 'NOT FINE'}, at most {value:.2f} of the bound")
    if args.out:
        args.out.write_text(json.dumps({"environment": environment(), "steps": args.steps, "worst": worst}, indent=1))
    raise SystemExit(max(worst.values()) > 1)


if __name__ == "__main__":
    main()
