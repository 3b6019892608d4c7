"""GGDM tables in which every number has an effect."""

import torch

from gms_fast.schedules import VPLinear
from gms_fast.solvers import DDIM, GGDMTable

SCHEDULE = VPLinear()


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def busy(K, seed=0):
    """Return a table without zeros, except those that its form requires."""
    random = torch.Generator().manual_seed(seed)
    first = GGDMTable.of(DDIM(eta=0.4), SCHEDULE, [float(t) for t in SCHEDULE.grid(K, 0.7)][:-1])
    mask = torch.ones(K + 1, K + 1).triu(1)
    mask[1:, 0] = 1
    mask[[0, K]] = 0
    mu = first.mu + 0.05 * mask * torch.randn(K + 1, K + 1, generator=random)
    c, d = (value * (1 + 0.01 * torch.randn(K + 1, generator=random)) for value in (first.c, first.d))
    return GGDMTable(SCHEDULE, first.tau, mu, first.sigma, c, d)
