"""A model made of a function, for tests of the loop."""

import torch

from gms_fast import NoiseMoments
from gms_fast.schedules import VPLinear


class Model:
    """A model made of a function of (x, t), with what `sample` looks for; counts its calls."""

    sample_shape, schedule, calls = (4,), VPLinear(), 0

    def __init__(self, function=lambda x, t: torch.zeros_like(x), **attributes):
        self.function = function
        self.__dict__.update(attributes)

    def __call__(self, x, t):
        self.calls += 1
        return self.function(x, t)


def polynomial(x, t):
    """Moments out of sums and products alone, which round alike wherever an element stands in memory."""
    return NoiseMoments(0.8 * x, 0.64 * x * x + 0.3, 0.5 * x * x * x + 0.2)


class Toy(Model):
    """The exact noise network of a mixture of Gaussians with isotropic components, as a vector file describes it."""

    sample_shape = (2,)

    def __init__(self, described):
        self.weights, self.means, self.variances = (
            torch.tensor(described[key], dtype=torch.float64) for key in ("weights", "means", "comp_var")
        )

    def __call__(self, x, t):
        self.calls += 1
        t = self.schedule.from_network_time(t)
        alpha, sigma = self.schedule.alpha(t)[:, None], self.schedule.sigma(t)[:, None]
        var = alpha**2 * self.variances + sigma**2
        away = x[:, None] - alpha[..., None] * self.means
        log = self.weights.log() - var.log() - away.square().sum(-1) / (2 * var)
        return sigma * (log.softmax(1)[..., None] * away / var[..., None]).sum(1)
