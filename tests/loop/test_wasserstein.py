"""Solvers with exact noise moments against distances measured for the specification.

x_0 ~ 0.4 N(-0.6, 0.12^2) + 0.6 N(0.5, 0.08^2), linear schedule, released grid, float64, without a data range.
Wasserstein-1 is taken to the quantiles of the distribution itself, so the samples are the only source of noise.
"""

import functools
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm, wasserstein_distance

import gms_fast
from gms_fast import solvers
from gms_fast.models import GaussianMixture1D

N = 40_000
FLOOR = 0.0017 * math.sqrt(100_000 / N)  # distance of N exact samples: 0.0017 at 100,000, ~ 1/sqrt(N)
ROUNDING = 0.001  # sampling error of the table, from 100,000 samples
SOLVERS = {
    "ddpm": solvers.DDPM(),
    "ddim": solvers.DDIM(),
    "gaussian": solvers.SNDDPM(),
    "exact": solvers.GMS(fit="exact"),
    "free": solvers.GMS(fit="free"),
}
TABLE = {
    ("ddpm", 5): 0.263, ("ddpm", 10): 0.111, ("ddpm", 20): 0.044,
    ("ddim", 5): 0.245, ("ddim", 10): 0.091, ("ddim", 20): 0.031,
    ("gaussian", 5): 0.188, ("gaussian", 10): 0.079, ("gaussian", 20): 0.013,
    ("exact", 5): 0.114, ("exact", 10): 0.066, ("exact", 20): 0.009,
    ("free", 5): 0.052, ("free", 10): 0.032, ("free", 20): 0.003,
}  # fmt: skip


@functools.cache
def quantiles():
    """Return the (i + 1/2)/N quantiles of the mixture, i = 0..N-1."""
    grid = np.linspace(-2, 2, 400_001)
    cumulative = 0.4 * norm.cdf(grid, -0.6, 0.12) + 0.6 * norm.cdf(grid, 0.5, 0.08)
    return np.interp((np.arange(N) + 0.5) / N, cumulative, grid)


@functools.cache
def distance(name, steps):
    model = GaussianMixture1D((0.4, 0.6), (-0.6, 0.5), (0.12, 0.08))
    times = model.schedule.timesteps(steps)
    x = gms_fast.sample(model, timesteps=times, solver=SOLVERS[name], n=N, dtype=torch.float64, clip=None)
    return wasserstein_distance(x.flatten().numpy(), quantiles())


@pytest.mark.parametrize(("name", "steps"), TABLE)
def test_wasserstein_distance_equals_the_table(name, steps):
    assert abs(distance(name, steps) - TABLE[name, steps]) < ROUNDING + 3 * FLOOR


@pytest.mark.parametrize("steps", [5, 10, 20])
def test_solvers_rank_by_the_moments_they_use(steps):
    """With equal draws three moments beat two, two beat one, and a free weight a fixed one."""
    ranked = [distance(name, steps) for name in ("free", "exact", "gaussian", "ddim", "ddpm")]
    assert ranked == sorted(ranked)


@pytest.mark.parametrize("steps", [5, 10])
def test_default_halves_the_distance_of_the_best_gaussian(steps):
    """The default grid is compared with SN-DDPM on the same grid and on the released one."""
    model = GaussianMixture1D((0.4, 0.6), (-0.6, 0.5), (0.12, 0.08))
    own = {
        solver: gms_fast.sample(
            model,
            timesteps=model.schedule.timesteps(steps, spacing=solvers.GMS().spacing),
            solver=solver,
            n=N,
            dtype=torch.float64,
            clip=None,
        )
        for solver in ("gms", "sn-ddpm")
    }
    gms, gaussian = (wasserstein_distance(x.flatten().numpy(), quantiles()) for x in own.values())
    assert gms < min(gaussian, distance("gaussian", steps)) / 2


def test_free_reaches_the_sampling_floor_in_twenty_steps():
    assert distance("free", 20) < 3 * FLOOR
    assert distance("gaussian", 20) > 3 * FLOOR


def test_true_samples_lie_at_the_floor():
    model = GaussianMixture1D((0.4, 0.6), (-0.6, 0.5), (0.12, 0.08))
    distances = [
        wasserstein_distance(model.draw(N, torch.Generator().manual_seed(seed)).flatten().numpy(), quantiles())
        for seed in range(8)
    ]
    assert FLOOR / 2 < np.mean(distances) < 2 * FLOOR
