"""Exactness of editing: inversion, inpainting against a known law, and seams.

    python -m bench.experiments.editing [PART ...] [--quick] [--out FILE.json]

inversion  pictures inverted and drawn again by the same solver: rms error in grey levels (of 255) by network calls of
           the inversion, and the slope over the last doubling of calls, in powers of two. With exact moments of 8x8
           digits (a density around the data) and the embedded networks; the latter also with a data range (their
           E[x_0|x_t] clipped)
gaussian   lower halves of pictures drawn anew by exact steps. The pictures are a Gaussian with the mean and covariance
           of 8x8 digits, so the conditional law is known and only the error of inpainting itself remains. The error of
           the mean is in units of the conditional standard deviation (root mean square over pixels); that of the
           covariance is relative to the conditional one (Frobenius norms). The sampling error is that of as many draws
           from the right law
seams      lower halves of digits drawn anew by the embedded networks: the mean step in grey across the mask's edge,
           and between rows inside, both over the same of real pictures; and the Frechet distance of classifier
           features to real pictures. Means over three ranges of samples with their standard deviation
"""

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gms_fast
from bench.records.record import environment, save
from gms_fast import editing, solvers
from gms_fast.quality import cells, subjects
from gms_fast.schedules import VPLinear
from gms_fast.tables import Gaussian
from gms_fast.tables.gaussian import load_gaussian

CALLS = (20, 40, 80)
REVERSED = ("ddim", "heun", "dpm-solver++", "unip:order=2")
RESAMPLES = (1, 2, 5, 10)
SEAMS = {
    "digits": (400, ("gms", "ddim", "er-sde"), RESAMPLES),
    "mnist": (100, ("gms",), (1, 2, 5)),
}  # samples, solvers, repetitions
GREY = 127.5  # grey levels per unit of [-1, 1]


def inversion(models: dict[str, tuple[Any, Tensor]], calls: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return rows of the errors by number of calls, for each model, range and solver."""
    found = []
    for (name, (model, x)), solver in product(models.items(), REVERSED):
        for clip in (None, (-1.0, 1.0)) if x.dtype == torch.float32 else (None,):
            errors = [_there_and_back(model, x, c // (1 + (solver == "heun")), solver, clip) for c in calls]
            found.append({"model": name, "solver": solver, "clipped": clip is not None, "calls": calls, "grey": errors})
            print(found[-1], flush=True)
    return found


def _there_and_back(model: Any, x: Tensor, steps: int, solver: str, clip: tuple[float, float] | None) -> float:
    x_T = editing.invert(model, x, steps=steps, solver=solver, clip=clip)
    back = gms_fast.sample(model, steps, solver=solver, x_T=x_T, clip=clip)
    return round(GREY * float((back - x).square().mean().sqrt()), 4)


class OfGaussian:
    """Exact network of Gaussian data."""

    prediction, clip, schedule = "x0", None, VPLinear()

    def __init__(self, law: Gaussian) -> None:
        self.law, self.sample_shape = law, law.sample_shape

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (float(f(t[:1])) for f in (self.schedule.alpha, self.schedule.sigma))
        return self.law.denoise(x, alpha, sigma)


def gaussian(n: int, steps: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return rows of errors of the lower halves' mean and covariance, by steps and repetitions."""
    law = load_gaussian("digits")
    model, image = OfGaussian(law), gms_fast.data.load("digits")[:1].double()
    mask = lower_half(image)
    free = mask.expand(8, 8).flatten().bool()
    mean, covariance = conditional(law, image.flatten(), free)
    exact = torch.distributions.MultivariateNormal(mean, covariance)
    torch.manual_seed(0)
    found = [{"steps": 0, "resample": 0, **_off(exact.sample((n,)), mean, covariance)}]
    solver = solvers.GMS(covariance=law, switch=0, clip_pixel=None)
    for k, r in product(steps, RESAMPLES):
        x = editing.inpaint(model, image, mask, n=n, steps=k, resample=r, solver=solver)
        found.append({"steps": k, "resample": r, **_off(x.flatten(1)[:, free], mean, covariance)})
        print(found[-1], flush=True)
    return found


def lower_half(image: Tensor) -> Tensor:
    """Return the mask (H, W) of the lower half."""
    height = image.shape[-2]
    return (torch.arange(height) >= height // 2).to(image.dtype)[:, None].expand(height, image.shape[-1])


def conditional(law: Gaussian, x: Tensor, free: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and covariance of the elements `free` of x, given the others."""
    U, rest = law.eigenvectors, law.residual
    C = (U * (law.eigenvalues - rest)) @ U.T + rest * torch.eye(len(U), dtype=torch.float64)
    mean = law.mean.flatten()
    weights = C[free][:, ~free] @ torch.linalg.pinv(C[~free][:, ~free], hermitian=True, rtol=1e-10)
    covariance = C[free][:, free] - weights @ C[~free][:, free]
    shift = 1e-9 * torch.eye(len(covariance), dtype=torch.float64)
    return mean[free] + weights @ (x - mean)[~free], (covariance + covariance.T) / 2 + shift


def _off(x: Tensor, mean: Tensor, covariance: Tensor) -> dict[str, float]:
    of_mean = (x.mean(0) - mean).norm() / covariance.trace().sqrt()
    of_covariance = (torch.cov(x.T) - covariance).norm() / covariance.norm()
    return {"mean": round(float(of_mean), 4), "covariance": round(float(of_covariance), 4)}


def seams(models: dict[str, tuple[int, Sequence[str], Sequence[int]]], ranges: int) -> list[dict[str, Any]]:
    """Return rows of relative steps in grey across the edge and inside, and Frechet distances.

    Args:
        models: Number of samples, solvers and repetitions of each model.
        ranges: Number of ranges of samples.
    """
    found = []
    for name, (n, painters, resamples) in models.items():
        subject = subjects.build(name)
        for solver, r in product(painters, resamples):
            row: dict[str, Any] = {"model": name, "solver": solver, "resample": r, "n": n}
            for index in range(ranges):
                image = subject.real(n, index)
                given = {"solver": solver, "resample": r, "sample_offset": index * n, "batch_size": 100}
                x = editing.inpaint(subject.model, image, lower_half(image), **given)
                edge, inside = (a / b for a, b in zip(_steps(x), _steps(image), strict=True))
                frechet = cells.measure(x, subject)["frechet"]
                for key, value in {"edge": edge, "inside": inside, "frechet": frechet}.items():
                    row.setdefault(key, []).append(round(value, 4))
            found.append(row)
            print(row, flush=True)
    return found


def _steps(x: Tensor) -> tuple[float, float]:
    """Return the mean absolute difference of rows across the middle, and of all others below it."""
    steps, middle = x.diff(dim=-2).abs(), x.shape[-2] // 2
    return float(steps[..., middle - 1, :].mean()), float(steps[..., middle:, :].mean())


def inversion_table(result: dict[str, Any]) -> str:
    """Format errors in grey levels by calls, and the slope, as Markdown."""
    rows = result["rows"]
    head = " | ".join(f"{c} calls" for c in rows[0]["calls"])
    lines = [f"| model | solver | {head} | observed order |", "|---" * (len(rows[0]["calls"]) + 3) + "|"]
    for row in rows:
        grey = row["grey"]
        range_ = ", clipped" if row["clipped"] else ""
        shown = " | ".join(f"{v:.2f}" if v >= 0.1 else f"{v:.3f}" for v in grey)
        lines.append(f"| {row['model']}{range_} | `{row['solver']}` | {shown} | {math.log2(grey[-2] / grey[-1]):.1f} |")
    return "\n".join(lines)


def gaussian_table(result: dict[str, Any]) -> str:
    """Format errors of mean and covariance by repetitions as Markdown."""
    exact, *rows = result["rows"]
    lines = ["| steps | " + " | ".join(f"r = {r}" for r in RESAMPLES) + " | sampling error |"]
    lines.append("|---" * (len(RESAMPLES) + 2) + "|")
    for k in dict.fromkeys(row["steps"] for row in rows):
        own = [row for row in rows if row["steps"] == k]
        shown = " | ".join(f"{row['mean']:.2f}, {row['covariance']:.2f}" for row in own)
        lines.append(f"| {k} | {shown} | {exact['mean']:.2f}, {exact['covariance']:.2f} |")
    return "\n".join(lines)


def seams_table(result: dict[str, Any]) -> str:
    """Format steps and distances by solver and repetitions as Markdown."""
    rows = result["rows"]
    lines = ["| model | solver | r | across the edge | inside | Fréchet |", "|---|---|---|---|---|---|"]
    for row in rows:
        shown = " | ".join(_figure(row[key]) for key in ("edge", "inside", "frechet"))
        lines.append(f"| {row['model']} | `{row['solver']}` | {row['resample']} | {shown} |")
    return "\n".join(lines)


def _figure(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{spread}"


TABLES = {"inversion": inversion_table, "gaussian": gaussian_table, "seams": seams_table}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"some of {', '.join(TABLES)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="few samples, to test the command")
    parser.add_argument("--out", type=Path, help="write the figures as JSON; parts that are not run are kept")
    args = parser.parse_args()
    if unknown := set(args.parts) - set(TABLES):
        raise SystemExit(f"parts must be some of {', '.join(TABLES)}: got {', '.join(sorted(unknown))}")
    result = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    for part in args.parts or TABLES:
        result[part] = {"environment": environment(), "rows": _rows(part, quick=args.quick)}
        print(TABLES[part](result[part]), end="\n\n")
    if args.out:
        save(args.out, result)


def _rows(part: str, *, quick: bool) -> list[dict[str, Any]]:
    """Measure the figures of a part."""
    if part == "gaussian":
        return gaussian(200 if quick else 2000, (5,) if quick else (10, 20, 50, 100))
    if part == "seams":
        return seams({"digits": (70, ("gms",), RESAMPLES)} if quick else SEAMS, 1 if quick else 3)
    models = {}
    for name, data in {"exact-digits": "digits", "digits": "digits", "mnist": "mnist5k"}.items():
        subject = subjects.build(name)
        models[name] = subject.model, gms_fast.data.load(data)[: 4 if quick else 32].to(subject.dtype)
    return inversion(models, (4, 8, 16) if quick else CALLS)


if __name__ == "__main__":
    main()
