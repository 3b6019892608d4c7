"""Recorded runs of the released code, and their inputs."""

import json

import places
import torch
from toys import Model

import gms_fast
from gms_fast.models import GaussianMixture1D

VECTORS = json.loads((places.VECTORS / "gms_loop_vectors.json").read_text())
CASES = {case["method"]: case for case in VECTORS["cases"]}
DATA = VECTORS["data"]
MIXTURE = GaussianMixture1D(DATA["w"], DATA["mean"], DATA["std"], sample_shape=(4,))
DOUBLE = {"dtype": torch.float64}


def vector(values):
    return torch.tensor(values, dtype=torch.float64).reshape(VECTORS["shape"])


def recorded(method, solver, **options):
    """Repeat a recorded run with our loop; return it and the model's last e1."""
    case = CASES[method]
    z, u = [vector(v) for v in case["noise"]], torch.tensor([*case["select"], *[0.5] * 20], dtype=torch.float64)
    last = []

    def model(x, t):
        last[:] = [MIXTURE(x, t)]
        return last[0]

    x = gms_fast.sample(
        Model(model), case["steps"], solver=solver, x_T=vector(case["x_T"]),
        noise=lambda i: (z[i], u[4 * i :][:4]), **options,
    )  # fmt: skip
    return x, vector(case["out"]), last[0].e1


def run(solver, model=MIXTURE, steps=6, **options):
    return gms_fast.sample(model, steps, solver=solver, **{"n": 8, **DOUBLE} | options)
