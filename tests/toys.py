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
