"""Analytic models: exact noise moments against numerical integration, draws, and errors."""

import math

import pytest
import torch

import gms_fast
from gms_fast.models import GaussianMixture1D, PointCloud
from gms_fast.schedules import VPCosine, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 2.0**-52
MIXTURE = {"weights": (0.4, 0.6), "means": (-0.6, 0.5), "stds": (0.12, 0.08)}
TIMES = [999, 500, 100, 0]


def normal_density(x, mean, std):
    return torch.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))


def mixture_density(x, weights, means, stds):
    return sum(w * normal_density(x, m, s) for w, m, s in zip(weights, means, stds, strict=True))


def tolerance(schedule, t, order):
    """Rounding error of eps^order.

    Its terms (x/sigma)^order are up to (2/sigma)^order and cancel to order one.
    """
    return 1e-9 + 64 * EPS * (2 / float(schedule.sigma(t))) ** order


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(T=4000), VPLinear(time_shift=1)], ids=repr)
@pytest.mark.parametrize("t", TIMES)
def test_mixture_moments_equal_quadrature(schedule, t):
    """E[eps^k|x] is int eps^k p(x_0) N(x; alpha x_0, sigma^2) dx_0, normalised.

    The trapezoidal rule is exact up to rounding for a smooth integrand that vanishes at both ends.
    """
    model = GaussianMixture1D(**MIXTURE, schedule=schedule)
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x = alpha * torch.tensor([-0.9, -0.6, -0.1, 0.0, 0.45, 0.8], dtype=torch.float64) + 0.3 * sigma
    x_0 = torch.linspace(-2, 2, 20_001, dtype=torch.float64)
    eps = (x[:, None] - alpha * x_0) / sigma
    density = mixture_density(x_0, **MIXTURE) * torch.exp(-(eps**2) / 2)
    time = schedule.network_time([t] * len(x))
    for order in (1, 2, 3, 4):
        want = (density * eps**order).sum(1) / density.sum(1)
        got = model.noise_moment(x[:, None], time, order)[:, 0]
        torch.testing.assert_close(got, want, rtol=1e-9, atol=tolerance(schedule, t, order))


@pytest.mark.parametrize("t", TIMES)
def test_point_cloud_moments_are_sums_over_its_points(t):
    """Without bandwidth x_0 is one of the points, and eps = (x - alpha d)/sigma."""
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(7, 2, 3, generator=generator, dtype=torch.float64) * 2 - 1
    model = PointCloud(data)
    alpha, sigma = (float(f(t)) for f in (model.schedule.alpha, model.schedule.sigma))
    x = alpha * data[:5] + sigma * torch.randn(5, 2, 3, generator=generator, dtype=torch.float64)
    eps = (x[:, None] - alpha * data) / sigma  # (B, N, 2, 3)
    p = torch.softmax(-(eps**2).sum((2, 3)) / 2, dim=1)
    for order in (1, 2, 3, 4):
        want = (p[:, :, None, None] * eps**order).sum(1)
        got = model.noise_moment(x, torch.full((5,), float(t)), order)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=tolerance(model.schedule, t, order))


@pytest.mark.parametrize("t", [999, 500, 200])
def test_point_cloud_with_bandwidth_equals_quadrature(t):
    """Two elements share the posterior of the point, so the integral is over the plane."""
    data, bandwidth = torch.tensor([[-0.5, 0.2], [0.4, 0.6], [0.1, -0.7]], dtype=torch.float64), 0.25
    model = PointCloud(data, bandwidth)
    alpha, sigma = (float(f(t)) for f in (model.schedule.alpha, model.schedule.sigma))
    side = torch.linspace(-3, 3, 401, dtype=torch.float64)
    plane = torch.cartesian_prod(side, side)
    prior = sum(normal_density(plane, d, bandwidth).prod(1) for d in data)
    x = torch.tensor([[0.3, -0.4], [-0.8, 0.9]], dtype=torch.float64)
    for order in (1, 2, 3, 4):
        got = model.noise_moment(x, torch.full((2,), float(t)), order)
        for row, moment in zip(x, got, strict=True):
            eps = (row - alpha * plane) / sigma
            density = prior * torch.exp(-(eps**2).sum(1) / 2)
            want = (density[:, None] * eps**order).sum(0) / density.sum()
            torch.testing.assert_close(moment, want, rtol=1e-9, atol=tolerance(model.schedule, t, order))


def centred(p, values, order):
    """Mean and central moments 2..order of distributions p (B, N) over values (N,) or (B, N)."""
    mean = (p * values).sum(1, keepdim=True)
    return [mean[:, 0], *((p * (values - mean) ** n).sum(1) for n in range(2, order + 1))]


@pytest.mark.parametrize("t", TIMES)
def test_data_moments_of_the_mixture_equal_quadrature(t):
    model, schedule = GaussianMixture1D(**MIXTURE), VPLinear()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    x = alpha * torch.tensor([-0.9, -0.1, 0.45], dtype=torch.float64) + 0.3 * sigma
    x_0 = torch.linspace(-2, 2, 20_001, dtype=torch.float64)
    p = mixture_density(x_0, **MIXTURE) * torch.exp(-(((x[:, None] - alpha * x_0) / sigma) ** 2) / 2)
    want = centred(p / p.sum(1, keepdim=True), x_0, 5)
    for got, moment in zip(model.data_moments(x[:, None], torch.full((3,), float(t)), 5), want, strict=True):
        torch.testing.assert_close(got[:, 0], moment, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("t", TIMES)
def test_data_moments_of_the_cloud_keep_their_digits(t):
    """Moments are right to 1e-14 at every noise level.

    They are sums over the points and never scaled by (sigma/alpha)^order, which is 10^11 at t = 999.
    """
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(50, 3, generator=generator, dtype=torch.float64) * 2 - 1
    model = PointCloud(data)
    alpha, sigma = (float(f(t)) for f in (model.schedule.alpha, model.schedule.sigma))
    x = alpha * data[:20] + sigma * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    p = torch.softmax(-((x[:, None] - alpha * data).square().sum(2)) / (2 * sigma**2), dim=1)
    got = model.data_moments(x, torch.full((20,), float(t)), 5)
    for element in range(3):
        for moment, want in zip(got, centred(p, data[:, element], 5), strict=True):
            slack = 1e-14 + 8 * EPS / sigma**2  # of the exponents of p, |x - alpha d|^2/(2 sigma^2)
            torch.testing.assert_close(moment[:, element], want, rtol=0, atol=slack)


@pytest.mark.parametrize("model", [GaussianMixture1D(**MIXTURE), PointCloud(torch.rand(40, 1) * 2 - 1)])
def test_third_moment_of_the_data_survives_raw_noise_moments(model):
    """At sigma/alpha = 157, e3 - 3 e1 e2 + 2 e1^3 is multiplied by 4e6, so float64 reaches 4e-8."""
    x, t = torch.linspace(-2, 2, 41, dtype=torch.float64)[:, None], torch.full((41,), 999.0)
    alpha, sigma = (float(f(999)) for f in (model.schedule.alpha, model.schedule.sigma))
    e1, e2, e3 = model(x, t)
    third = -((sigma / alpha) ** 3) * (e3 - 3 * e1 * e2 + 2 * e1**3)
    torch.testing.assert_close(third, model.data_moments(x, t, 3)[2], rtol=0, atol=4e-8)


def test_call_takes_one_posterior_for_all_orders(monkeypatch):
    model, calls = PointCloud(torch.rand(6, 2)), []
    posterior = model.posterior
    monkeypatch.setattr(model, "posterior", lambda *args: calls.append(args) or posterior(*args))
    model(torch.rand(3, 2), torch.zeros(3))
    assert len(calls) == 1


def test_constant_elements_have_no_variance():
    """A border that is black in every image stays exactly black in spite of rounding."""
    data = torch.cat([torch.full((99, 1), 0.1), torch.rand(99, 1)], dim=1)
    mean, *central = PointCloud(data).data_moments(torch.randn(20, 2), torch.full((20,), 500.0), 5)
    torch.testing.assert_close(mean[:, 0], data[:20, 0].double(), rtol=1e-15, atol=0)
    for moment in central:
        assert moment[:, 0].abs().max() < 1e-30
        assert moment[:, 1].abs().max() > 1e-6


def test_one_point_cloud_is_one_gaussian():
    cloud = PointCloud(torch.full((1, 3), 0.3), bandwidth=0.2)
    mixture = GaussianMixture1D([1.0], [0.3], [0.2], sample_shape=(3,))
    x, t = torch.tensor([[0.1, -0.5, 0.9]], dtype=torch.float64), torch.tensor([300.0])
    for a, b in zip(cloud(x, t), mixture(x, t), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)  # the cloud's point is 0.3 in float32


@pytest.mark.parametrize(
    "model",
    [GaussianMixture1D(**MIXTURE, sample_shape=(2, 3)), PointCloud(torch.rand(4, 2, 3))],
    ids=["mixture", "cloud"],
)
def test_analytic_model_is_called_like_a_network(model):
    x, t = torch.randn(5, 2, 3), torch.tensor([0.0, 10, 300, 700, 999])
    moments = model(x, t)
    assert isinstance(moments, gms_fast.NoiseMoments)
    for order, e in enumerate(moments, start=1):
        assert e.shape == x.shape
        assert e.dtype == torch.float32
        assert torch.equal(e, model.noise_moment(x, t, order).float())
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.equal(model(x[order], t[order]).e1, moments.e1[order])  # each row has its own time
    assert model.sample_shape == (2, 3)


def test_mixture_draws_from_its_law():
    """Moments over 2^18 draws lie within 5 standard errors."""
    model = GaussianMixture1D(**MIXTURE, sample_shape=(4, 4))
    x = model.draw(1 << 14, torch.Generator().manual_seed(1))
    assert x.shape == (1 << 14, 4, 4)
    assert x.dtype == torch.float64
    grid = torch.linspace(-3, 3, 60_001, dtype=torch.float64)
    density = mixture_density(grid, **MIXTURE)
    for order in (1, 2, 3, 4):
        want = float((density * grid**order).sum() / density.sum())
        powers = x**order
        assert abs(float(powers.mean()) - want) < 5 * float(powers.std()) / math.sqrt(x.numel())
    assert torch.equal(x, model.draw(1 << 14, torch.Generator().manual_seed(1)))
    assert not torch.equal(x, model.draw(1 << 14, torch.Generator().manual_seed(2)))


@pytest.mark.parametrize("bandwidth", [0.0, 0.1])
def test_point_cloud_draws_around_its_points(bandwidth):
    n, data = 20_000, torch.tensor([[-1.0, 1.0], [1.0, -1.0], [5.0, 5.0]])
    x = PointCloud(data, bandwidth).draw(n, torch.Generator().manual_seed(1))
    distance, nearest = (x[:, None] - data).square().sum(2).min(1)
    for count in nearest.bincount().tolist():
        assert abs(count / n - 1 / 3) < 5 * math.sqrt(2 / 9 / n)
    assert abs(float(distance.mean()) - 2 * bandwidth**2) <= 5 * 2 * bandwidth**2 / math.sqrt(n)  # chi-square of 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianMixture1D([1.0], [0.0, 1.0], [1.0]), "must have the same length: got 1, 2, 1"),
        (lambda: GaussianMixture1D([0.5, 0.6], [0, 1], [1, 1]), "weights must be positive and sum to 1"),
        (lambda: GaussianMixture1D([1.5, -0.5], [0, 1], [1, 1]), "weights must be positive and sum to 1"),
        (lambda: GaussianMixture1D([1.0], [0.0], [-1.0]), "stds must not be negative"),
        (lambda: PointCloud(torch.zeros(3)), r"data must be \(N, \*\) with N >= 1: got \(3,\)"),
        (lambda: PointCloud(torch.zeros(0, 3)), r"data must be .* got \(0, 3\)"),
        (lambda: PointCloud(torch.zeros(1, 3), -0.1), "bandwidth must not be negative: got -0.1"),
        (lambda: PointCloud(torch.zeros(1, 3), math.nan), "bandwidth must not be negative: got nan"),
    ],
)
def test_analytic_model_refuses_bad_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()
