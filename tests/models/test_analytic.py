"""Models: exact noise moments against numerical integration, and the shapes, heads and refusals of the U-Net."""

import json
import math

import pytest
import torch

import gms_fast
from gms_fast.models import GaussianMixture1D, MomentUNet, PointCloud
from gms_fast.models.unet import ComplexHead, SimpleHead, timestep_embedding
from gms_fast.schedules import VPContinuous, VPCosine, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

EPS = 2.0**-52
MIXTURE = {"weights": (0.4, 0.6), "means": (-0.6, 0.5), "stds": (0.12, 0.08)}
TIMES = [999, 500, 100, 0]


def normal_density(x, mean, std):
    return torch.exp(-((x - mean) ** 2) / (2 * std**2)) / (std * math.sqrt(2 * math.pi))


def mixture_density(x, weights, means, stds):
    return sum(w * normal_density(x, m, s) for w, m, s in zip(weights, means, stds, strict=True))


def tolerance(schedule, t, order):
    """Rounding of eps^order, whose terms (x/sigma)^order are up to (2/sigma)^order and cancel to order one."""
    return 1e-9 + 64 * EPS * (2 / float(schedule.sigma(t))) ** order


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(T=4000), VPLinear(time_shift=1)], ids=repr)
@pytest.mark.parametrize("t", TIMES)
def test_mixture_moments_equal_quadrature(schedule, t):
    """E[eps^k|x] = int eps^k p(x_0) N(x; alpha x_0, sigma^2) dx_0 / the same without eps^k.

    Trapezoids on a smooth integrand that vanishes at both ends are exact up to rounding.
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
    """Mean and central moments 2..order of the laws p (B, N) of the values (N,) or (B, N)."""
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
    """To 1e-14 at every noise: they are sums over the points, never scaled by (sigma/alpha)^order, 10^11 at t = 999."""
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
    """At sigma/alpha = 157, where e3 - 3 e1 e2 + 2 e1^3 is multiplied by 4e6: float64 gives 4e-8, no better."""
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
    """A border that is black in every picture stays exactly black, whatever the rounding of the posterior."""
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
    """Moments over 2^18 draws, each within 5 of its standard errors."""
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
        (lambda: GaussianMixture1D([1.0], [0.0, 1.0], [1.0]), "must be of one length: got 1, 2, 1"),
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


def network(**options):
    torch.manual_seed(0)
    small = {"image_size": 8, "in_channels": 2, "model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1}
    return MomentUNet(**small | {"attention_resolutions": (2,)} | options).eval()


def awake(model):
    """The network with none of the zeros it starts training with."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("head", ["simple", "complex", ("simple", "complex")])
@pytest.mark.parametrize("shape", [(3, 2, 8, 8), (1, 2, 4, 12), (0, 2, 8, 8)])
@torch.no_grad()
def test_network_with_heads_gives_three_moments(head, shape):
    moments = awake(network(head=head))(torch.randn(shape), torch.zeros(shape[0]))
    assert isinstance(moments, gms_fast.NoiseMoments)
    for e in moments:
        assert e.shape == shape
        assert not torch.equal(e, torch.zeros_like(e)) or shape[0] == 0
    assert not torch.equal(moments.e2, moments.e3) or shape[0] == 0


@torch.no_grad()
def test_each_head_has_the_form_asked_for():
    heads = {"simple": SimpleHead, "complex": ComplexHead, None: type(None)}
    for head in ("simple", "complex", ("simple", "complex"), ["complex", "simple"], ("simple", None)):
        model = network(head=head)
        second, third = (head, head) if isinstance(head, str) else head
        assert (type(model.out2), type(model.out3)) == (heads[second], heads[third])
        assert model.config["head"] == (head if isinstance(head, str) else list(head))
        again = MomentUNet(**json.loads(json.dumps(model.config)))
        assert again.state_dict().keys() == model.state_dict().keys()


@pytest.mark.parametrize("options", [{}, {"moments": "central", "normalised": True}], ids=str)
@torch.no_grad()
def test_second_moment_may_be_the_only_one(options):
    model, x, t = awake(network(head=("complex", None), **options)), torch.randn(2, 2, 8, 8), torch.tensor([3.0, 600])
    assert model.has_heads
    e1, e2, e3 = model(x, t)
    assert e3 is None
    assert e2.shape == x.shape
    assert torch.equal(e1, model.first_moment(x, t))
    assert gms_fast.sample(model, 3, solver="sn-ddpm", n=2).isfinite().all()
    with pytest.raises(ValueError, match="model must return NoiseMoments with 3 moments for GMS, but gives 2"):
        gms_fast.sample(model, 3, solver="gms", n=2)


@torch.no_grad()
def test_normalised_heads_are_scaled_by_powers_of_alpha():
    model = awake(network(moments="central", normalised=True))
    x, t = torch.randn(4, 2, 8, 8), torch.tensor([0.0, 500, 998.5, 999])
    alpha = model.schedule.alpha(model.schedule.from_network_time(t)).float().view(-1, 1, 1, 1)
    torch.testing.assert_close(model.alpha(t), alpha, rtol=1.4e-5, atol=0)  # a chord of exp: (beta_T/2)^2/8
    moments, (second, third) = model(x, t), model.heads(*model.features(x, t))
    torch.testing.assert_close(moments.e2, alpha**2 * second, rtol=3e-5, atol=0)
    torch.testing.assert_close(moments.e3, alpha**3 * third, rtol=4e-5, atol=0)
    assert (moments.e2 > 0).all()
    assert network(moments="central", normalised=True).state_dict().keys() == network().state_dict().keys()
    half = model.bfloat16()(x.bfloat16(), t)
    torch.testing.assert_close(half.e2.float(), moments.e2, rtol=0.1, atol=1e-6)


@pytest.mark.parametrize("rescale_time", [None, False, True])
@pytest.mark.parametrize("time_shift", [0, 1])
def test_units_of_the_heads_are_of_the_time_that_the_network_is_asked_at(rescale_time, time_shift):
    schedule = VPCosine(T=50, time_shift=time_shift, rescale_time=rescale_time)
    model, t = network(moments="central", normalised=True, schedule=schedule), torch.tensor([0.0, 7, 31, 49])
    alpha = schedule.alpha(t).float().view(-1, 1, 1, 1)
    # float32 rounds a time of 50 by 3e-6, where alpha falls by 1/20 in a unit of time, and alpha by 6e-8 twice
    torch.testing.assert_close(model.alpha(model.schedule.network_time(t)), alpha, rtol=0, atol=3e-7)
    assert float(model.schedule.network_time(49)) == (49 + time_shift) * (1 if rescale_time is False else 20)


@torch.no_grad()
def test_network_without_heads_gives_the_noise_alone():
    model = awake(network(head=None))
    assert not model.has_heads
    assert model(torch.randn(2, 2, 8, 8), torch.zeros(2)).shape == (2, 2, 8, 8)


@torch.no_grad()
def test_learned_variance_channels_are_left_out():
    wide, x, t = awake(network(head="simple", out_channels=4)), torch.randn(2, 2, 8, 8), torch.tensor([3.0, 600])
    e1 = wide(x, t).e1
    assert e1.shape == x.shape
    assert torch.equal(e1, wide.out(wide.features(x, t)[0])[:, :2])


@pytest.mark.parametrize("head", [None, "simple", "complex"])
@torch.no_grad()
def test_network_starts_at_zero(head):
    moments = network(head=head)(torch.randn(2, 2, 8, 8), torch.tensor([0.0, 500]))
    for e in [moments] if head is None else moments:
        assert torch.equal(e, torch.zeros_like(e))


@torch.no_grad()
def test_every_sample_has_its_own_time():
    model, x = awake(network()), torch.randn(1, 2, 8, 8).expand(3, -1, -1, -1)
    t = torch.tensor([0.0, 250, 999])
    e1 = model(x, t).e1
    assert (e1[0] - e1[1]).abs().max() > 1e-4
    assert (e1[1] - e1[2]).abs().max() > 1e-4
    torch.testing.assert_close(model(x, t.flip(0)).e1, e1.flip(0), rtol=0, atol=1e-5)


def test_timestep_embedding_is_cosines_then_sines():
    t = torch.tensor([0.0, 1.0, 999.0])
    features = timestep_embedding(t, 8)
    for row, time in zip(features.tolist(), t.tolist(), strict=True):
        angles = [time * 10_000 ** (-i / 4) for i in range(4)]
        want = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        assert row == pytest.approx(want, abs=999 * 2**-23)  # float32 rounds the angle
    assert timestep_embedding(t, 7).shape == (3, 7)
    assert timestep_embedding(t, 7)[:, -1].tolist() == [0, 0, 0]


def test_defaults_for_sampling_come_with_the_network():
    model = network(schedule=VPCosine(T=50), moments="central")
    assert model.sample_shape == (2, 8, 8)
    assert (model.prediction, model.moments, model.schedule.T) == ("noise", "central", 50)
    assert model.clip == (-1.0, 1.0)
    assert isinstance(network().schedule, VPLinear)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"head": "linear"}, "head must be None, .* got 'linear'"),
        ({"head": ("simple", "linear")}, r"head must be None, .* or a pair of these: got \('simple', 'linear'\)"),
        ({"head": ["simple"]}, r"head must be None, .* or a pair of these: got \['simple'\]"),
        (
            {"head": (None, "simple")},
            r"head must not have a form of the third moment without .*: got \(None, 'simple'\)",
        ),
        ({"normalised": True}, "normalised heads need moments=\"central\" and a head: got 'raw'"),
        ({"normalised": True, "moments": "central", "head": None}, "normalised heads need .* head=None"),
        ({"normalised": True, "moments": "central", "head": (None, None)}, "normalised heads need .* head="),
        (
            {"normalised": True, "moments": "central", "schedule": VPContinuous()},
            r"schedule must be discrete for normalised heads, as VPLinear: got VPContinuous\(",
        ),
        ({"moments": "cumulants"}, "moments must be .* got 'cumulants'"),
        ({"image_size": float("nan")}, "image_size must be an integer from 1 .*: got nan"),
        ({"image_size": True}, "image_size must be an integer from 1 .*: got True"),
        ({"dropout": float("nan")}, r"dropout must be a finite number in \[0, 1\): got nan"),
        ({"dropout": 1}, r"dropout must be .*: got 1$"),
        ({"out_channels": 0}, "out_channels must be an integer from 1 .*: got 0"),
        ({"out_channels": 5}, "out_channels must be 2 or 4, or None: got 5"),
        ({"channel_mult": ()}, r"channel_mult must be a list of 1 to 32, .*: got \(\)"),
        ({"num_res_blocks": 10**6}, "num_res_blocks must be an integer from 1 to 1000: got 1000000"),
        ({"num_heads": 0}, "num_heads must be an integer from 1 .*: got 0"),
        ({"model_channels": 48}, "model_channels must be a multiple of 32: got 48"),
        ({"num_heads": 5}, "num_heads must divide the channels: got 5 heads for 64 channels"),
    ],
)
def test_network_refuses_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        network(**options)


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (2, 8, 8), (1, 2, 7, 8), (1, 2, 8, 5)])
def test_network_refuses_another_shape(shape):
    with pytest.raises(ValueError, match=r"x must be \(B, 2, H, W\) with H and W divisible by 2: got"):
        network()(torch.zeros(shape), torch.zeros(1))
