"""Quality of a denoiser that blends the network's with that of the data's Gaussian.

    python -m bench.experiments.blend --out FILE [--quick]

At high noise levels the embedded networks are farther from x_0 than the Gaussian of their data. The blend
D = D_gauss + w (D_net - D_gauss), with the weight w(sigma/alpha) of least square error on noised data, is nearer than
either at every level. This measures the weights on one half of the data, and the quality of solvers with the blend at
equal network calls. The solvers run by themselves and behind a teleport, which skips the network where w is small.
Quality is judged as in the quality matrix, on its ranges.
"""

import argparse
import json
import math
import statistics as numbers
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import gms_fast
from bench.records.record import environment, save
from gms_fast import ops, solvers
from gms_fast.quality import cells, classifier, measures, subjects
from gms_fast.quality.subjects import Subject
from gms_fast.solvers import Solver, Teleport
from gms_fast.tables import Gaussian
from gms_fast.types import NoiseMoments

LEVELS = (100, 50, 30, 20, 14, 10, 7, 5, 4, 3, 2, 1.5, 1, 0.5)  # sigma/alpha
STREAM = 3  # random stream of `gms_fast.statistics.pilot`
CALLS, RANGES, IMAGES, AT_ONCE = (3, 5, 10), 3, 400, 100
N = {"digits": 800, "mnist": 150}
UNTIL = {"digits": (5, "uniform"), "mnist": (10, 1.2)}  # as in group gaussian of the matrix
GMS_UNTIL = 3
TAILS = ("er-sde", "dpm-solver++:denoise=False", "gms")


class Blended:
    """Network of central moments whose mean is blended with that of a Gaussian.

    E'[x_0|x_t] = D_gauss + w (D - D_gauss), where the weight w is linear in log(sigma/alpha) between `levels`. Second
    and third moments about the mean stay unchanged.
    """

    def __init__(self, network: Any, gaussian: Gaussian, levels: Sequence[float], weights: Sequence[float]) -> None:
        self.network, self.gaussian = network, gaussian
        self.schedule, self.sample_shape, self.moments = network.schedule, network.sample_shape, network.moments
        order = np.argsort(levels)
        self.levels, self.weights = np.log(np.asarray(levels)[order]), np.asarray(weights)[order]

    def __call__(self, x: Tensor, t: Tensor) -> NoiseMoments:
        time = self.schedule.from_network_time(t[:1])
        alpha, sigma = float(self.schedule.alpha(time)), float(self.schedule.sigma(time))
        said = self.network(x, t)
        w = float(np.interp(math.log(sigma / alpha), self.levels, self.weights))
        gaussian = (x - alpha * self.gaussian.denoise(x, alpha, sigma).to(x)) / sigma
        return said._replace(e1=gaussian + w * (said.e1 - gaussian))


@torch.no_grad()
def weights(subject: Subject, gaussian: Gaussian) -> list[dict[str, float]]:
    """Return, by level, square errors of network, Gaussian and blend, and the best weight.

    Errors are means against x_0; the weight is the one of least error.
    """
    images, schedule = subject.control[:IMAGES], subject.model.schedule
    found = []
    for i, level in enumerate(LEVELS):
        t = schedule.inverse_log_snr(-math.log(level))
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        z = ops.philox_normal(images.shape, seed=0, step=i, stream=STREAM, device=images.device, dtype=images.dtype)
        x, times = alpha * images + sigma * z, schedule.network_time(t).float()
        e1 = torch.cat([subject.model(part, times.expand(len(part))).e1 for part in x.split(AT_ONCE)])
        own = ((x - sigma * e1) / alpha).clamp(-1, 1).double()
        known = gaussian.denoise(x, alpha, sigma).double().view_as(own)
        apart, left = own - known, images.double() - known
        w = float((apart * left).sum() / apart.square().sum())
        errors = {
            "network": float((own - images).square().mean()),
            "gaussian": float(left.square().mean()),
            "blend": float((left - w * apart).square().mean()),
        }
        found.append({"level": level, "weight": min(max(w, 0.0), 1.0), **errors})
    return found


class Seen:
    """Feature Frechet distance and precision of samples, by the quality matrix's classifier."""

    def __init__(self, subject: Subject) -> None:
        self.network = classifier.load(subject.features)
        self.real = self.network.features(subject.reference)

    def __call__(self, x: Tensor) -> dict[str, float]:
        found = self.network.features(x)
        precision, _ = measures.precision_recall(found, self.real)
        return {"frechet": measures.frechet_distance(found, self.real), "precision": precision}


def drawn(model: Any, solver: Solver, grid: Any, calls: int, seen: Seen, n: int) -> dict[str, list[float]]:
    """Return [mean, standard deviation] over ranges of samples, by measure."""
    steps = calls - solver.denoise
    if isinstance(solver, Teleport):
        times = solver.times(model.schedule, steps)
    else:
        times = model.schedule.timesteps(steps, grid)
    found = []
    for r in range(RANGES):
        options = {"solver": solver, "timesteps": times, "n": AT_ONCE, "clip": (-1.0, 1.0)}
        starts = range(r * n, (r + 1) * n, AT_ONCE)
        found.append(seen(torch.cat([gms_fast.sample(model, sample_offset=start, **options) for start in starts])))
    return {k: [numbers.fmean(m[k] for m in found), numbers.stdev(m[k] for m in found)] for k in found[0]}


def rows(name: str, n: int) -> dict[str, Any]:
    """Return the weights of a model, and all its rows."""
    subject, gaussian = subjects.build(name), cells.gaussian(name)
    seen = Seen(subject)
    measured = weights(subject, gaussian)
    print(name, json.dumps(measured), flush=True)
    blended = Blended(subject.model, gaussian, LEVELS, [row["weight"] for row in measured])
    until, spacing = UNTIL[name]
    found = []
    for text in TAILS:
        tail = solvers.build(text)
        near = GMS_UNTIL if text == "gms" else until
        own = {"er-sde": "uniform", "gms": "angle"}.get(text, 0.7)
        for kind, solver in (("alone", tail), ("teleport", Teleport(gaussian, near, tail, spacing=spacing))):
            for calls in CALLS:
                for label, model in (("network", subject.model), ("blend", blended)):
                    judged = drawn(model, solver, own, calls, seen, n)
                    found.append({"solver": text, "start": kind, "calls": calls, "denoiser": label, **judged})
                    print(json.dumps(found[-1]), flush=True)
    return {"weights": measured, "n": n, "rows": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="write the results as JSON")
    parser.add_argument("--quick", action="store_true", help="few samples of the 8x8 digits, to test the command")
    args = parser.parse_args()
    sizes = {"digits": 100} if args.quick else N
    save(args.out, {"environment": environment(), "models": {name: rows(name, n) for name, n in sizes.items()}})


if __name__ == "__main__":
    main()
