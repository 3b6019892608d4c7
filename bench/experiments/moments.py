"""Errors of learned moments against the exact ones of the same data, by noise level.

    python -m bench.experiments.moments [--model mnist] [--data mnist5k]

Over noisy images it prints mean |learned - exact| over mean |exact|, for variance and third central moment of x_0 given
x_t. Both are bounded as for a law on [-1, 1]. It also prints the share of negative variances. At low noise the exact
moments identify each single image, which a network that generalises must not do.
"""

import argparse

import torch

import gms_fast
from bench.experiments.guards import data_moments
from gms_fast import data
from gms_fast.models import PointCloud
from gms_fast.steps import StepCoefficients
from gms_fast.types import NoiseMoments

LARGEST_THIRD = 2.0  # slightly more than any law on [-1, 1] has


def errors(model: object, exact: PointCloud, x_0: torch.Tensor, t: int, seed: int = 0) -> tuple[float, ...]:
    """Return sigma/alpha, errors of variance and third moment, and share of negative variances."""
    k = StepCoefficients.at(model.schedule, t)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(seed))
    x, times = k.alpha_t * x_0 + k.sigma_t * eps, model.schedule.network_time([t] * len(x_0)).float()
    with torch.no_grad():
        learned = NoiseMoments(*(e.double() for e in model(x, times)))
    _, v, third = data_moments(x.double(), exact(x.double(), times.double()), k, central=False)
    m, v_hat, third_hat = data_moments(x.double(), learned, k, central=model.moments == "central")
    negative = float((v_hat < 0).double().mean())
    m = m.clamp(-1, 1)
    v_hat = torch.minimum(v_hat.clamp(min=0), 1 - m**2)
    third_hat = third_hat.clamp(-LARGEST_THIRD, LARGEST_THIRD)
    relative = [float((a - b).abs().mean() / b.abs().mean()) for a, b in ((v_hat, v), (third_hat, third))]
    return k.sigma_t / k.alpha_t, *relative, negative


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="mnist", help="name or folder of the model (default: %(default)s)")
    parser.add_argument("--data", default="mnist5k", help="its data (default: %(default)s)")
    parser.add_argument("--times", type=int, nargs="+", default=[900, 800, 700, 600], help="time steps")
    parser.add_argument("--images", type=int, default=64, help="number of images (default: %(default)s)")
    args = parser.parse_args()
    model, images = gms_fast.load(args.model), data.load(args.data)
    exact = PointCloud(images, schedule=model.schedule)
    x_0 = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))[: args.images]]
    print("| sigma/alpha | variance | third moment | negative variances |\n|---|---|---|---|")
    for t in args.times:
        level, variance, third, negative = errors(model, exact, x_0, t)
        print(f"| {level:.3g} (t = {t}) | {variance:.2f} | {third:.2f} | {negative:.0%} |")


if __name__ == "__main__":
    main()
