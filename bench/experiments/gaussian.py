"""Time and memory of Gaussian statistics of large images.

    python -m bench.experiments.gaussian [--size 64] [--out FILE]

`gms_fast.statistics.gaussian` runs on synthetic pictures: three colours of smooth noise with the power law of natural
images, made batch by batch. The results are the seconds beyond making the pictures, and the process's peak memory.
"""

import argparse
import json
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.records.record import environment, save
from gms_fast import statistics


def pictures(count: int, size: int, batch: int, spent: list[float]) -> Iterator[Tensor]:
    """Yield batches (b, 3, size, size) in [-1, 1] whose amplitudes fall as 1/frequency.

    The seconds that they take are added to `spent`.
    """
    generator = torch.Generator().manual_seed(0)
    rows, columns = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)
    falling = 1 / (rows**2 + columns**2).sqrt().clamp(min=1 / size)
    colours = torch.tensor([[1.0, 0.3, 0.1], [1.0, 0.0, -0.2], [1.0, -0.3, 0.1]])
    for start in range(0, count, batch):
        began = time.perf_counter()
        white = torch.randn(min(batch, count - start), 3, size, size, generator=generator)
        smooth = torch.fft.irfft2(torch.fft.rfft2(white) * falling, s=(size, size))
        coloured = torch.einsum("cd,bdhw->bchw", colours, smooth / smooth.std())
        spent[0] += time.perf_counter() - began
        yield torch.tanh(0.5 * coloured)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=64, help="side of the pictures (default: %(default)s)")
    parser.add_argument("--images", type=int, default=20_000, help="number of pictures (default: %(default)s)")
    parser.add_argument("--rank", type=int, default=512, help="number of eigenvectors (default: %(default)s)")
    parser.add_argument("--flips", action="store_true", help="count mirrored pictures too")
    parser.add_argument("--out", type=Path, help="write the result as JSON")
    args = parser.parse_args()
    spent, began = [0.0], time.perf_counter()
    found = statistics.gaussian(pictures(args.images, args.size, 1000, spent), args.rank, flips=args.flips)
    seconds = time.perf_counter() - began - spent[0]
    gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    result = {"elements": found.mean.numel(), "images": found.count, "rank": found.rank}
    result |= {
        "variance_kept": found.variance_kept,
        "seconds": seconds,
        "peak_GiB": gib,
        "threads": torch.get_num_threads(),
        "environment": environment(),
    }
    print(json.dumps(result, indent=1))
    if args.out:
        save(args.out, result)


if __name__ == "__main__":
    main()
