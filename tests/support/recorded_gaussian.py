"""Gaussian and mixture of the recorded numbers."""

import json

import places
import torch

from gms_fast.statistics import Gaussian

VECTORS = json.loads((places.VECTORS / "teleport_vectors.json").read_text())


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def of(values):
    """Return the statistics of a problem."""
    return Gaussian(values["mu"], values["U"], values["lam"])


PROBLEM = of(VECTORS["problem"])


def close(got, want, tolerance):
    want = tensor(want) if not isinstance(want, torch.Tensor) else want
    assert float((got - want).abs().max()) <= tolerance * max(1.0, float(want.abs().max()))


class Mixture:
    """E[x_0|x] of Gaussians of one covariance at alpha = 1, and the Gaussian of their moments.

    That Gaussian has the mean and covariance of the mixture.
    """

    def __init__(self, v):
        self.w, self.m, self.lam = tensor(v["weights"]), tensor(v["means"]), tensor(v["comp_cov_eigs_in_U"])
        self.U = PROBLEM.eigenvectors
        mean = self.w @ self.m
        away = self.m - mean
        covariance = away.T @ (self.w[:, None] * away) + self.U @ self.lam.diag() @ self.U.T
        lam, U = torch.linalg.eigh(covariance)
        self.gaussian = Gaussian(mean, U.flip(1), lam.flip(0))

    def __call__(self, x, sigma):
        spread = self.lam + sigma**2
        away = (x[:, None] - self.m) @ self.U
        share = torch.softmax(self.w.log() - (away**2 / spread).sum(-1) / 2, dim=1)
        means = self.m + (away * self.lam / spread) @ self.U.T
        return (share[..., None] * means).sum(1)

    def draw(self, n, generator):
        i = torch.multinomial(self.w, n, replacement=True, generator=generator)
        z = torch.randn(n, 6, generator=generator, dtype=torch.float64)
        return self.m[i] + (z * self.lam.sqrt()) @ self.U.T


MIXTURE = Mixture(VECTORS["hybrid_mixture"])
