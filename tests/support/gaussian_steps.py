"""Single steps on Gaussian data, where every solver is affine in state and noise."""

import pytest
import torch
from toys import Model

import gms_fast
from gms_fast import NoiseMoments


class Gaussian(Model):
    """Noise moments of N(mean, std^2) data, central; the third is exactly zero."""

    moments = "central"

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def marginal(self, t):
        """Return mean and variance of x_t."""
        alpha, sigma = (float(f(t)) for f in (self.schedule.alpha, self.schedule.sigma))
        return alpha * self.mean, (alpha * self.std) ** 2 + sigma**2

    def __call__(self, x, t):
        mean, var = self.marginal(float(t[0]))
        sigma = float(self.schedule.sigma(float(t[0])))
        return NoiseMoments(sigma * (x - mean) / var, torch.full_like(x, 1 - sigma**2 / var), torch.zeros_like(x))


def one_step(solver, model, t, s, x, z):
    """Return x_s from x_t = x with the normal z: the input of the second network call."""
    seen = []

    def spy(x_i, time):
        seen.append(float(x_i))
        return model(x_i, time)

    z, u = torch.full((1, 1), z, dtype=torch.float64), torch.full((1,), 0.9, dtype=torch.float64)
    start = torch.full((1, 1), x, dtype=torch.float64)
    spied = Model(spy, moments=model.moments)
    gms_fast.sample(spied, timesteps=[t, s], solver=solver, x_T=start, noise=lambda i: (z, u), clip=None)
    return seen[1]


def affine_step(solver, model, t, s):
    """Return (p, a, b) with x_s = p + a x_t + b z, the form of every solver on Gaussian data."""
    p = one_step(solver, model, t, s, 0.0, 0.0)
    a, b = one_step(solver, model, t, s, 1.0, 0.0) - p, one_step(solver, model, t, s, 0.0, 1.0) - p
    assert one_step(solver, model, t, s, -2.0, 3.0) == pytest.approx(p - 2 * a + 3 * b, abs=1e-12)
    return p, a, b


STEPS = [(999, 799), (799, 599), (599, 399), (399, 199), (199, 0), (999, 0), (1, 0)]
