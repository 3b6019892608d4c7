"""Networks of users, made of the exact network of Gaussian data, so right samples are known.

256 samples of 192 numbers determine their standard deviation to 1 in sqrt(2 * 256 * 192) = 314. ACCURATE is three
times that. Two such numbers differ by sqrt(2) times as much.
"""

import math
import warnings

import torch

import gms_fast
from gms_fast import NoiseMoments
from gms_fast.schedules import VPLinear

MEAN, STD = 0.3, 0.2
N = 256


class Exact:
    """Exact network of data N(mean, std^2) in a prediction type, at its schedule's own times."""

    sample_shape = (3, 8, 8)

    def __init__(self, mean=MEAN, std=STD, schedule=None, form="noise", **attributes):
        self.mean, self.std, self.schedule, self.form = mean, std, schedule or VPLinear(), form
        self.asked = []
        if form != "noise":
            self.prediction = form
        for name, value in attributes.items():
            setattr(self, name, value)

    def levels(self, t):
        time = self.schedule.from_network_time(t[:1].double())
        return tuple(float(f(time)) for f in (self.schedule.alpha, self.schedule.sigma))

    def __call__(self, x, t):
        self.asked.append(float(t[0]))
        alpha, sigma = self.levels(t)
        var = (alpha * self.std) ** 2 + sigma**2
        e = sigma * (x - alpha * self.mean) / var
        x_0 = self.mean + alpha * self.std**2 * (x - alpha * self.mean) / var
        return {"noise": e, "x0": x_0, "v": alpha * e - sigma * x_0, "flow": e - x_0}[self.form]


class Moments(Exact):
    """Exact network with central moments; the third is zero."""

    moments = "central"

    def __call__(self, x, t):
        alpha, sigma = self.levels(t)
        share = (alpha * self.std) ** 2 / ((alpha * self.std) ** 2 + sigma**2)
        return NoiseMoments(super().__call__(x, t), torch.full_like(x, share), torch.zeros_like(x))


def marginal(t, mean=MEAN, std=STD, schedule=None):
    """Return mean and standard deviation of x_t."""
    schedule = schedule or VPLinear()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    return alpha * mean, ((alpha * std) ** 2 + sigma**2) ** 0.5


ACCURATE = 3 / math.sqrt(2 * N * 192)
TWO = math.sqrt(2) * ACCURATE


def sample(model, steps=10, **options):
    return gms_fast.sample(model, steps, **{"solver": "ddim", "n": N} | options)


def std(x):
    return float(x.std())


def warned(*arguments, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        x = sample(*arguments, **options)
    return x, [str(w.message) for w in caught]
