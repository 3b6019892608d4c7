"""Gains from correlations between pixels, with exact and with learned moments.

    python -m bench.experiments.eigenbasis [--out FILE.json]

The exact moments are those of scikit-learn's digits (8x8, [-1, 1]) as 1797 points, each plus N(0, 0.1^2). Settings:
linear schedule, released grid, no clipping, float64. The rows are:

- "eigenbasis": noise with the covariance of the data's Gaussian given x_t, `GMS(covariance=..)`, in all steps or down
  to a level sigma/alpha;
- moments of x_0 along the eigenvectors (a solver in rotated coordinates), which a network could supply beyond
  E[x_0|x_t] and the data;
- the whole covariance of x_0, which it could supply too: the bound for a Gaussian step;
- "correlated draws": every pixel's own mixture, whose normal number and component are correlated between pixels as
  those of the data's Gaussian are.

Each cell is the mean over the seeds with their standard deviation. The last rows are a second draw of the data, and its
Gaussian, in place of samples. The same draws follow from learned moments of the embedded 8x8 model, on the grid
"angle", by feature Frechet distance and precision.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gms_fast
from bench.experiments.components import BANDWIDTH, table
from bench.records.record import environment, save
from gms_fast import data, ops, statistics
from gms_fast.estimate import Estimate
from gms_fast.models import PointCloud
from gms_fast.ops.types import Draws
from gms_fast.quality import cells, subjects
from gms_fast.quality.measures import energy_distance, frechet_distance
from gms_fast.solvers import GMS, SNDDPM, Solver, TimeStep
from gms_fast.steps import StepCoefficients
from gms_fast.storage import atomic

Spectrum = Callable[[Tensor], Tensor]
PAIRED = 6  # random stream of the normal numbers that give the uniforms


@dataclass(frozen=True, kw_only=True)
class Full(Solver):
    """x_s = A x_t + B E[x_0|x_t] + (c + B^2 Cov[x_0|x_t])^(1/2) z of an exact model."""

    cloud: PointCloud

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        k, time = step.coefficients, self.cloud.schedule.network_time([step.t] * len(x))
        spread = (k.alpha_t * BANDWIDTH) ** 2 + k.sigma_t**2
        shrink, own = k.sigma_t**2 / spread, (k.sigma_t * BANDWIDTH) ** 2 / spread
        z = ops.philox_normal(x.shape, seed=draws.seed, step=step.i, dtype=x.dtype)
        mean, drawn, one = estimate.x0(), torch.empty_like(x), torch.eye(x.shape[1], dtype=x.dtype)
        for i, p in enumerate(self.cloud.posterior(x, time)):
            centred = self.cloud.data - p @ self.cloud.data
            covariance = shrink**2 * (centred.T * p) @ centred + own * one
            drawn[i] = torch.linalg.cholesky(k.c * one + k.B**2 * covariance) @ z[i]
        return k.A * x + k.B * mean + drawn, state


@dataclass(frozen=True, kw_only=True)
class Correlated(Solver):
    """GMS whose normal numbers and choices of components are correlated by a Gaussian."""

    gaussian: statistics.Gaussian
    moments_needed = 3
    spacing = "angle"

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        k = step.coefficients
        source = {"seed": draws.seed, "sample_offset": draws.sample_offset, "step": step.i, "dtype": x.dtype}

        def posterior(lam: Tensor) -> Tensor:
            return lam * k.sigma_t**2 / (k.alpha_t**2 * lam + k.sigma_t**2)

        z = self._normals(ops.philox_normal(x.shape, **source), lambda lam: k.c + k.B**2 * posterior(lam))
        paired = self._normals(ops.philox_normal(x.shape, stream=PAIRED, **source), posterior)
        u = torch.special.ndtr(paired)
        u = torch.where(self._upper_is_a(estimate, k), 1 - u, u).clamp(1e-7, 1)
        return GMS().step(x, estimate, step._replace(numbers=False), Draws(z=z, u=u), state)

    def _upper_is_a(self, estimate: Estimate, k: StepCoefficients) -> Tensor:
        """Return the elements whose component a, which small uniforms select, is the higher one."""
        e1, e2, e3 = estimate.moments
        v, third = (e2, e3) if estimate.central else (e2 - e1**2, e3 - 3 * e1 * e2 + 2 * e1**3)
        ratio = k.sigma_t / k.alpha_t
        of_data = estimate.x0(), ratio**2 * v.clamp(min=0), -(ratio**3) * third
        mixture = ops.fit_mixture(*of_data, fit=GMS().fit, floor=0.0)
        return mixture.mean_a > mixture.mean_b

    def _normals(self, z: Tensor, spectrum: Spectrum) -> Tensor:
        """Correlate z by a function of the covariance, each element with variance 1."""
        g = self.gaussian
        rest = float(spectrum(torch.tensor(g.residual, dtype=torch.float64)))
        variance = g.eigenvectors**2 @ (spectrum(g.eigenvalues) - rest) + rest
        scale = variance.clamp(min=1e-30).sqrt().to(z.dtype).view(z.shape[1:])  # 0 where the data is constant
        return g.filter(z, lambda lam: spectrum(lam).sqrt()) / scale


@dataclass(frozen=True)
class Row:
    """A solver, in pixels or along the eigenvectors."""

    solver: Solver
    rotated: bool = False


def rows(cloud: PointCloud, gaussian: statistics.Gaussian) -> dict[str, Row]:
    shared = {"fit": "exact", "component": "sample"}
    return {
        "SN-DDPM": Row(SNDDPM()),
        "GMS exact, sample": Row(GMS(**shared)),
        "GMS free, element": Row(GMS()),
        "eigenbasis only": Row(GMS(covariance=gaussian, switch=0)),
        "eigenbasis to 0.7, then exact, sample": Row(GMS(covariance=gaussian, switch=0.7, **shared)),
        "eigenbasis to 1.5, then exact, sample": Row(GMS(covariance=gaussian, switch=1.5, **shared)),
        "eigenbasis to 3, then exact, sample": Row(GMS(covariance=gaussian, switch=3, **shared)),
        "eigenbasis to 1.5, then free, element": Row(GMS(covariance=gaussian, switch=1.5)),
        "SN-DDPM along eigenvectors": Row(SNDDPM(), rotated=True),
        "GMS free along eigenvectors": Row(GMS(), rotated=True),
        "correlated draws": Row(Correlated(gaussian=gaussian)),
        "Gaussian with the whole covariance": Row(Full(cloud=cloud)),
    }


def draw(row: Row, cloud: PointCloud, gaussian: statistics.Gaussian, steps: int, n: int, seed: int) -> Tensor:
    """Draw n samples (n, 64)."""
    U = gaussian.eigenvectors
    model = PointCloud(cloud.data @ U, BANDWIDTH) if row.rotated else cloud
    times = cloud.schedule.timesteps(steps)
    x = gms_fast.sample(model, timesteps=times, solver=row.solver, n=n, seed=seed, clip=None, dtype=torch.float64)
    return x @ U.T if row.rotated else x


def exact(steps: Sequence[int], n: int, seeds: int) -> dict[str, dict]:
    """Return energy and pixel Frechet distance by row and number of steps, one for each seed."""
    cloud, gaussian = PointCloud(data.load("digits").flatten(1), BANDWIDTH), cells.gaussian("exact-digits")
    measures = {"energy distance": energy_distance, "pixel Frechet distance": frechet_distance}
    scores: dict[str, dict] = {name: {} for name in measures}

    def score(row: str, k: int, samples: Callable[[int], Tensor]) -> None:
        for seed in range(seeds):
            reference, x = cloud.draw(n, torch.Generator().manual_seed(seed)), samples(seed)
            for name, measure in measures.items():
                scores[name].setdefault(row, {}).setdefault(str(k), []).append(measure(x, reference))
        print(row, k, *(f"{sum(v[row][str(k)]) / seeds:.4f}" for v in scores.values()), flush=True)

    def normals(seed: int) -> Tensor:
        return torch.randn(n, 64, generator=torch.Generator().manual_seed(seed + 10**6), dtype=torch.float64)

    for k in steps:
        for name, row in rows(cloud, gaussian).items():
            score(name, k, lambda seed, row=row, k=k: draw(row, cloud, gaussian, k, n, seed))
        score("data against data", k, lambda seed: cloud.draw(n, torch.Generator().manual_seed(seed + 10**6)))
        score("its Gaussian", k, lambda seed: gaussian.draw(normals(seed)))
    return scores


def learned(steps: Sequence[int], n: int, ranges: int) -> dict[str, dict]:
    """Return feature Frechet distance and precision by row and steps, one for each range."""
    gaussian, subject = statistics.load_gaussian("digits"), subjects.build("digits")
    solvers = {
        "GMS": GMS(),
        **{f"eigenbasis to {tau:g}": GMS(covariance=gaussian, switch=tau) for tau in (1.5, 3)},
        "correlated draws": Correlated(gaussian=gaussian),
    }
    found: dict[str, dict] = {measure: {row: {} for row in solvers} for measure in ("frechet", "precision")}
    for (row, solver), k, r in product(solvers.items(), steps, range(ranges)):
        x = gms_fast.sample(subject.model, k, solver=solver, n=n, sample_offset=r * n, clip=subject.clip)
        for measure, value in cells.measure(x, subject).items():
            if measure in found:
                found[measure][row].setdefault(str(k), []).append(value)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, nargs="+", default=[3, 5, 10, 20], help="numbers of steps K")
    parser.add_argument("--n", type=int, default=4000, help="samples with exact moments")
    parser.add_argument("--learned", type=int, default=1000, help="samples of the learned model")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--out", type=Path, help="write the scores as JSON, and the tables next to it as Markdown")
    args = parser.parse_args()
    scores = exact(args.steps, args.n, args.seeds)
    seen = learned((5, 10), args.learned, args.seeds)
    where = environment()
    about = f"{args.n} samples, {args.seeds} seeds, commit {where['commit']}, {where['date']}, torch {where['torch']}"
    named = [*scores.items(), *((f"learned moments, feature {name}", s) for name, s in seen.items())]
    text = "\n\n".join([f"<!-- {about} -->", *(f"**{name}**\n\n{table(s)}" for name, s in named)]) + "\n"
    print(text)
    if args.out:
        save(args.out, {"environment": where, "n": args.n, "scores": scores, "learned": seen})
        atomic.write_text(args.out.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
