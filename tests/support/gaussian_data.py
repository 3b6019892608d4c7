"""Networks of Gaussian data with known covariance."""

import torch
from toys import Model

from gms_fast.statistics import gaussian

D = 6
DATA = torch.randn(40, D, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.diag(
    torch.linspace(0.05, 0.6, D, dtype=torch.float64)
).add(0.05)
KNOWN = gaussian(DATA)


class OfGaussian(Model):
    """Exact network of Gaussian data."""

    sample_shape, prediction = (D,), "x0"

    def __call__(self, x, t):
        self.calls += 1
        time = self.schedule.from_network_time(t[:1])
        return KNOWN.denoise(x, float(self.schedule.alpha(time)), float(self.schedule.sigma(time)))


def start(n=5):
    return torch.randn(n, D, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
