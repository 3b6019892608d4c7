"""Memory and accuracy of streamed feature statistics, compared with all features at once.

    python -m bench.experiments.streamed [--out FILE]

Rows of two laws are made in batches of 256 and measured in two ways, each in a process of its own. `quality.running`
keeps moments and 2,000 rows; `quality.measures.frechet_distance` takes all rows. A line of the output has:

- the peak memory of either way, above the memory before it,
- the relative difference of both distances, and of the first from torchmetrics',
- the largest change of a covariance, in units of its largest variance, when ten parts are merged in eight other orders.
"""

import argparse
import itertools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from bench.assets.search import memory
from bench.records.record import environment, save
from gms_fast.quality import measures
from gms_fast.quality.running import Running, frechet

COUNTS, WIDTHS, BATCH, PARTS, ORDERS = (1000, 20_000), (64, 512), 256, 10, 8
WAYS = ("streamed", "all")


def batches(count: int, width: int, law: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows (b, width) float32 and their indices.

    Like features they have scales from 1 to 1/100 and are not centred at zero.
    """
    generator = torch.Generator().manual_seed(law)
    mix = torch.randn(width, width, generator=generator) / width**0.5 * torch.logspace(0, -2, width)
    for index in torch.arange(count).split(BATCH):
        yield (torch.randn(len(index), width, generator=generator) @ mix).relu() + 0.1 * law, index


def running(count: int, width: int, law: int, parts: int = 1) -> list[Running]:
    found = [Running(width) for _ in range(parts)]
    for part, (rows, index) in zip(itertools.cycle(found), batches(count, width, law), strict=False):
        part.update(rows, index)
    return found


def all_rows(count: int, width: int, law: int) -> Tensor:
    return torch.cat([rows for rows, _ in batches(count, width, law)])


def distance(way: str, count: int, width: int) -> float:
    if way == "streamed":
        samples, reference = (running(count, width, law)[0] for law in (0, 1))
        return frechet(samples, reference)
    return measures.frechet_distance(*(all_rows(count, width, law) for law in (0, 1)))


def by_torchmetrics(count: int, width: int) -> float:
    from torchmetrics.image.fid import FrechetInceptionDistance

    network = nn.Identity()
    network.num_features = width
    metric = FrechetInceptionDistance(network).set_dtype(torch.float64)
    for law in (0, 1):
        metric.update(all_rows(count, width, law).double(), real=bool(law))
    return float(metric.compute())


def reordered(count: int, width: int) -> float:
    """Return the largest change of a covariance by merge order, over its largest variance."""
    parts, generator, worst = running(count, width, 0, PARTS), torch.Generator().manual_seed(0), 0.0
    whole = Running.merged(parts)
    for _ in range(ORDERS):
        found = Running.merged([parts[i] for i in torch.randperm(PARTS, generator=generator)])
        assert torch.equal(found.rows, whole.rows)
        apart = (found.covariance - whole.covariance).abs().max() / whole.covariance.diagonal().max()
        worst = max(worst, float(apart))
    return worst


def one(way: str, count: int, width: int) -> None:
    """Print a distance, and the peak memory above the memory before the features."""
    distance(way, width + 1, width)  # one-time allocations of libraries
    before = memory("VmRSS")
    found = distance(way, count, width)
    print(json.dumps({"distance": found, "KiB": memory("VmHWM") - before}))


def line(count: int, width: int) -> dict[str, object]:
    found = {}
    for way in WAYS:
        command = [sys.executable, "-m", __spec__.name, "--one", way, str(count), str(width)]
        found[way] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    whole, other = found["all"]["distance"], by_torchmetrics(count, width)
    return {
        "features": count,
        "width": width,
        "MiB streamed": round(found["streamed"]["KiB"] / 1024, 1),
        "MiB of all": round(found["all"]["KiB"] / 1024, 1),
        "distance": whole,
        "streamed from all": abs(found["streamed"]["distance"] / whole - 1),
        "streamed from torchmetrics": abs(found["streamed"]["distance"] / other - 1),
        "by order": reordered(count, width),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the lines as JSON")
    parser.add_argument("--one", nargs=3, metavar=("WAY", "COUNT", "WIDTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(args.one[0], int(args.one[1]), int(args.one[2]))
        return
    lines = []
    for count, width in itertools.product(COUNTS, WIDTHS):
        lines.append(line(count, width))
        print(json.dumps(lines[-1]), flush=True)
    if args.out:
        save(args.out, {"environment": environment(), "lines": lines})


if __name__ == "__main__":
    main()
