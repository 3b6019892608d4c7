"""Quality of a noise network by loss weights, on 8x8 digits.

    python -m bench.experiments.loss_weights [--out FILE]

The network of `bench.assets.heads` is trained with each weighting of `train_noise_network` and several seeds, on four
fifths of the digits, for equal numbers of steps. Results are the feature Frechet distance of samples at equal network
calls, and the mean square error of the noise on the other digits, by level. After an interrupt, the same command
resumes.
"""

import argparse
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from bench.assets.heads import NETWORK
from bench.experiments.quality import at_calls
from bench.records.checkout import RESULTS
from bench.records.record import environment, save
from gms_fast import data, io
from gms_fast.models import MomentUNet
from gms_fast.quality import matrix
from gms_fast.quality.cells import CONTROLS
from gms_fast.training import train_noise_network
from gms_fast.training.losses import WEIGHTS

SOLVERS = {"dpm-solver++:denoise=False": ["0.7"], "er-sde": ["0.7"]}  # a deterministic and a stochastic solver
CALLS, SAMPLES = (10, 20), 1000
LEVELS = (10, 50, 100, 200, 350, 500, 700, 900)  # times out of 1000
SETTINGS: dict[str, Any] = {"batch_size": 64, "lr": 1e-3}


def split() -> tuple[Tensor, Tensor]:
    """Return digits to train on, and the fifth that is left out."""
    images = data.load("digits")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)) % 5
    return images[order != 0], images[order == 0]


def train(weights: str, seed: int, steps: int, out: Path) -> Path:
    """Train a network unless it exists; return its folder."""
    saved = out / "model"
    if saved.is_dir():
        return saved
    torch.manual_seed(seed)
    model, (images, _) = MomentUNet(**NETWORK, head=None), split()
    settings = SETTINGS | {"seed": seed, "progress": sys.stderr.isatty()}
    train_noise_network(model, images, steps=steps, out=out / "noise", weights=weights, **settings)
    io.save(model, saved)
    return saved


@torch.no_grad()
def errors(folder: Path) -> list[float]:
    """Return the mean of (e1 - eps)^2 on the digits left out, at each of `LEVELS`."""
    model, (_, images) = io.load(folder), split()
    found = []
    for t in LEVELS:
        eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(t))
        alpha, sigma = (float(f(t)) for f in (model.schedule.alpha, model.schedule.sigma))
        e1 = model.first_moment(alpha * images + sigma * eps, torch.full((len(images),), float(t)))
        found.append(float((e1 - eps).square().mean()))
    return found


def judged(folders: dict[str, list[Path]], out: Path) -> dict[str, dict[str, Any]]:
    """Return Frechet distances by solver and calls, and errors by level, for each weighting.

    Each has one number per seed.
    """
    cells = [c for each in folders.values() for f in each for c in at_calls(str(f), SOLVERS, CALLS) if c.range == 0]
    drawn = [c for c in cells if c.solver not in CONTROLS]
    options = {"data": "digits", "workers": 1, "progress": sys.stderr.isatty()}
    records = matrix.run(drawn, out, n=SAMPLES, origin=f"commit {environment()['commit']}", **options)
    found: dict[str, dict[str, Any]] = {}
    for weights, each in folders.items():
        own = [r for r in records if r["model"] in map(str, each)]
        frechet: dict[str, list[float]] = {}
        for record in own:
            key = f"{record['solver'].partition(':')[0]}, {record['calls']} calls"
            frechet.setdefault(key, []).append(round(record["frechet"], 3))
        by_level = [[round(v, 5) for v in errors(f)] for f in each]
        found[weights] = {"frechet": frechet, "error": {t: [row[i] for row in by_level] for i, t in enumerate(LEVELS)}}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=RESULTS / "loss_weights.json", help="file of the result (default: %(default)s)"
    )
    parser.add_argument(
        "--runs", type=Path, default=Path("runs/loss_weights"), help="folder of the networks (default: %(default)s)"
    )
    parser.add_argument("--seeds", type=int, default=2, help="networks for each weighting (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=1000, help="training steps (default: %(default)s)")
    args = parser.parse_args()
    folders = dict[str, list[Path]]()
    for seed in range(args.seeds):
        for weights in WEIGHTS:
            folders.setdefault(weights, []).append(train(weights, seed, args.steps, args.runs / f"{weights}-{seed}"))
    found = judged(folders, args.runs / "quality")
    for weights, each in found.items():
        print(weights, {key: round(mean(values), 3) for key, values in each["frechet"].items()})
        print(" " * len(weights), {t: round(mean(values), 4) for t, values in each["error"].items()})
    record = {"environment": environment(), "steps": args.steps, "samples": SAMPLES}
    save(args.out, record | {"weights": found})


if __name__ == "__main__":
    main()
