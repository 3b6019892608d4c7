"""Models whose noise moments are known exactly, for tests and for judging solvers without a network's error.

Both are mixtures of Gaussians: given x_t and the component i, eps is Gaussian with mean
mu_i = sigma (x - alpha m_i)/(alpha^2 s_i^2 + sigma^2) and variance tau_i = alpha^2 s_i^2/(alpha^2 s_i^2 + sigma^2).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gms_fast.schedules import VP, VPLinear
from gms_fast.types import NoiseMoments


class _Analytic:
    """A model with exact `noise_moment(x, t, order)`; called like a network it returns the first three."""

    prediction = "noise"
    moments = "raw"
    schedule: VP

    def __call__(self, x: Tensor, t: Tensor) -> NoiseMoments:
        orders = [self.noise_moment(x, t, k).to(x.dtype) for k in (1, 2, 3)]
        return NoiseMoments(*orders)

    def _alpha_sigma(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha, sigma (B, 1, ...) in float64 for network times t (B,)."""
        times = self.schedule.from_network_time(t)
        view = (-1, *[1] * (x.ndim - 1))
        return tuple(f(times).to(x.device).view(view) for f in (self.schedule.alpha, self.schedule.sigma))


def _gaussian_power(order: int) -> list[tuple[int, int]]:
    """(coefficient, j) with E[(mu + sqrt(tau) g)^order] = sum coefficient mu^(order-2j) tau^j."""
    odd_factorial = [math.prod(range(1, 2 * j, 2)) for j in range(order // 2 + 1)]
    return [(math.comb(order, 2 * j) * odd_factorial[j], j) for j in range(order // 2 + 1)]


class GaussianMixture1D(_Analytic):
    """Every element of x_0 is drawn from sum_i w_i N(mean_i, std_i^2), independently.

    weights, means, stds  (N,); weights sum to 1, stds >= 0
    """

    def __init__(
        self,
        weights: Sequence[float],
        means: Sequence[float],
        stds: Sequence[float],
        *,
        schedule: VP | None = None,
        sample_shape: Sequence[int] = (1,),
    ) -> None:
        self.weights, self.means, self.stds = (torch.as_tensor(v, dtype=torch.float64) for v in (weights, means, stds))
        if not self.weights.shape == self.means.shape == self.stds.shape or self.weights.ndim != 1:
            raise ValueError(
                f"weights, means and stds must be of one length: got {len(weights)}, {len(means)}, {len(stds)}"
            )
        if (self.weights <= 0).any() or abs(float(self.weights.sum()) - 1) > 1e-9 or (self.stds < 0).any():
            raise ValueError("weights must be positive and sum to 1, and stds must not be negative")
        self.schedule = VPLinear() if schedule is None else schedule
        self.sample_shape = tuple(sample_shape)

    def noise_moment(self, x: Tensor, t: Tensor, order: int) -> Tensor:
        """E[eps^order|x_t], float64, shaped like x (B, *); t (B,) network times."""
        alpha, sigma = (v[..., None] for v in self._alpha_sigma(x, t))
        w, m, s = (v.to(x.device) for v in (self.weights, self.means, self.stds))
        x = x.double()[..., None]
        spread = (alpha * s) ** 2 + sigma**2
        mu, tau = sigma * (x - alpha * m) / spread, (alpha * s) ** 2 / spread
        posterior = torch.softmax(w.log() - 0.5 * spread.log() - (x - alpha * m) ** 2 / (2 * spread), dim=-1)
        return sum(k * (posterior * mu ** (order - 2 * j) * tau**j).sum(-1) for k, j in _gaussian_power(order))

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples (n, *sample_shape) of x_0, float64."""
        shape = (n, *self.sample_shape)
        i = torch.multinomial(self.weights, math.prod(shape), replacement=True, generator=generator).view(shape)
        return self.means[i] + self.stds[i] * torch.randn(shape, generator=generator, dtype=torch.float64)


class PointCloud(_Analytic):
    """x_0 is one of the given data points plus N(0, bandwidth^2) in every element.

    data  (N, *); bandwidth >= 0. Memory of a call: (B, N) float64.
    """

    def __init__(self, data: Tensor, bandwidth: float = 0.0, *, schedule: VP | None = None) -> None:
        if data.ndim < 2 or len(data) == 0:
            raise ValueError(f"data must be (N, *) with N >= 1: got {tuple(data.shape)}")
        if not bandwidth >= 0:
            raise ValueError(f"bandwidth must not be negative: got {bandwidth}")
        self.data, self.bandwidth = data.double().flatten(1), bandwidth
        self.schedule = VPLinear() if schedule is None else schedule
        self.sample_shape = tuple(data.shape[1:])
        self._norms = self.data.square().sum(1)

    def noise_moment(self, x: Tensor, t: Tensor, order: int) -> Tensor:
        """E[eps^order|x_t], float64, shaped like x (B, *); t (B,) network times."""
        flat = x.double().flatten(1)
        data, norms = self.data.to(x.device), self._norms.to(x.device)
        alpha, sigma = self._alpha_sigma(flat, t)
        spread = (alpha * self.bandwidth) ** 2 + sigma**2
        tau = (alpha * self.bandwidth) ** 2 / spread
        posterior = torch.softmax((2 * alpha * flat @ data.T - alpha**2 * norms) / (2 * spread), dim=1)
        total = torch.zeros_like(flat)
        for coefficient, j in _gaussian_power(order):
            n = order - 2 * j
            for power in range(n + 1):  # (x - alpha d)^n expanded, so that the sum over data points is one product
                term = math.comb(n, power) * flat ** (n - power) * (-alpha) ** power * (posterior @ data**power)
                total += coefficient * tau**j * (sigma / spread) ** n * term
        return total.view(x.shape)

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """n samples (n, *sample_shape) of x_0, float64."""
        i = torch.randint(len(self.data), (n,), generator=generator)
        noise = torch.randn(n, self.data.shape[1], generator=generator, dtype=torch.float64)
        return (self.data[i] + self.bandwidth * noise).view(n, *self.sample_shape)
