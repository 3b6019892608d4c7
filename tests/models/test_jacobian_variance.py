"""The second moment from a network's Jacobian: against exact moments, and in the sampler."""

import pytest
import torch
from host_networks import UNetModel, made, normal
from tiny_networks import tiny
from toys import Model

import gms_fast
from gms_fast import NoiseMoments, prediction
from gms_fast.guidance import ClassifierFree
from gms_fast.models import GaussianMixture1D, JacobianVariance, PointCloud, wrap
from gms_fast.models.jacobian_variance import probe
from gms_fast.schedules import EDM, Flow, Levels, VPContinuous, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

GAUSSIAN = ((1.0,), (0.3,), (0.5,))
MIXTURE = ((0.4, 0.6), (-0.6, 0.5), (0.12, 0.08))
SCHEDULES = [
    VPLinear(),
    VPLinear(50),
    VPContinuous(),
    EDM(),
    Flow(t_max=0.99, t_min=0.01),
    Levels([1, 0.8, 0.2], [0.1, 0.6, 0.9]),
]


def times(schedule, n=4):
    """n network times of a schedule, float32, and a state at each."""
    grid = schedule.timesteps(2 if isinstance(schedule, Levels) else n)[:n]
    t = schedule.network_time(grid).float()
    scale = (schedule.alpha(grid) ** 2 + schedule.sigma(grid) ** 2).sqrt()
    x = torch.randn(len(t), 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * scale[:, None]
    return x, t


def central(model, x, t):
    e1, e2 = model.noise_moments(x, t, (1, 2))
    return e2 - e1**2


def cloud():
    """A point cloud whose elements are correlated."""
    data = torch.randn(7, 6, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return PointCloud(0.5 * data @ data.T @ data / 7, 0.2)


def outputs_as(form, model):
    """The exact model as a network with another prediction type."""

    def network(x, t):
        e1 = model.noise_moment(x, t, 1)
        alpha, sigma = model._alpha_sigma(x, t)
        p, q = prediction.noise_factors(form, alpha, sigma)
        return (e1 - p * x) / q

    return Model(network, schedule=model.schedule, prediction=form, sample_shape=model.sample_shape)


# --- exact moments ---


@pytest.mark.parametrize("distance", [None, 0.01])
@pytest.mark.parametrize("law", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_one_probe_is_exact_where_elements_are_independent(schedule, law, distance):
    model = GaussianMixture1D(*law, schedule=schedule, sample_shape=(3,))
    x, t = times(schedule)
    e1, e2, e3 = JacobianVariance(model, distance=distance)(x, t)
    assert e3 is None
    torch.testing.assert_close(e1, model.noise_moment(x, t, 1), rtol=0, atol=0)
    torch.testing.assert_close(e2, central(model, x, t), rtol=0, atol=2e-6 if distance is None else 0.05)


@pytest.mark.parametrize("form", prediction.names())
def test_every_form_of_prediction_gives_the_same(form):
    model = GaussianMixture1D(*MIXTURE, sample_shape=(3,))
    x, t = times(model.schedule)
    e1, e2, _ = JacobianVariance(outputs_as(form, model))(x, t)
    torch.testing.assert_close(e1, model.noise_moment(x, t, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(e2, central(model, x, t), rtol=1e-5, atol=1e-5)


def test_probes_average_to_the_variance_within_what_other_elements_add():
    """The error of e2_i is sum_{j != i} sigma J_ij v_i v_j.

    Its variance follows from the whole Jacobian.
    """
    model, n = cloud(), 400
    t = torch.full((2,), 300.0)
    x = torch.randn(2, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    sigma = float(model.schedule.sigma(300.0))
    whole = torch.autograd.functional.jacobian(lambda x: model.noise_moment(x, t, 1).sum(0), x).transpose(0, 1)
    spread = ((sigma * whole) ** 2 * (1 - torch.eye(6))).sum(2).sqrt()
    assert spread.min() > 0.01
    each = torch.stack([JacobianVariance(model, seed=seed)(x, t).e2 for seed in range(n)])
    away = (each - central(model, x, t)) / spread
    assert away.mean(0).abs().max() < 4.5 / n**0.5
    assert 0.7 < float(away.square().mean()) < 1.3
    many = (JacobianVariance(model, n)(x, t).e2 - central(model, x, t)) / spread
    assert 0.01 < many.abs().max() < 4.5 / n**0.5


def test_difference_is_off_by_its_square_on_average():
    model = GaussianMixture1D(*MIXTURE)
    x, t = torch.full((1, 1), 0.1, dtype=torch.float64), torch.full((1,), 200.0)
    exact, errors = central(model, x, t), []
    for distance in (0.2, 0.1):
        both = [JacobianVariance(model, distance=distance, seed=seed)(x, t).e2 for seed in range(16)]
        up, down = max(both), min(both)  # one probe of each sign
        errors.append(float(((up + down) / 2 - exact).abs()))
        assert errors[-1] < 0.5 * float((up - exact).abs())
    assert 3 < errors[0] / errors[1] < 5.5


# --- ways of deriving ---


class OneWay(torch.autograd.Function):
    """Identity with a backward pass only, which counts its calls."""

    calls = 0

    @staticmethod
    def forward(ctx, x):
        OneWay.calls += 1
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_network_without_forward_mode_gives_the_same_and_is_tried_once():
    network = tiny(head=None)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([3.0, 700.0])
    said = {"schedule": network.schedule, "sample_shape": network.sample_shape}
    one_way = JacobianVariance(Model(lambda x, t: network(OneWay.apply(x), t), **said), 2)
    wanted, got = JacobianVariance(network, 2)(x, t), one_way(x, t)
    torch.testing.assert_close(got.e1, wanted.e1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.e2, wanted.e2, rtol=1e-4, atol=1e-4)
    assert not got.e2.requires_grad
    before = OneWay.calls
    one_way(x, t)
    assert OneWay.calls == before + 1


def test_difference_agrees_with_the_derivative_of_a_network():
    network = tiny(head=None)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([3.0, 700.0])
    wanted, got = (JacobianVariance(network, 8, distance=distance)(x, t) for distance in (None, 0.01))
    torch.testing.assert_close(got.e2, wanted.e2, rtol=0, atol=0.02)


def test_failing_network_says_so_itself():
    def broken(x, t):
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match="out of cheese"):
        JacobianVariance(Model(broken))(torch.zeros(1, 4), torch.zeros(1))


# --- probes ---


def test_signs_are_balanced_and_differ_by_time_element_probe_and_seed():
    x, t = torch.zeros(2, 3, 32, 32), torch.tensor([500.0, 501.0])
    drawn = [probe(x, t, seed, k).flatten(1) for seed, k in ((0, 0), (0, 1), (1, 0), (2**40, 0))]
    rows = torch.cat(drawn)
    assert set(rows.unique().tolist()) == {-1.0, 1.0}
    alike = (rows @ rows.T / rows.shape[1] - torch.eye(len(rows))).abs()
    assert alike.max() < 4.5 / rows.shape[1] ** 0.5
    assert rows.mean(1).abs().max() < 4.5 / rows.shape[1] ** 0.5
    shifted = (rows[:, 1:] * rows[:, :-1]).mean(1)  # of neighbours
    assert shifted.abs().max() < 4.5 / rows.shape[1] ** 0.5


def test_signs_of_two_elements_are_as_often_alike_over_times():
    t = torch.arange(4096.0)
    v = probe(torch.zeros(4096, 16), t, 0, 0)
    alike = (v.T @ v / 4096 - torch.eye(16)).abs()
    assert alike.max() < 4.5 / 64


def test_batch_may_be_split_and_the_global_generator_is_left_alone():
    model, t = cloud(), torch.full((5,), 300.0)
    x = torch.randn(5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = JacobianVariance(model, 2)
    before = torch.get_rng_state()
    whole = network(x, t).e2
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(probe(x, t, 0, 0)[i : i + 1], probe(x[:1], t[:1], 0, 0)) for i in range(5))
    parts = torch.cat([network(x[:2], t[:2]).e2, network(x[2:], t[2:]).e2])
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-13)  # matrix products of other sizes round differently
    elementwise = JacobianVariance(GaussianMixture1D(*MIXTURE, sample_shape=(6,)))
    assert torch.equal(torch.cat([elementwise(x[:2], t[:2]).e2, elementwise(x[2:], t[2:]).e2]), elementwise(x, t).e2)


# --- as a model ---


def test_solvers_run_with_it_and_gaussian_mixtures_draw_the_same():
    model = GaussianMixture1D(*MIXTURE)
    bare = Model(lambda x, t: model.noise_moment(x, t, 1), sample_shape=(1,), clip=None)
    options = {"n": 64, "dtype": torch.float64, "timesteps": model.schedule.timesteps(6, "angle")}
    with_it, exact, mixed = (
        gms_fast.sample(m, solver=solver, **options, **clip)
        for m, solver, clip in (
            (JacobianVariance(bare), "sn-ddpm", {}),
            (model, "sn-ddpm", {"clip": None}),
            (JacobianVariance(bare), "gms:fit=gaussian", {}),
        )
    )
    torch.testing.assert_close(with_it, exact, rtol=0, atol=1e-4)
    assert torch.equal(with_it, mixed)


def test_what_the_network_says_of_itself_is_kept():
    network = tiny(head=None)
    model = JacobianVariance(network, 3)
    assert (model.schedule, model.sample_shape, model.clip) == (network.schedule, network.sample_shape, network.clip)
    assert (model.moments, model.prediction) == ("central", "noise")
    assert next(model.parameters()) is next(network.parameters())
    assert not model.state_dict().keys() - {f"network.{name}" for name in network.state_dict()}
    assert JacobianVariance(Model(clip=None)).clip is None
    assert not hasattr(JacobianVariance(Model()), "clip")
    assert repr(JacobianVariance(Model(), schedule="edm").schedule) == repr(EDM())
    with_heads = JacobianVariance(tiny())(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    assert with_heads.e3 is None


def test_first_moment_costs_one_plain_call():
    network = Model(lambda x, t: 0.5 * x)
    model, x, t = JacobianVariance(network, 2, distance=0.01), torch.randn(3, 4), torch.full((3,), 300.0)
    assert torch.equal(model.first_moment(x, t), 0.5 * x)
    assert network.calls == 1
    model(x, t)
    assert network.calls == 4
    network.calls = 0
    gms_fast.sample(model, 5, solver="ddim", n=2, clip=None)
    assert network.calls == 6


class Conditional(Model):
    """A network with a condition for each sample."""

    def __call__(self, x, t, shift):
        return ((x - shift) * 0.5).sin() + 0 * t[:, None]


def test_conditions_of_samples_go_to_the_network():
    network, x, t = Conditional(), torch.randn(3, 4, dtype=torch.float64), torch.full((3,), 300.0)
    shift = torch.arange(3.0, dtype=torch.float64)[:, None]
    model = JacobianVariance(network)
    e1, e2, _ = model(x, t, shift=shift)
    sigma = float(network.schedule.sigma(300.0))
    torch.testing.assert_close(e2, 1 - sigma * 0.5 * ((x - shift) * 0.5).cos(), rtol=0, atol=1e-7)
    assert torch.equal(model.first_moment(x, t, shift=shift), e1)
    drawn = gms_fast.sample(model, 3, solver="sn-ddpm", n=3, condition={"shift": shift.float()}, clip=None)
    assert drawn.isfinite().all()


def test_guided_and_wrapped_networks_may_stand_inside():
    x, t = torch.randn(2, 4, dtype=torch.float64), torch.full((2,), 300.0)
    guided = ClassifierFree(Conditional(), {"shift": torch.ones(1, 1)}, {"shift": torch.zeros(1, 1)}, scale=3.0)
    e1, e2, _ = JacobianVariance(guided)(x, t)
    sigma = float(guided.schedule.sigma(300.0))
    torch.testing.assert_close(e1, guided(x, t))
    slope = 0.5 * (3 * ((x - 1) * 0.5).cos() - 2 * (x * 0.5).cos())
    torch.testing.assert_close(e2, 1 - sigma * slope, rtol=0, atol=1e-7)
    wrapped = wrap(made(UNetModel), schedule=VPLinear())
    x = normal(2, 3, 4, 4)
    exact, near = (JacobianVariance(wrapped, 2, distance=distance)(x, t) for distance in (None, 1e-4))
    torch.testing.assert_close(exact.e1, wrapped(x, t).e1)
    torch.testing.assert_close(near.e2, exact.e2, rtol=0, atol=1e-3)
    assert (exact.e2 - 1).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_network_of_another_dtype(dtype):
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([3.0, 700.0])
    wanted, model = JacobianVariance(tiny(head=None))(x, t), JacobianVariance(tiny(head=None)).to(dtype)
    e1, e2, _ = model(x, t)
    assert e2.dtype is torch.float32
    tolerance = {"rtol": 0, "atol": 0.1 if dtype is torch.bfloat16 else 1e-3}
    torch.testing.assert_close(e1.float(), wanted.e1, **tolerance)
    torch.testing.assert_close(e2, wanted.e2, **tolerance)
    drawn = gms_fast.sample(model, 3, solver="sn-ddpm", n=2)
    assert drawn.isfinite().all()


class Convolved(torch.nn.Module):
    schedule, sample_shape = VPLinear(), (1, 8, 8)

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.SiLU(), torch.nn.ConvTranspose2d(4, 1, 3))

    def forward(self, x, t):
        return self.layers(x)


@pytest.mark.parametrize("distance", [None, 0.01])
def test_compiled_model_is_one_graph_and_gives_the_same(distance):
    torch.compiler.reset()
    network = Convolved() if distance is None else tiny(head=None)
    model = JacobianVariance(network, 2, distance=distance)
    x, t = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)), torch.tensor([3.0, 700.0])
    with torch.no_grad():
        wanted, got = model(x, t), torch.compile(model, fullgraph=True, backend="aot_eager")(x, t)
    torch.testing.assert_close(got.e1, wanted.e1, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(got.e2, wanted.e2, rtol=1e-4, atol=1e-3)


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 0}, "probes must be an integer of at least 1: got 0"),
        ({"probes": 1.0}, "probes must be an integer"),
        ({"probes": True}, "probes must be an integer"),
        ({"seed": -1}, "seed must be an integer of at least 0: got -1"),
        ({"distance": 0}, r"distance must lie in \(0, 1\], or be None: got 0"),
        ({"prediction": "score"}, "prediction must be one of"),
    ],
)
def test_bad_numbers_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        JacobianVariance(Model(), **options)


def test_bad_networks_are_named():
    with pytest.raises(TypeError, match=r"network must be callable as network\(x, t\): got int"):
        JacobianVariance(3)
    with pytest.raises(ValueError, match="schedule must be given"):
        JacobianVariance(Model(schedule=None))
    with pytest.raises(ValueError, match=r"distance must be None for a network in torch\.bfloat16"):
        JacobianVariance(tiny(head=None).bfloat16(), distance=0.01)(torch.zeros(1, 1, 8, 8), torch.zeros(1))
    with pytest.raises(TypeError, match="model must return"):
        JacobianVariance(Model(lambda x, t: 3))(torch.zeros(1, 4), torch.zeros(1))


def test_moments_of_a_network_with_heads_are_not_read():
    network = Model(lambda x, t: NoiseMoments(0.5 * x, x, x))
    x, t = torch.randn(3, 4), torch.full((3,), 300.0)
    e2 = JacobianVariance(network)(x, t).e2
    torch.testing.assert_close(e2, torch.full_like(x, 1 - 0.5 * float(network.schedule.sigma(300.0))))
