"""Calibration and cost of moment heads on networks of other libraries.

    python -m bench.experiments.any_network HEADS ... [--out FILE.json]

HEADS are folders that `gms-fast train-heads` wrote (RUN/model), trained on the 8x8 digits. For each, by noise level:
correlation  over the elements, between the mean predicted e2 and the mean squared error of e1 on noised digits
ratio        of the means of both over all elements

The cost is that of a network call: the time that the heads add, and the time that a solver pays which does not read
them. Figures are medians of several runs; both sides take turns in one process with one thread.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import gms_fast
from bench.records.record import environment, save
from gms_fast import data, prediction
from gms_fast.models import MomentHeads

PERCENTILES, DRAWS, ROWS, RUNS = (10, 25, 50, 75, 90), 32, 256, 25


def condition(model: MomentHeads, labels: Tensor) -> dict[str, Tensor]:
    return dict.fromkeys(model.needed, labels)


@torch.no_grad()
def calibration(model: MomentHeads, images: Tensor, labels: Tensor, percentile: int, draws: int) -> dict[str, float]:
    """Compare predicted second moments with measured squared errors at one noise level.

    Args:
        model: Network with heads.
        images: Clean images.
        labels: Their classes.
        percentile: The level, as a percentage of the schedule's times.
        draws: Draws of the noise for each image.
    """
    t = round(model.schedule.t_max * percentile / 100)
    alpha, sigma = float(model.schedule.alpha(t)), float(model.schedule.sigma(t))
    generator = torch.Generator().manual_seed(percentile)
    said, found, count = 0.0, 0.0, 0
    for _ in range(draws):
        for x_0, given in zip(images.split(ROWS), labels.split(ROWS), strict=True):
            eps = torch.randn(x_0.shape, generator=generator)
            x, time_ = alpha * x_0 + sigma * eps, model.schedule.network_time(t).float().expand(len(x_0))
            moments = model(x, time_, **condition(model, given))
            m = prediction.to_data("noise", moments.e1, x, alpha, sigma).clamp(*model.clip or (-torch.inf, torch.inf))
            error = (m - x_0) * alpha / sigma  # error of e1 as solvers use it, with E[x_0|x_t] clipped
            said, found = said + moments.e2.double().sum(0), found + error.double().square().sum(0)
            count += len(x_0)
    correlation = torch.corrcoef(torch.stack([said.flatten(), found.flatten()]))[0, 1]
    return {
        "t": t,
        "sigma/alpha": round(sigma / alpha, 4),
        "correlation": round(float(correlation), 4),
        "ratio": round(float(said.mean() / found.mean()), 4),
    }


@torch.no_grad()
def cost(model: MomentHeads, batch: int, runs: int) -> dict[str, float]:
    """Time the heads, and a call in which they are not read, relative to the network alone."""
    x, t = torch.randn(batch, *model.sample_shape), torch.full((batch,), 500.0)
    given = condition(model, torch.arange(batch) % 10)
    calls: dict[str, Callable[[], Any]] = {
        "network": lambda: model.network(x, t, **given),
        "heads": lambda: model(x, t, **given),
        "skipped": lambda: model.first_moment(x, t, **given),
    }
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(runs + 3):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i >= 3:
                taken[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(seconds) for name, seconds in taken.items()}
    return {
        "batch": batch,
        "heads": round(middle["heads"] / middle["network"] - 1, 3),
        "skipped": round(middle["skipped"] / middle["network"] - 1, 3),
        "parameters": round(sum(w.numel() for w in model.heads.parameters()) / _count(model.bare), 3),
    }


def _count(network: torch.nn.Module) -> int:
    return sum(w.numel() for w in network.parameters())


def table(results: dict[str, Any]) -> str:
    found = results["networks"]
    lines = ["| network | t, % of its maximum | sigma/alpha | correlation | ratio of means |", "|---|---|---|---|---|"]
    for name, result in found.items():
        for percentile, row in zip(PERCENTILES, result["levels"], strict=True):
            numbers = f"{row['sigma/alpha']:.3g} | {row['correlation']:.3f} | {row['ratio']:.3f}"
            lines.append(f"| {name} | {percentile} | {numbers} |")
    lines += [
        "",
        "| network | batch size | heads: added time | skipped: added time | added parameters |",
        "|---|---|---|---|---|",
    ]
    for name, result in found.items():
        for row in result["cost"]:
            shares = f"{row['heads']:.1%} | {row['skipped']:.1%} | {row['parameters']:.1%}"
            lines.append(f"| {name} | {row['batch']} | {shares} |")
    lines += [
        "",
        f"Commit {results['environment']['commit']}, {results['draws']} noise draws for each digit and noise level.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("heads", nargs="+", type=Path, help="folders of trained heads")
    parser.add_argument("--draws", type=int, default=DRAWS, help="draws of the noise for each digit and level")
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each timed call")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    images, labels = data.load("digits"), data.load_labels("digits")
    found = {}
    for folder in args.heads:
        model = gms_fast.load(folder)
        levels = [calibration(model, images, labels, p, args.draws) for p in PERCENTILES]
        found[type(model.bare).__name__] = {
            "levels": levels,
            "cost": [cost(model, batch, args.runs) for batch in (16, 64, 256)],
            "training": model.record,
        }
    results = {"environment": environment(), "draws": args.draws, "networks": found}
    print(table(results))
    if args.out is not None:
        save(args.out, results)


if __name__ == "__main__":
    main()
