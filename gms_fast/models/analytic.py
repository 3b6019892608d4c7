"""Models whose noise moments are known exactly, for tests and for evaluating solvers.

Both are mixtures of Gaussians. Given x_t and the component i, x_0 is Gaussian with mean
mu_i = (sigma^2 m_i + alpha s_i^2 x)/(alpha^2 s_i^2 + sigma^2) and variance
tau_i = sigma^2 s_i^2/(alpha^2 s_i^2 + sigma^2).
"""

import math
import operator
from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor

from gms_fast.schedules import Schedule, VPLinear
from gms_fast.schedules.base import as_float64
from gms_fast.types import NoiseMoments


class _Analytic:
    """Model with exact moments of x_0 and of the noise.

    A call returns three raw moments of the noise, as a network does. Subclasses define `data_moments`, from which
    everything else is computed.
    """

    prediction = "noise"
    moments = "raw"
    schedule: Schedule

    def __call__(self, x: Tensor, t: Tensor) -> NoiseMoments:
        return NoiseMoments(*(e.to(x.dtype) for e in self.noise_moments(x, t, (1, 2, 3))))

    def data_moments(self, x: Tensor, t: Tensor, order: int) -> tuple[Tensor, ...]:
        """Return the mean and the central moments 2..order of every element of x_0 given x_t.

        They remain accurate at high noise, whereas rounding errors of moments of x_0 that are computed from raw noise
        moments grow by (sigma/alpha)^order.

        Args:
            x: States (B, *).
            t: Network times (B,).
            order: Highest order, >= 1.

        Returns:
            Tuple of `order` tensors shaped like x, in float64.
        """
        raise NotImplementedError

    def noise_moments(self, x: Tensor, t: Tensor, orders: Sequence[int]) -> tuple[Tensor, ...]:
        """Return the raw noise moments E[eps^order|x_t].

        eps - e1 = -(alpha/sigma)(x_0 - m), so E[eps^n] = sum_k C(n, k) e1^(n-k) (-alpha/sigma)^k E[(x_0 - m)^k].

        Args:
            x: States (B, *).
            t: Network times (B,).
            orders: Orders >= 1.

        Returns:
            Tuple with one tensor shaped like x for each order, in float64.
        """
        alpha, sigma = self._alpha_sigma(x, t)
        mean, *central = self.data_moments(x, t, max(orders))
        e1 = (x.double() - alpha * mean) / sigma
        powers = {k: (-alpha / sigma) ** k * c for k, c in enumerate(central, start=2)}
        return tuple(e1**n + sum(math.comb(n, k) * e1 ** (n - k) * powers[k] for k in range(2, n + 1)) for n in orders)

    def noise_moment(self, x: Tensor, t: Tensor, order: int) -> Tensor:
        """Return the raw noise moment E[eps^order|x_t].

        Args:
            x: States (B, *).
            t: Network times (B,).
            order: Order >= 1.

        Returns:
            Tensor shaped like x, in float64.
        """
        return self.noise_moments(x, t, (order,))[0]

    def _alpha_sigma(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma (B, 1, ...) in float64 for network times t (B,)."""
        times = self.schedule.from_network_time(t)
        view = (-1, *[1] * (x.ndim - 1))
        alpha, sigma = (f(times).to(x.device).view(view) for f in (self.schedule.alpha, self.schedule.sigma))
        return alpha, sigma


def _total(terms: Iterable[Tensor]) -> Tensor:
    return reduce(operator.add, terms)


def _gaussian_power(order: int) -> list[tuple[int, int]]:
    """Return pairs (coefficient, j) of E[(mu + sqrt(tau) g)^order].

    It equals sum coefficient mu^(order-2j) tau^j.
    """
    odd_factorial = [math.prod(range(1, 2 * j, 2)) for j in range(order // 2 + 1)]
    return [(math.comb(order, 2 * j) * odd_factorial[j], j) for j in range(order // 2 + 1)]


class GaussianMixture1D(_Analytic):
    """Exact model of data whose elements are independent samples of a 1D Gaussian mixture.

    Every element of x_0 has the distribution sum_i w_i N(mean_i, std_i^2). A call `(x, t)` returns
    [`NoiseMoments`][gms_fast.NoiseMoments] with the exact raw moments E[eps^k|x_t], k = 1, 2, 3.

    Args:
        weights: Weights w_i of the N components, (N,). They must be positive and sum to 1.
        means: Means of the components, (N,).
        stds: Standard deviations of the components, (N,), >= 0.
        schedule: Noise schedule. Defaults to `VPLinear()`.
        sample_shape: Shape of one sample.

    Raises:
        ValueError: If the lengths differ, if a weight is not positive, if the weights do not sum to 1, or if a standard
            deviation is negative.

    Examples:
        >>> model = gms_fast.models.GaussianMixture1D([0.5, 0.5], [-1, 1], [0.1, 0.1])
        >>> x = gms_fast.sample(model, 10, solver="gms", n=1000, clip=None)
        >>> 0.9 < float(x.abs().mean()) < 1.1
        True
    """

    def __init__(
        self,
        weights: Sequence[float],
        means: Sequence[float],
        stds: Sequence[float],
        *,
        schedule: Schedule | None = None,
        sample_shape: Sequence[int] = (1,),
    ) -> None:
        self.weights, self.means, self.stds = (as_float64(v) for v in (weights, means, stds))
        if not self.weights.shape == self.means.shape == self.stds.shape or self.weights.ndim != 1:
            raise ValueError(
                f"weights, means and stds must have the same length: got {len(weights)}, {len(means)}, {len(stds)}"
            )
        if (self.weights <= 0).any() or abs(float(self.weights.sum()) - 1) > 1e-9 or (self.stds < 0).any():
            raise ValueError("weights must be positive and sum to 1, and stds must not be negative")
        self.schedule = VPLinear() if schedule is None else schedule
        self.sample_shape = tuple(sample_shape)

    def data_moments(self, x: Tensor, t: Tensor, order: int) -> tuple[Tensor, ...]:
        alpha, sigma = (v[..., None] for v in self._alpha_sigma(x, t))
        w, m, s = (v.to(x.device) for v in (self.weights, self.means, self.stds))
        x = x.double()[..., None]
        spread = (alpha * s) ** 2 + sigma**2
        posterior = torch.softmax(w.log() - 0.5 * spread.log() - (x - alpha * m) ** 2 / (2 * spread), dim=-1)
        mu, tau = (sigma**2 * m + alpha * s**2 * x) / spread, (sigma * s) ** 2 / spread
        mean = (posterior * mu).sum(-1, keepdim=True)
        away = mu - mean
        central = [
            _total(c * (posterior * away ** (n - 2 * j) * tau**j).sum(-1) for c, j in _gaussian_power(n))
            for n in range(2, order + 1)
        ]
        return mean[..., 0], *central

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples of x_0.

        Args:
            n: Number of samples.
            generator: PyTorch generator on the CPU. Defaults to the global generator.

        Returns:
            Tensor (n, *sample_shape), float64.
        """
        shape = (n, *self.sample_shape)
        i = torch.multinomial(self.weights, math.prod(shape), replacement=True, generator=generator).view(shape)
        return self.means[i] + self.stds[i] * torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")


class PointCloud(_Analytic):
    """Exact model of a set of data points, optionally blurred by Gaussian noise.

    x_0 is one of the points, all equally likely, plus noise from N(0, bandwidth^2) in every element. A call `(x, t)`
    returns [`NoiseMoments`][gms_fast.NoiseMoments] with the exact raw moments E[eps^k|x_t], k = 1, 2, 3.

    Args:
        data: Data points (N, *sample), N >= 1.
        bandwidth: Standard deviation of the noise that is added to every point, >= 0.
        schedule: Noise schedule. Defaults to `VPLinear()`.

    Raises:
        ValueError: If `data` is empty or has fewer than two dimensions, or if `bandwidth` is negative.

    Examples:
        >>> data = gms_fast.data.load("digits")[:100]
        >>> model = gms_fast.models.PointCloud(data)
        >>> x = gms_fast.sample(model, 20, n=2)
        >>> nearest = torch.cdist(x.flatten(1).double(), data.flatten(1).double()).amin(1)
        >>> bool((nearest < 0.5).all())
        True

    Note:
        A call needs memory for a few float64 tensors of shape (B, N). It computes one matrix product (B, D) x (D, N)
        for the posterior, and one matrix product (B, N) x (N, D) for each moment.
    """

    def __init__(self, data: Tensor, bandwidth: float = 0.0, *, schedule: Schedule | None = None) -> None:
        if data.ndim < 2 or len(data) == 0:
            raise ValueError(f"data must be (N, *) with N >= 1: got {tuple(data.shape)}")
        if not bandwidth >= 0:
            raise ValueError(f"bandwidth must not be negative: got {bandwidth}")
        self.data, self.bandwidth = data.double().flatten(1), bandwidth
        self.schedule = VPLinear() if schedule is None else schedule
        self.sample_shape = tuple(data.shape[1:])
        self._centre = self.data.mean(0)
        self._cache: dict[tuple[torch.device, int], Tensor] = {}

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """Return the posterior probability of each data point given x_t.

        Args:
            x: States (B, *sample).
            t: Network times (B,).

        Returns:
            Tensor (B, N), float64.
        """
        flat = x.double().flatten(1)
        alpha, sigma = self._alpha_sigma(flat, t)
        spread = (alpha * self.bandwidth) ** 2 + sigma**2
        points = self._power(1, x.device)
        near = ((flat - alpha * self._centre.to(x.device)) * (alpha / spread)) @ points.T
        return torch.softmax(near - alpha**2 / (2 * spread) * self._power(2, x.device).sum(1), dim=1)

    def data_moments(self, x: Tensor, t: Tensor, order: int) -> tuple[Tensor, ...]:
        posterior, flat = self.posterior(x, t), x.double().flatten(1)
        alpha, sigma = self._alpha_sigma(flat, t)
        spread = (alpha * self.bandwidth) ** 2 + sigma**2
        shrink, tau = sigma**2 / spread, (sigma * self.bandwidth) ** 2 / spread
        raw = [posterior @ self._power(n, x.device) for n in range(1, order + 1)]
        mean = shrink * (self._centre.to(x.device) + raw[0]) + alpha * self.bandwidth**2 / spread * flat
        away = [c * shrink**n for n, c in enumerate(_central(raw))]  # central moments of the components' means
        central = [_total(c * tau**j * away[n - 2 * j] for c, j in _gaussian_power(n)) for n in range(2, order + 1)]
        return tuple(v.expand_as(flat).reshape(x.shape) for v in (mean, *central))

    def _power(self, n: int, device: torch.device) -> Tensor:
        """Return (data - its mean)^n, (N, D).

        Centring keeps precision where all points are alike.
        """
        if (device, n) not in self._cache:
            self._cache[device, n] = (self.data - self._centre).pow(n).to(device)
        return self._cache[device, n]

    def draw(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw samples of x_0.

        Args:
            n: Number of samples.
            generator: PyTorch generator on the CPU. Defaults to the global generator.

        Returns:
            Tensor (n, *sample_shape), float64.
        """
        i = torch.randint(len(self.data), (n,), generator=generator, device="cpu")
        noise = torch.randn(n, self.data.shape[1], generator=generator, dtype=torch.float64, device="cpu")
        return (self.data[i] + self.bandwidth * noise).view(n, *self.sample_shape)


def _central(raw: Sequence[Tensor]) -> list[Tensor]:
    """Return central moments 0..order from the raw moments 1..order.

    c_n = sum_k C(n, k) (-raw_1)^(n-k) raw_k.
    """
    one = torch.ones_like(raw[0])
    full, shift = [one, *raw], -raw[0]
    higher = (_total(math.comb(n, k) * shift ** (n - k) * full[k] for k in range(n + 1)) for n in range(2, len(full)))
    return [one, torch.zeros_like(one), *higher]
