"""Quality of steps with one, two and three components, with exact moments.

    python -m bench.experiments.components [--out FILE.json]

A step is x_s = A x_t + B node_i + sqrt(c) z, with node i of the n-node Gauss quadrature of x_0 given x_t. It matches
2n - 1 moments: n = 1 is DDPM; n = 2 is the fit "free" without its fixed-weight half; n = 3 needs five moments. "n = 2 +
variance" widens the two components to match the fourth moment, as SN-DDPM widens the one of n = 1. "joint posterior"
draws all elements of x_0 together from its law given x_t: the bound for steps with any number of moments.

The laws are the mixture of `wasserstein`, whose posterior is itself two Gaussians of nearly equal variance; a mixture
of four; and scikit-learn's digits (8x8, [-1, 1]) as 1797 points, each plus N(0, 0.1^2). Settings: linear schedule,
released grid, no clipping, float64. Each cell is the mean over the seeds with their standard deviation. The last row is
a second draw of the data in place of samples.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gms_fast
from bench.experiments.wasserstein import MIXTURE
from bench.records.record import environment, save
from gms_fast import data, ops, solvers
from gms_fast.estimate import Estimate
from gms_fast.models import GaussianMixture1D, PointCloud
from gms_fast.ops.reference import pick, quadrature
from gms_fast.ops.types import Draws
from gms_fast.quality.measures import energy_distance, frechet_distance, wasserstein
from gms_fast.solvers import TimeStep
from gms_fast.storage import atomic

Model = GaussianMixture1D | PointCloud
FOUR = ((0.3, 0.2, 0.35, 0.15), (-0.8, -0.2, 0.3, 0.9), (0.05, 0.15, 0.1, 0.03))
BANDWIDTH = 0.1
JOINT, REAL = "joint posterior", "data against data"


@dataclass(frozen=True, kw_only=True)
class _OfModel(solvers.Solver):
    """x_s = A x_t + B x_0 + sqrt(c + B^2 width) z, with x_0 and width drawn from an exact model."""

    model: Model

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        k, time = step.coefficients, self.model.schedule.network_time([step.t] * len(x))
        x_0, width = self.draw(x, time, {"seed": draws.seed, "step": step.i})
        z = ops.philox_normal(x.shape, seed=draws.seed, step=step.i, dtype=x.dtype)
        return k.A * x + k.B * x_0 + (k.c + k.B**2 * width) ** 0.5 * z, state

    def draw(self, x: Tensor, time: Tensor, counters: dict[str, Any]) -> tuple[Tensor, Tensor | float]:
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Quadrature(_OfModel):
    """Draw of x_0 from the n-node quadrature of every element.

    With component "sample", the nodes of all elements of a sample are at one quantile.
    """

    nodes: int
    component: str = "element"

    def draw(self, x: Tensor, time: Tensor, counters: dict[str, Any]) -> tuple[Tensor, Tensor | float]:
        moments, width = self.moments(x, time)
        shape = x.shape if self.component == "element" else (len(x), *[1] * (x.ndim - 1))
        u = ops.philox_uniform(shape, stream=1, dtype=x.dtype, **counters)
        return pick(*quadrature(moments, self.nodes), u), width

    def moments(self, x: Tensor, time: Tensor) -> tuple[Sequence[Tensor], Tensor | float]:
        return self.model.data_moments(x, time, max(2 * self.nodes - 1, 2)), 0.0


@dataclass(frozen=True, kw_only=True)
class Widened(Quadrature):
    """Two nodes and one variance that match four moments.

    The fourth must not exceed a Gaussian's. Two points of variance e and third moment k have the fourth cumulant k^2/e
    - 2 e^2, and a Gaussian adds none to it. So e is the positive root of 2 e^3 + k4 e - k^2 = 0. It is at most the
    variance v (Pearson's inequality).
    """

    nodes: int = 2

    def moments(self, x: Tensor, time: Tensor) -> tuple[Sequence[Tensor], Tensor | float]:
        mean, v, third, fourth = self.model.data_moments(x, time, 4)
        k4, e = fourth - 3 * v**2, v
        for _ in range(60):  # Newton from above, where the cubic is convex
            slope = (6 * e**2 + k4).clamp(min=1e-300)
            e = torch.minimum((e - (2 * e**3 + k4 * e - third**2) / slope).clamp(min=0), e)
        return (mean, e, third), v - e


@dataclass(frozen=True, kw_only=True)
class Joint(_OfModel):
    """Draw of x_0 given x_t: a point of the cloud by its probability, and its Gaussian."""

    def draw(self, x: Tensor, time: Tensor, counters: dict[str, Any]) -> tuple[Tensor, Tensor | float]:
        cloud, generator = self.model, torch.Generator().manual_seed(counters["seed"] * 1000 + counters["step"])
        t = cloud.schedule.from_network_time(time)
        alpha, sigma = cloud.schedule.alpha(t)[:, None], cloud.schedule.sigma(t)[:, None]
        chosen = torch.multinomial(cloud.posterior(x, time), 1, generator=generator)[:, 0]
        spread = (alpha * BANDWIDTH) ** 2 + sigma**2
        mean = (sigma**2 * cloud.data[chosen] + alpha * BANDWIDTH**2 * x) / spread
        return mean, (sigma * BANDWIDTH) ** 2 / spread


def rows(model: Model) -> dict[str, solvers.Solver | None]:
    """Return solvers by name; None stands for data in place of samples.

    Samples of one element have only one kind of component.
    """
    wide = isinstance(model, PointCloud)
    kinds = ("element", "sample") if wide else ("element",)
    found = {"n = 1 (DDPM)": Quadrature(model=model, nodes=1), "gaussian (SN-DDPM)": solvers.SNDDPM()}
    for kind in kinds:
        label = f", {kind}" if wide else ""
        found[f"exact{label}"] = solvers.GMS(fit="exact", component=kind)
        found[f"free{label}"] = solvers.GMS(fit="free", component=kind)
        found |= {f"n = {n}{label}": Quadrature(model=model, nodes=n, component=kind) for n in (2, 3)}
        found[f"n = 2 + variance{label}"] = Widened(model=model, component=kind)
    return found | ({JOINT: Joint(model=model)} if wide else {}) | {REAL: None}


def scores(
    model: Model, solver: solvers.Solver | None, steps: int, samples: int, seed: int, measures: dict[str, Callable]
) -> dict[str, float]:
    reference = model.draw(samples, torch.Generator().manual_seed(seed))
    if solver is None:
        x = model.draw(samples, torch.Generator().manual_seed(seed + 10**6))
    else:
        times = model.schedule.timesteps(steps)  # the released grid
        x = gms_fast.sample(model, timesteps=times, solver=solver, n=samples, seed=seed, clip=None, dtype=torch.float64)
    return {name: measure(x, reference) for name, measure in measures.items()}


def compare(
    model: Model, steps: Sequence[int], samples: int, seeds: int, measures: dict[str, Callable]
) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Return scores by measure, row and number of steps, one for each seed."""
    found = {name: {row: {} for row in rows(model)} for name in measures}
    for row, solver in rows(model).items():
        for k in steps:
            start = time.perf_counter()
            each = [scores(model, solver, k, samples, seed, measures) for seed in range(seeds)]
            for name in measures:
                found[name][row][str(k)] = [score[name] for score in each]
            print(f"{row}, K={k}: {time.perf_counter() - start:.1f} s", flush=True)
    return found


def table(scores: dict[str, dict[str, list[float]]]) -> str:
    """Format a measure as Markdown: mean +- standard deviation over the seeds."""
    steps = list(next(iter(scores.values())))
    lines = ["| draw | " + " | ".join(f"K={k}" for k in steps) + " |", "|---" * (len(steps) + 1) + "|"]
    for row, cells in scores.items():
        means = (f"{statistics.mean(v):.4f} ± {statistics.stdev(v) if len(v) > 1 else 0:.4f}" for v in cells.values())
        lines.append(f"| {row} | " + " | ".join(means) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[3, 5, 8, 10, 20], help="numbers of steps K of the 1-D mixtures"
    )
    parser.add_argument(
        "--digit-steps", type=int, nargs="+", default=[5, 10, 20], help="numbers of steps K of the digits"
    )
    parser.add_argument("--samples", type=int, default=100_000, help="samples of the 1-D mixture")
    parser.add_argument("--digits", type=int, default=2000, help="samples of the digits")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", type=Path, help="write the scores as JSON, and the tables next to it as Markdown")
    args = parser.parse_args()
    cloud = PointCloud(data.load("digits").flatten(1), BANDWIDTH)
    both = {"energy distance": energy_distance, "pixel Frechet distance": frechet_distance}
    lines = {"two Gaussians": GaussianMixture1D(*MIXTURE), "four Gaussians": GaussianMixture1D(*FOUR)}
    found = {
        **{
            name: compare(line, args.steps, args.samples, args.seeds, {"Wasserstein-1": wasserstein})
            for name, line in lines.items()
        },
        "digits": compare(cloud, args.digit_steps, args.digits, args.seeds, both),
    }
    parts = [f"**{law}, {name}**\n\n{table(s)}" for law, by_name in found.items() for name, s in by_name.items()]
    where = environment()
    counts = {"samples": args.samples, "digits": args.digits, "seeds": args.seeds}
    about = ", ".join([*(f"{v} {k}" for k, v in counts.items()), f"commit {where['commit']}, {where['date']}"])
    text = "\n\n".join([f"<!-- {about}, torch {where['torch']} -->", *parts]) + "\n"
    print(text)
    if args.out:
        save(args.out, {"environment": where, **counts, "scores": found})
        atomic.write_text(args.out.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
