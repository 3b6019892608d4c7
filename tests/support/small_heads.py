"""Moment heads on a very small network, and an exact network."""

import torch

from gms_fast import schedules
from gms_fast.models import MomentHeads


class Small(torch.nn.Module):
    """Network (x, t) with the attributes of `MomentHeads`; heads read the input of `out`."""

    sample_shape = (1, 4, 4)

    def __init__(self, schedule="linear", prediction="noise", clip=(-1.0, 1.0)):
        super().__init__()
        self.schedule, self.prediction, self.clip = schedules.build(schedule), prediction, clip
        self.inner, self.out = (torch.nn.Conv2d(*sides, 3, padding=1) for sides in ((1, 8), (8, 1)))
        self.dropout = torch.nn.Dropout(0.5)
        self.seen = []  # dtype of each call

    def forward(self, x, t):
        h = self.inner(x)
        self.seen.append(h.dtype)
        h = h + torch.cos(t / 7).reshape(-1, 1, 1, 1).to(h.dtype)
        return self.out(self.dropout(torch.nn.functional.silu(h)))


class Gaussian(torch.nn.Module):
    """Exact network of data N(0, std^2) with independent elements, for any prediction type."""

    sample_shape, clip = (1, 4, 4), None

    def __init__(self, schedule, prediction, std):
        super().__init__()
        self.schedule, self.prediction, self.std = schedules.build(schedule), prediction, std
        self.out = torch.nn.Identity()

    def forward(self, x, t):
        t = self.schedule.from_network_time(t.double())
        alpha, sigma = (f(t).view(-1, 1, 1, 1) for f in (self.schedule.alpha, self.schedule.sigma))
        m = alpha * self.std**2 / (alpha**2 * self.std**2 + sigma**2) * x
        self.out(x)
        return said(self.prediction, m, x, alpha, sigma).to(x.dtype)


def said(form, m, x, alpha, sigma):
    """Return the output, in a prediction type, for which E[x_0|x_t] is m."""
    e1, ratio = (x - alpha * m) / sigma, sigma / alpha
    skip, out = 0.25 / (ratio**2 + 0.25), ratio * 0.5 / (ratio**2 + 0.25) ** 0.5
    edm = (m - skip * x / alpha) / out
    return {"noise": e1, "x0": m, "v": alpha * e1 - sigma * m, "flow": e1 - m, "edm": edm}[form]


def heads(network=None, **options):
    """Return fixed heads on a small network."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = Small() if network is None else network
        return MomentHeads(network.eval(), "out", **options)


def pictures(n=24):
    return torch.rand(n, 1, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
