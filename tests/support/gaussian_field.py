"""Gaussian field of images (1, 4, 4): its network, and conditionals of parts of an image."""

import torch
from toys import Model

from gms_fast.statistics import Gaussian

SHAPE = (1, 4, 4)
MEAN = torch.linspace(-0.3, 0.3, 16, dtype=torch.float64)
_AT = torch.stack(torch.meshgrid(torch.arange(4.0), torch.arange(4.0), indexing="ij"), -1).reshape(-1, 2).double()
COVARIANCE = 0.25 * (0.5 * torch.exp(-torch.cdist(_AT, _AT) / 2) + 0.5 * torch.eye(16, dtype=torch.float64))
VALUES, VECTORS = torch.linalg.eigh(COVARIANCE)
LAW = Gaussian(MEAN, VECTORS, VALUES)
PICTURE = (MEAN + VECTORS @ (VALUES.sqrt() * torch.linspace(-1.5, 1.5, 16, dtype=torch.float64))).reshape(1, *SHAPE)


class Field(Model):
    """Exact network of the field."""

    sample_shape, prediction, clip = SHAPE, "x0", None

    def __call__(self, x, t):
        self.calls += 1
        time = self.schedule.from_network_time(t[:1])
        return LAW.denoise(x, float(self.schedule.alpha(time)), float(self.schedule.sigma(time)))


def conditional(free, known):
    """Return mean and covariance of the elements `free` given the others.

    free: mask (16,); known: values (16,) of the image.
    """
    own, across = COVARIANCE[free][:, free], COVARIANCE[free][:, ~free]
    weights = across @ torch.linalg.inv(COVARIANCE[~free][:, ~free])
    return MEAN[free] + weights @ (known - MEAN)[~free], own - weights @ across.T


def in_errors(x, mean, covariance):
    """Return the largest errors of mean and covariance of rows x (N, D), in standard errors.

    The standard errors are those of N draws of the given Gaussian.
    """
    variance = covariance.diag()
    of_mean = (x.mean(0) - mean) / (variance / len(x)).sqrt()
    spread = ((variance[:, None] * variance + covariance**2) / len(x)).sqrt()
    return float(of_mean.abs().max()), float(((torch.cov(x.T) - covariance) / spread).abs().max())
