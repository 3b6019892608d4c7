"""Quality of GMS with moments in other orthonormal bases than pixels.

    python -m bench.experiments.bases [--out FILE.json]

Noise is isotropic. So moments of the coefficients Q^T x_0, fits and draws in a basis Q are those of a cloud of rotated
points, and no solver changes. The model has exact moments of the 28x28 digits (subject exact-mnist5k: 5,000 points,
each plus N(0, 0.1^2)). Settings: float64, grid "angle", no clipping and no bounded last step.

The bases are "two-level Haar" (wavelets of two levels), "4x4 DCT" (cosine transform of each 4x4 block) and
"eigenvectors" (principal components of the data). "GMS with covariance" draws all elements together down to the default
switch, where the basis affects only its noise, and uses the basis after that. It shows what a basis adds to the data's
covariance. Cells are means over ranges of samples with their standard deviation, measured in pixels with the digit
classifier.
"""

import argparse
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gms_fast
from bench.experiments.quality import N
from bench.records.record import environment, save
from gms_fast.models import PointCloud
from gms_fast.quality import cells, classifier, subjects
from gms_fast.quality.measures import frechet_distance, precision_recall
from gms_fast.solvers import GMS, SNDDPM, Solver
from gms_fast.storage import atomic
from gms_fast.tables import Gaussian

MODEL = "exact-mnist5k"
PIXELS, HAAR, DCT, EIGENVECTORS = "pixels", "two-level Haar", "4x4 DCT", "eigenvectors"
TOGETHER = "GMS with covariance"
ROWS = (  # solver, basis
    *product(("GMS",), (PIXELS, HAAR, DCT, EIGENVECTORS)),
    *product((TOGETHER,), (PIXELS, DCT, EIGENVECTORS)),
    *product(("SN-DDPM",), (PIXELS, EIGENVECTORS)),
)
REAL = "*real against real*"
DECIMALS = {"frechet": 1, "precision": 3, "recall": 3}  # measure: decimals in its table


def haar(size: int) -> Tensor:
    """Return one level of the Haar transform, averages first: (size, size), orthonormal rows."""
    sums, differences = (torch.tensor([[1.0, s]]).double() / math.sqrt(2) for s in (1, -1))
    half = torch.eye(size // 2, dtype=torch.float64)
    return torch.cat([torch.kron(half, sums), torch.kron(half, differences)])


def haar_block() -> Tensor:
    """Return the rows of two levels of the 2-D Haar transform of a 4x4 block: (16, 16).

    The matrix is orthonormal; the second level transforms the averages.
    """
    first, averages = torch.kron(haar(4), haar(4)), torch.eye(16, dtype=torch.float64)
    low = torch.tensor([0, 1, 4, 5])  # averages along both sides
    averages[low[:, None], low] = torch.kron(haar(2), haar(2))
    return averages @ first


def dct_block() -> Tensor:
    """Return the rows of the cosine transform (DCT-II) of a 4x4 block: (16, 16), orthonormal."""
    k = torch.arange(4, dtype=torch.float64)
    rows = torch.cos(math.pi / 4 * k[:, None] * (k + 0.5)) / math.sqrt(2)
    rows[0] /= math.sqrt(2)
    return torch.kron(rows, rows)


def blockwise(block: Tensor, side: int) -> Tensor:
    """Return Q (side^2, side^2), which transforms every 4x4 block by `block` (16, 16).

    Row p holds the coefficients of pixel p. Two levels of Haar wavelets of a whole picture are such a transform,
    because their supports are blocks.
    """
    parts = side // 4
    pixels = torch.eye(side**2, dtype=torch.float64).view(-1, parts, 4, parts, 4)
    return (pixels.transpose(2, 3).reshape(-1, parts**2, 16) @ block.T).flatten(1)


def matrices(gaussian: Gaussian) -> dict[str, Tensor]:
    """Return Q (D, D) of each basis, for square pictures of D pixels with these statistics."""
    D = gaussian.mean.numel()
    side = math.isqrt(D)
    return {
        PIXELS: torch.eye(D, dtype=torch.float64),
        HAAR: blockwise(haar_block(), side),
        DCT: blockwise(dct_block(), side),
        EIGENVECTORS: gaussian.eigenvectors,
    }


def turned(x: Tensor, Q: Tensor) -> Tensor:
    """Apply Q^T to every row of x (N, *), in the shape of x."""
    return (x.flatten(1) @ Q).view(x.shape)


def rotated(cloud: PointCloud, Q: Tensor) -> PointCloud:
    """Return the cloud of the coefficients Q^T x_0.

    Raises ValueError unless Q is orthonormal: otherwise the noise would change.
    """
    D = cloud.data.shape[1]
    if Q.shape != (D, D) or (off := float((Q.T @ Q - torch.eye(D, dtype=Q.dtype)).abs().max())) > 1e-9:
        wrong = f"shape {tuple(Q.shape)}" if Q.shape != (D, D) else f"Q^T Q off the identity by {off:.2g}"
        raise ValueError(f"Q must be an orthonormal basis, ({D}, {D}): got {wrong}")
    points = turned(cloud.data, Q).view(-1, *cloud.sample_shape)
    return PointCloud(points, cloud.bandwidth, schedule=cloud.schedule)


def solver(name: str, gaussian: Gaussian, Q: Tensor) -> Solver:
    """Return the solver of a row, for coefficients in the basis Q."""
    if name == "SN-DDPM":
        return SNDDPM(clip_pixel=None)
    if name == "GMS":
        return GMS(clip_pixel=None)
    mean = turned(gaussian.mean[None], Q)[0]
    return GMS(clip_pixel=None, covariance=replace(gaussian, mean=mean, eigenvectors=Q.T @ gaussian.eigenvectors))


def draw(cloud: PointCloud, kind: Solver, Q: Tensor, calls: int, n: int, index: int) -> Tensor:
    """Draw pictures (n, *shape) by their coefficients in the basis Q.

    They are samples index * n .. (index + 1) * n - 1 of seed 0.
    """
    model = rotated(cloud, Q)
    times = model.schedule.timesteps(calls - 1, "angle")  # the last call is at t = 0
    x = gms_fast.sample(
        model, timesteps=times, solver=kind, n=n, sample_offset=index * n, clip=None, dtype=torch.float64
    )
    return turned(x, Q.T)


def compared(model: str, calls: Sequence[int], n: int, ranges: int) -> list[dict[str, Any]]:
    """Return records of real data and of every row, by network calls and range."""
    subject, gaussian = subjects.build(model), cells.gaussian(model)
    of, found = matrices(gaussian), []
    net = classifier.load(subject.features)
    real = net.features(subject.reference)  # once; `cells.measure` would repeat it in every cell

    def note(x: Tensor, **cell: Any) -> None:
        seen = net.features(x)
        values = frechet_distance(seen, real), *precision_recall(seen, real)
        found.append(cell | {name: round(v, 6) for name, v in zip(DECIMALS, values, strict=True)})
        print(*found[-1].values(), flush=True)

    for index in range(ranges):
        note(subject.real(n, index), solver=REAL, basis="", calls=0, range=index)
    for (name, basis), k, index in product(ROWS, calls, range(ranges)):
        x = draw(subject.model, solver(name, gaussian, of[basis]), of[basis], k, n, index)
        note(x, solver=name, basis=basis, calls=k, range=index)
    return found


def table(records: Sequence[dict[str, Any]], measure: str) -> str:
    """Format a measure as Markdown: solvers and bases by calls, mean ± standard deviation."""
    calls = sorted({r["calls"] for r in records if r["calls"]})
    lines = ["| solver | basis | " + " | ".join(f"{k} calls" for k in calls) + " |", "|---" * (len(calls) + 2) + "|"]
    for name, basis in dict.fromkeys((r["solver"], r["basis"]) for r in records):
        own = [r for r in records if (r["solver"], r["basis"]) == (name, basis)]
        of = {k: [r[measure] for r in own if r["calls"] in (0, k)] for k in calls}  # real data in all columns
        lines.append(f"| {name} | {basis} | {' | '.join(figure(v, DECIMALS[measure]) for v in of.values())} |")
    return "\n".join(lines)


def figure(values: Sequence[float], decimals: int) -> str:
    spread = f" ±{statistics.stdev(values):.{decimals}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{decimals}f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, nargs="+", default=[3, 5, 10, 20], help="numbers of network calls")
    parser.add_argument("--n", type=int, default=N[MODEL], help="samples of a range (default: %(default)s)")
    parser.add_argument("--ranges", type=int, default=3, help="ranges of samples (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, and the tables next to it as Markdown")
    args = parser.parse_args()
    where = environment()
    records = compared(MODEL, args.calls, args.n, args.ranges)
    about = f"{args.ranges} ranges of {args.n} samples, commit {where['commit']}, {where['date']}"
    tables = [f"**{MODEL}, {measure}**\n\n{table(records, measure)}" for measure in DECIMALS]
    text = "\n\n".join([f"<!-- {about}, torch {where['torch']} -->", *tables]) + "\n"
    print(text)
    if args.out:
        save(args.out, {"environment": where, "model": MODEL, "n": args.n, "ranges": args.ranges, "records": records})
        atomic.write_text(args.out.with_suffix(".md"), text)


if __name__ == "__main__":
    main()
