"""Wasserstein-1 distance on a 1-D mixture, by solver and number of steps.

    python -m bench.experiments.wasserstein

x_0 ~ 0.4 N(-0.6, 0.12^2) + 0.6 N(0.5, 0.08^2). Linear schedule, released grid, no clipping, float64.
"""

import argparse

import torch
from scipy.stats import wasserstein_distance

import gms_fast
from bench.records.record import environment
from gms_fast import solvers
from gms_fast.models import GaussianMixture1D

MIXTURE = ((0.4, 0.6), (-0.6, 0.5), (0.12, 0.08))
SOLVERS = {
    "DDPM": solvers.DDPM(),
    "gaussian (SN-DDPM)": solvers.SNDDPM(),
    "DDIM": solvers.DDIM(),
    "adan (released)": None,  # its eps depends on the number of elements
    "exact": solvers.GMS(fit="exact", component="element"),
    "free": solvers.GMS(fit="free"),
}


def distance(solver: solvers.Solver, steps: int, samples: int, seed: int = 0) -> float:
    """Return the Wasserstein-1 distance between draws of the solver and of the mixture."""
    model = GaussianMixture1D(*MIXTURE)
    times = model.schedule.timesteps(steps)
    x = gms_fast.sample(model, timesteps=times, solver=solver, n=samples, seed=seed, clip=None, dtype=torch.float64)
    x_0 = model.draw(samples, torch.Generator().manual_seed(seed))
    return wasserstein_distance(x.flatten().numpy(), x_0.flatten().numpy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 8, 10, 20, 50], help="numbers of steps K")
    parser.add_argument("--samples", type=int, default=100_000, help="number of samples")
    args = parser.parse_args()
    where = environment()
    print(f"<!-- {args.samples} samples, commit {where['commit']}, {where['date']}, torch {where['torch']} -->")
    print("| sampler or GMS fit | " + " | ".join(f"K={k}" for k in args.steps) + " |")
    print("|---" * (len(args.steps) + 1) + "|")
    for name, solver in SOLVERS.items():
        solver = solver or solvers.GMS(fit="adan", component="sample", moments="released", eps=1e-8 * args.samples)
        print(f"| {name} | " + " | ".join(f"{distance(solver, k, args.samples):.3f}" for k in args.steps) + " |")


if __name__ == "__main__":
    main()
