"""Can a search of its few numbers make GMS better? `python bench/search_gms.py [--evaluations N]`.

The times of 5 network calls on the embedded "mnist" (4 steps and the last call), `switch` of the covariance, `weight`
and `clip_pixel`, by the loss of gms_fast.search on the same half of the data through the same network. A component is
chosen, not differentiated, and the times of this schedule are integers: scipy's Nelder-Mead with common random numbers
takes the place of Adam. Prints each evaluation, and writes bench/results/search_gms.json: the numbers that it found and
what the quality measures, which the search did not see, say of fresh samples before and after.
"""

import argparse
import json
import math
import statistics as numbers
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize
from timing import environment
from torch import Tensor

import gms_fast
from gms_fast import search, solvers, statistics
from gms_fast.quality import cells, subjects

RESULT = Path(__file__).parent / "results" / "search_gms.json"
STEPS, N, AT_ONCE, RANGES = 4, 800, 100, 3
SEARCH, SCORE = 192, 512  # samples of an evaluation and of the held-out score
FRESH = 10_000  # index from which the search draws: the measures draw below it
FIRST = {"switch": 3.0, "weight": 1 / 3, "clip_pixel": 2.0}


class Numbers:
    """A point of the search, near 0, as the times and the solver it stands for."""

    def __init__(self, schedule: object) -> None:
        self.first = schedule.timesteps(STEPS, "angle")
        self.covariance = statistics.load_gaussian("mnist")

    def __call__(self, point: np.ndarray) -> tuple[list[int], solvers.GMS]:
        gaps = -np.diff(self.first) * np.exp(point[:STEPS])
        inner = self.first[0] * (1 - np.cumsum(gaps)[:-1] / gaps.sum())
        times = [self.first[0], *(round(float(t)) for t in inner), self.first[-1]]
        switch, logit, pixel = point[STEPS:]
        weight = 1 / (1 + math.exp(-(math.log(FIRST["weight"] / (1 - FIRST["weight"])) + logit)))
        options = {"switch": FIRST["switch"] * math.exp(switch), "clip_pixel": FIRST["clip_pixel"] * math.exp(pixel)}
        return times, solvers.GMS(covariance=self.covariance, weight=weight, **options)


def drawn(model: object, times: list[int], solver: solvers.GMS, n: int, offset: int) -> Tensor:
    starts = range(0, n, AT_ONCE)
    options = {"solver": solver, "timesteps": times}
    return torch.cat(
        [gms_fast.sample(model, n=min(AT_ONCE, n - s), sample_offset=offset + s, **options) for s in starts]
    )


def measured(subject: subjects.Subject, times: list[int], solver: solvers.GMS) -> dict[str, list[float]]:
    """[mean, standard deviation] over fresh ranges of what the quality matrix measures."""
    found = [cells.measure(drawn(subject.model, times, solver, N, r * N), subject) for r in range(RANGES)]
    return {k: [numbers.fmean(m[k] for m in found), numbers.stdev(m[k] for m in found)] for k in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=150)
    args = parser.parse_args()
    subject = subjects.build("mnist")
    features, made = search.load_features("mnist5k"), Numbers(subject.model.schedule)
    real = features(subject.control)
    units = search.Units(real)
    real = units(real)
    loss, score = search.KernelDistance(real[SCORE:]), search.KernelDistance(real[:SCORE])

    def judged(point: np.ndarray, distance: search.KernelDistance, n: int, offset: int) -> float:
        times, solver = made(point)
        if any(not a > b for a, b in pairwise(times)):
            return math.inf
        x = drawn(subject.model, times, solver, n, offset)
        return float(distance(units(features(x))))

    def evaluate(point: np.ndarray) -> float:
        value = judged(point, loss, SEARCH, FRESH)
        print(f"{value:.5f}", made(point)[0], np.round(point, 2).tolist(), flush=True)
        return value

    zero = np.zeros(STEPS + len(FIRST))
    corners = 0.3 * np.eye(len(zero)) * np.where(np.arange(len(zero)) < STEPS / 2, -1, 1)
    options = {"maxfev": args.evaluations, "initial_simplex": np.vstack([zero, corners]), "xatol": 1e-3, "fatol": 1e-6}
    found = minimize(evaluate, zero, method="Nelder-Mead", options=options)
    record = {"environment": environment(), "evaluations": int(found.nfev)}
    for name, point in (("first", zero), ("learned", found.x)):
        times, solver = made(point)
        own = {key: getattr(solver, key) for key in FIRST}
        held = judged(point, score, SCORE, 2 * FRESH)
        record[name] = {"timesteps": times, **own, "held_out": held, "measures": measured(subject, times, solver)}
        print(name, json.dumps(record[name]))
    RESULT.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
