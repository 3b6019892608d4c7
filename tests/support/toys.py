"""Models made of a function, for tests of the loop."""

import torch

from gms_fast import NoiseMoments
from gms_fast.schedules import VPLinear


class Model:
    """Model made of a function (x, t), with the attributes of `sample`; counts its calls."""

    sample_shape, schedule, calls = (4,), VPLinear(), 0

    def __init__(self, function=lambda x, t: torch.zeros_like(x), **attributes):
        self.function = function
        self.__dict__.update(attributes)

    def __call__(self, x, t):
        self.calls += 1
        return self.function(x, t)


def polynomial(x, t):
    """Return moments from sums and products, which round equally anywhere in memory."""
    return NoiseMoments(0.8 * x, 0.64 * x * x + 0.3, 0.5 * x * x * x + 0.2)


class Toy(Model):
    """Exact noise network of a mixture of isotropic Gaussians from a vector file."""

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
