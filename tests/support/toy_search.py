"""Searches of a toy problem, whose distances are recorded in the vectors."""

import json

import places
import torch
from toys import Toy

from gms_fast import search
from gms_fast.schedules import VPLinear
from gms_fast.search.unroll import Sampler

VECTORS = json.loads((places.VECTORS / "ggdm_vectors.json").read_text())
SCHEDULE = VPLinear()
TOY = Toy(VECTORS["toy"])


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def sampler(model=TOY, **options):
    given = {"schedule": SCHEDULE, "form": "noise", "shape": (2,), "clip": None, "seed": 0, "dtype": torch.float64}
    return Sampler(model=model, device=torch.device("cpu"), **given | options)


def seven(x):
    """Return the features of the vectors."""
    a, b = x.unbind(1)
    return torch.stack([a, b, a * a, a * b, b * b, a.sin(), (2 * b).cos()], dim=1)


def data_of_toy(n, seed=0):
    """Draw from the mixture."""
    random, toy = torch.Generator().manual_seed(seed), VECTORS["toy"]
    which = torch.multinomial(double(toy["weights"]), n, replacement=True, generator=random)
    noise = torch.randn(n, 2, dtype=torch.float64, generator=random)
    return double(toy["means"])[which] + double(toy["comp_var"])[which].sqrt()[:, None] * noise


QUICK = {
    "clip": None, "dtype": torch.float64, "features": seven, "progress": False, "spacing": "uniform",
    "initial": "ddim", "batch_size": 256, "score_samples": 2000, "lr": 2e-2, "iterations": 250, "rematerialise": False,
    "chunk": 4000, "score_every": 25,
}  # fmt: skip


def searched(steps=3, **options):
    return search.ggdm(TOY, data_of_toy(4000), steps, **QUICK | options)
