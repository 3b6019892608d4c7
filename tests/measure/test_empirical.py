"""Empirical model statistics: against the published estimator's numbers, closed forms, and what can go wrong."""

import json
import math

import numpy as np
import places
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from toys import Model

import gms_fast
from gms_fast import NoiseMoments, io
from gms_fast.cli import main
from gms_fast.measure import work
from gms_fast.measure.derivatives import derivative_for, double_backward, forward_mode, noise_of
from gms_fast.measure.estimate import diagonal, moments, nodes_of, regress, residuals, slope
from gms_fast.models.unet import MomentUNet
from gms_fast.schedules import EDM, Flow, VPContinuous, VPLinear
from gms_fast.statistics import EmpiricalModel, Gaussian, empirical_model, fingerprint, gaussian, load

pytestmark = pytest.mark.usefixtures("one_thread")

VECTORS = json.loads((places.VECTORS / "dpm_solver_v3_vectors.json").read_text())
SCHEDULES = [VPContinuous(), EDM(), Flow(t_max=0.99, t_min=0.01), VPLinear()]
WEIGHTS, MEANS, STDS = (torch.tensor(VECTORS["problem"][k], dtype=torch.float64) for k in ("weights", "means", "stds"))


def tensors(entry):
    """The lists of numbers of an entry of the vectors."""
    numbers = {k: v for k, v in entry.items() if isinstance(v, list) and not isinstance(v[0], dict)}
    return {k: torch.tensor(v, dtype=torch.float64) for k, v in numbers.items()}


class Mixture:
    """Exact noise of the 2-D mixture of the vectors, whose components are diagonal Gaussians."""

    sample_shape, prediction = (2,), "noise"

    def __init__(self, schedule, form="noise"):
        self.schedule, self.prediction = schedule, form

    def __call__(self, x, time):
        t = self.schedule.from_network_time(time)[:, None]
        alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
        r = sigma / alpha
        away, spread = x[:, None] / alpha[:, None] - MEANS, STDS**2 + r[:, None] ** 2
        p = torch.softmax(WEIGHTS.log() - 0.5 * (away**2 / spread + spread.log()).sum(-1), dim=-1)[..., None]
        eps = r * (p * away / spread).sum(1)
        x_0 = x / alpha - r * eps
        return {
            "noise": lambda: eps,
            "x0": lambda: x_0,
            "v": lambda: alpha * eps - sigma * x_0,
            "flow": lambda: eps - x_0,
            "edm": lambda: (x_0 - 0.25 / (r * r + 0.25) / alpha * x) * (r * r + 0.25).sqrt() / (0.5 * r),
        }[self.prediction]()


def draw(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    i = torch.multinomial(WEIGHTS, n, replacement=True, generator=generator)
    return MEANS[i] + STDS[i] * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def signs(*shape, seed=0):
    return normal(*shape, seed=seed).sign()


def small(**changes):
    """Statistics of no network in particular, N = 4 and samples (2, 3)."""
    lam = torch.linspace(-4, 4, 5, dtype=torch.float64)
    curves = {k: normal(5, 2, 3, seed=i) for i, k in enumerate("lsb")}
    return EmpiricalModel(**{"schedule": EDM(), "lam": lam, **curves, **changes})


# --- the curves and their integrals ---


@pytest.mark.parametrize("entry", VECTORS["tables"], ids=lambda e: e["ems"])
def test_tables_match_the_published_ones(entry):
    curves = VECTORS["ems"][entry["ems"]]
    statistics = EmpiricalModel(VPContinuous(), *(curves[k] for k in ("lam", "l", "s", "b")))
    wanted = tensors(entry)
    for name, table in statistics.tables._asdict().items():
        torch.testing.assert_close(table[entry["index"]], wanted[name], rtol=0, atol=1e-10)
    for e in entry["E"]:
        got = statistics.moment(e["i_s"], e["i_t"], e["k"])
        torch.testing.assert_close(got, torch.tensor(e["value"], dtype=torch.float64), rtol=0, atol=1e-10)


def test_degenerate_statistics_are_those_of_data_prediction():
    plain = small(network="abc", samples=7).degenerate()
    assert (plain.network, plain.samples) == ("abc", 7)
    L, S, I, B, C = plain.tables
    torch.testing.assert_close(L, (plain.lam + 4)[:, None, None].expand(5, 2, 3))
    assert not S.any()
    assert not B.any()
    assert not C.any()
    assert bool((I.diff(dim=0) > 0).all())


def test_moment_is_the_integral_of_a_power():
    flat = small(l=torch.zeros(1001, 1), s=torch.zeros(1001, 1), b=torch.zeros(1001, 1), lam=np.linspace(0, 1, 1001))
    for k in range(4):
        exact = 0.5 ** (k + 1) / math.factorial(k + 1)
        assert float(flat.moment(200, 700, k)) == pytest.approx(exact, rel=2e-5)


@pytest.mark.parametrize(("i", "j", "k"), [(-1, 2, 1), (2, 2, 1), (3, 2, 1), (0, 5, 1), (0, 4, -1)])
def test_moment_refuses_what_is_no_interval(i, j, k):
    with pytest.raises(ValueError, match="i, j, k"):
        small().moment(i, j, k)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lam": [4.0, 2, 0, -2, -4]}, "lam must be uniform and increasing"),
        ({"lam": [-4.0, -2, 0, 1, 4]}, "lam must be uniform and increasing"),
        ({"lam": [[0.0, 1, 2, 3, 4]]}, "lam must be"),
        ({"lam": [1.0]}, "lam must be"),
        ({"lam": [0.0, 1, 2, math.inf, 4]}, "lam must be finite"),
        ({"l": torch.zeros(4, 2, 3)}, "l must be"),
        ({"s": torch.zeros(5, 3, 2)}, "s must be"),
        ({"b": torch.full((5, 2, 3), math.nan)}, "b must be finite"),
    ],
)
def test_bad_curves_are_refused(change, named):
    with pytest.raises(ValueError, match=named):
        small(**change)


def test_a_schedule_must_be_one():
    with pytest.raises(TypeError, match="schedule must be a Schedule: got 'edm'"):
        small(schedule="edm")


# --- what they belong to ---


def test_statistics_fit_what_they_were_measured_for_alone():
    network = nn.Linear(3, 3)
    statistics = small(network=fingerprint(network))
    statistics.check(model=network, schedule=EDM(), shape=(2, 3))
    statistics.check(model=lambda x, t: x)
    statistics.check()
    small().check(model=network)
    with pytest.raises(ValueError, match=r"shape: \(2, 3\) there, \(3, 2\) here"):
        statistics.check(shape=(3, 2))
    statistics.check(schedule=EDM(sigma_max=70))  # the same noise levels at the same times
    for other in (VPContinuous(), VPLinear(), Flow()):
        with pytest.raises(ValueError, match=r"schedule: EDM\(.*\) there, .*\) here, of other noise levels"):
            statistics.check(schedule=other)
    with pytest.raises(ValueError, match=r"network: \w{16} there, \w{16} here"):
        statistics.check(model=nn.Linear(3, 3))


def test_fingerprint_tells_networks_apart_and_survives_a_cast():
    network = nn.Linear(4, 3)
    print_ = fingerprint(network)
    assert len(print_) == 16
    compiled = nn.ModuleDict({"_orig_mod": network})  # how torch.compile wraps a network
    assert fingerprint(compiled) == print_
    assert fingerprint(network.bfloat16()) == fingerprint(network.float()) == print_
    with torch.no_grad():
        network.weight[0, 0] += 1
    assert fingerprint(network) != print_
    assert fingerprint(lambda x, t: x) is fingerprint(nn.Identity()) is None
    assert fingerprint(nn.ModuleDict({"a": network})) != fingerprint(nn.ModuleDict({"b": network}))


# --- the file ---


def test_file_keeps_everything(tmp_path):
    statistics = small(network="0123456789abcdef", samples=64)
    statistics.save(tmp_path / "new" / "x.safetensors")
    again = EmpiricalModel.load(tmp_path / "new" / "x.safetensors")
    assert torch.equal(again.lam, statistics.lam)
    for name in "lsb":
        torch.testing.assert_close(getattr(again, name), getattr(statistics, name).float().double(), rtol=0, atol=0)
    assert (again.network, again.samples, again.schedule.config) == ("0123456789abcdef", 64, EDM().config)
    assert load(tmp_path / "new" / "x.safetensors").N == 4
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["x.safetensors"]


def test_half_precision_is_for_s_and_b(tmp_path):
    small().save(tmp_path / "x.safetensors", dtype=torch.float16)
    stored = load_file(tmp_path / "x.safetensors")
    kinds = {"lam": torch.float64, "l": torch.float32, "s": torch.float16, "b": torch.float16}
    assert {k: v.dtype for k, v in stored.items()} == kinds
    with pytest.raises(ValueError, match=r"b cannot be stored as torch.float16"):
        small(b=torch.full((5, 2, 3), 1e5)).save(tmp_path / "y.safetensors", dtype=torch.float16)
    assert not (tmp_path / "y.safetensors").exists()


def metadata_of(path):
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [
        ("N", "5", "N is 5 by its metadata, but 4 in its curves"),
        ("lambda", "[-4, 5]", "lambda is"),
        ("shape", "[3, 2]", "shape is"),
        ("schedule", '"sigmoid"', "make no sense: schedule must be one of"),
        ("schedule", "{", "make no sense"),
        ("format", "gms_fast empirical statistics 9", "format is"),
        ("network", None, "there is no metadata network"),
    ],
)
def test_file_with_wrong_metadata_is_refused(tmp_path, key, value, named):
    path = tmp_path / "x.safetensors"
    small().save(path)
    metadata = {**metadata_of(path), key: value}
    save_file(load_file(path), path, {k: v for k, v in metadata.items() if v is not None})
    with pytest.raises(ValueError, match=f"{path}.*{named}"):
        load(path)


def test_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    with pytest.raises(FileNotFoundError, match="no statistics at"):
        load(path)
    small().save(path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ValueError, match=f"{path}: truncated"):
        load(path)
    save_file({"lam": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="format is None"):
        load(path)


# --- derivatives ---


class OneWay(torch.autograd.Function):
    """sin with a backward pass only."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.saved_tensors[0].cos()


def network(attention=(1,)):
    """A small network in float64 that says something, with attention."""
    torch.manual_seed(0)
    model = MomentUNet(
        image_size=4, in_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1,
        attention_resolutions=attention, head=None,
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def directional(noise, x, t, dx, dt, h=1e-5):
    return (noise(x + h * dx, t + h * dt) - noise(x - h * dx, t - h * dt)) / (2 * h)


@pytest.mark.parametrize("derivative", [forward_mode, double_backward])
@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_derivative_agrees_with_finite_differences(derivative, schedule):
    t = torch.tensor(0.3, dtype=torch.float64) * schedule.t_max + 0.15
    noise = noise_of(Mixture(schedule), schedule, "noise")
    x, dx, dt = 0.5 * normal(5, 2), normal(5, 2, seed=1), torch.tensor(1.0, dtype=torch.float64)
    got = derivative(noise, x, t, dx, dt)
    torch.testing.assert_close(got, directional(noise, x, t, dx, dt), rtol=1e-6, atol=1e-8)
    assert (got - derivative(noise, x, t, dx, 0 * dt)).abs().max() > 1e-6  # time counts


def test_time_of_a_discrete_schedule_has_a_slope_at_integers_too():
    schedule = VPLinear()
    noise = noise_of(Mixture(schedule), schedule, "noise")
    x, zero = normal(3, 2), torch.zeros(3, 2, dtype=torch.float64)
    t, dt = torch.tensor(400.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
    above = (noise(x, t + 0.01) - noise(x, t)) / 0.01
    torch.testing.assert_close(forward_mode(noise, x, t, zero, dt), above, rtol=1e-3, atol=1e-7)


def test_both_ways_of_deriving_a_network_agree():
    noise = noise_of(network(), VPLinear(), "noise")
    x, dx = normal(2, 1, 4, 4), normal(2, 1, 4, 4, seed=1)
    t, dt = torch.tensor(300.5, dtype=torch.float64), torch.tensor(20.0, dtype=torch.float64)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        one, other = (d(noise, x, t, dx, dt) for d in (forward_mode, double_backward))
        assert derivative_for(noise, x, t) is forward_mode
    torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    assert one.abs().max() > 0.1


def test_network_without_forward_mode_gives_the_same_statistics():
    def model(sin):
        return Model(lambda x, t: sin(0.8 * x) * (1 + t[:, None]).log(), schedule=EDM(), sample_shape=(2,))

    one_way, both_ways = model(OneWay.apply), model(torch.sin)
    noise = noise_of(one_way, EDM(), "noise")
    assert derivative_for(noise, normal(1, 2), torch.tensor(1.0, dtype=torch.float64)) is double_backward
    settings = {"N": 4, "samples": 8, "t_max": 10.0}
    one, other = (empirical_model(m, draw(8), **settings) for m in (one_way, both_ways))
    for name in "lsb":
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-12)


def test_a_network_that_fails_says_so_itself():
    def broken(x, t):
        raise RuntimeError("out of cheese")

    with pytest.raises(RuntimeError, match="out of cheese"):
        empirical_model(Model(broken, schedule=EDM()), normal(4, 4), N=2, samples=2)


# --- the estimator ---


@pytest.mark.parametrize("derivative", [forward_mode, double_backward])
def test_estimator_reproduces_the_published_one_on_given_draws(derivative):
    wanted = tensors(VECTORS["ems_estimator"])
    schedule, lam = VPContinuous(), wanted["lam"]
    nodes, noise = nodes_of(schedule, wanted["t"], lam), noise_of(Mixture(schedule), schedule, "noise")

    def noised(node, z):
        return node.alpha * wanted["x0"] + node.sigma * wanted[z]

    l = torch.stack([diagonal(noise, derivative, n, noised(n, "z_l"), wanted["v"]).mean(0) for n in nodes])
    l_slope = slope(l, lam, window=10 * float(lam[-1] - lam[0]) / 40)
    means = [
        moments(*residuals(noise, derivative, n, noised(n, "z_f"), *at)) / 64
        for n, *at in zip(nodes, l, l_slope, strict=True)
    ]
    s, b = regress(torch.stack(means), tolerance=0.0)
    got = {"l": l, "l_d_raw": slope(l, lam, None), "l_d": l_slope}
    got |= dict(zip(("f", "f_d", "f_f", "f_f_d"), torch.stack(means, 1), strict=False))
    for name, value in got.items():
        torch.testing.assert_close(value, wanted[name], rtol=0, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(s, wanted["s"], rtol=0, atol=1e-9)
    torch.testing.assert_close(b, wanted["b"], rtol=0, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_slope_of_f_is_its_derivative_along_the_ode(schedule):
    """f' against differences of f between x + h dx/dlambda and x - h dx/dlambda, for l = 1/(1 + exp(lambda))."""
    h, lam = 1e-4, torch.tensor([-1e-4, 0, 1e-4], dtype=torch.float64) + 0.4321
    nodes = nodes_of(schedule, schedule.inverse_log_snr(lam), lam)
    noise, l = noise_of(Mixture(schedule), schedule, "noise"), torch.sigmoid(-lam)
    x = normal(6, 2) * nodes[1].alpha
    dx = nodes[1].drift * x - nodes[1].sigma * noise(x, nodes[1].t)

    def f(i, x, l_slope=0.0):
        return residuals(noise, forward_mode, nodes[i], x, l[i], l_slope)

    got = f(1, x, -l[1] * (1 - l[1]))[1]
    torch.testing.assert_close(got, (f(2, x + h * dx)[0] - f(0, x - h * dx)[0]) / (2 * h), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_gaussian_data_give_the_closed_form(schedule):
    """l = 1/(1 + c^2 e^(2 lambda)), s = 0 by the guard, b = 2 m l (1 - l); l' by differences is all that errs in b."""
    mean, c, K = torch.tensor([0.5, -1.0], dtype=torch.float64), torch.tensor([0.3, 1.2], dtype=torch.float64), 50

    def gaussian(x, time):
        t = schedule.from_network_time(time)[:, None]
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return sigma * (x - alpha * mean) / (alpha**2 * c**2 + sigma**2)

    data = mean + c * normal(K, 2)
    model = Model(gaussian, schedule=schedule, sample_shape=(2,))
    got = empirical_model(model, data, N=40, samples=K, window=None)
    lam = got.lam[:, None]
    l = 1 / (1 + c**2 * (2 * lam).exp())
    torch.testing.assert_close(got.l, l, rtol=0, atol=1e-10)
    assert not got.s.any()
    mistake = (slope(l, got.lam, None) + 2 * l * (1 - l)).abs()
    mean_y = mean.abs() + 6 * ((c**2 + (-2 * lam).exp()) / K).sqrt()  # at most, but once in 10^8
    assert bool(((got.b - 2 * mean * l * (1 - l)).abs() <= mistake * mean_y + 1e-8).all())
    assert mistake.max() < 0.1


def test_mixture_gives_its_population_statistics():
    """Every tenth node against the stored integrals, in standard errors: the mean's for l, White's for s and b."""
    K, wanted, schedule = 20_000, tensors(VECTORS["ems"]["vp_linear_N120"]), VPContinuous()
    lam, l = wanted["lam"], wanted["l"]
    stencil = torch.tensor([-1.0, 9, -45, 0, 45, -9, 1], dtype=torch.float64) / (60 * float(lam[1] - lam[0]))
    l_slope = (l.unfold(0, 7, 1) * stencil).sum(-1)  # of nodes 3 .., true to the sixth power of the step
    noise, x_0, scores = noise_of(Mixture(schedule), schedule, "noise"), draw(K), []
    chosen = range(5, 120, 10)
    for j, node in zip(chosen, nodes_of(schedule, schedule.inverse_log_snr(lam[5::10]), lam[5::10]), strict=True):
        x, other = (node.alpha * x_0 + node.sigma * normal(K, 2, seed=j + away) for away in (1000, 2000))
        one = diagonal(noise, forward_mode, node, x, signs(K, 2, seed=j))
        f, f_slope, size = residuals(noise, forward_mode, node, other, l[j], l_slope[j - 3])
        s, b = (v[0] for v in regress(moments(f, f_slope, size)[None] / K, 1e-12))
        away, rest = f - f.mean(0), f_slope - s * f - b
        pull = away * rest / away.var(0)  # of one sample on s
        errors = (one.std(0), pull.std(0), (rest - f.mean(0) * pull).std(0))
        for got, error, name in zip((one.mean(0), s, b), errors, "lsb", strict=True):
            scores.append((got - wanted[name][j]) / (error / math.sqrt(K)))
            assert bool((scores[-1].abs() < 5).all()), f"{name} at node {j}: {scores[-1]} standard errors"
    assert 0.5 < float(torch.stack(scores).square().mean()) < 1.6  # about 1, if the errors are what they should be


def test_measured_mixture_is_near_the_population():
    """All of it, draws included: l within six standard errors, s and b where they are well known."""
    wanted, schedule = tensors(VECTORS["ems"]["vp_linear_N120"]), VPContinuous()
    got = empirical_model(
        Mixture(schedule), draw(1000), N=60, samples=1000, batch_size=1000, window=None, t_max=1.0, t_min=1e-3
    )
    torch.testing.assert_close(got.lam, wanted["lam"][::2], rtol=0, atol=1e-12)
    assert (got.l - wanted["l"][::2]).abs().max() < 6 * 0.5 / math.sqrt(1000)  # sigma (J v) v has a spread below 0.5
    middle = slice(5, 30)
    torch.testing.assert_close(got.s[middle], wanted["s"][::2][middle], rtol=0, atol=0.15)
    torch.testing.assert_close(got.b[middle], wanted["b"][::2][middle], rtol=0, atol=0.05)
    assert got.samples == 1000
    assert got.network is None


@pytest.mark.parametrize("form", ["x0", "v", "flow", "edm"])
@pytest.mark.parametrize("schedule", SCHEDULES[:3], ids=repr)
def test_every_form_of_prediction_gives_the_same(schedule, form):
    settings = {"N": 3, "samples": 6, "t_min": 0.05}
    one, other = (empirical_model(Mixture(schedule, f), draw(6), **settings) for f in ("noise", form))
    for name in "lsb":
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-6)


def test_noise_moments_count_by_their_mean():
    mixture = Mixture(EDM())
    three = Model(lambda x, t: NoiseMoments(mixture(x, t), x, x), schedule=EDM(), sample_shape=(2,))
    one, other = (empirical_model(m, draw(6), N=3, samples=6) for m in (mixture, three))
    assert torch.equal(one.b, other.b)


def test_window_is_a_width_in_lambda():
    lam, l = torch.linspace(0, 1, 11, dtype=torch.float64), normal(11, 2)
    raw = slope(l, lam, None)
    torch.testing.assert_close(raw[1:-1], (l[2:] - l[:-2]) / 0.2)
    torch.testing.assert_close(raw[[0, -1]], (l[[1, -1]] - l[[0, -2]]) / 0.1)
    torch.testing.assert_close(slope(l, lam, 0.0), raw)
    smooth = slope(l, lam, 0.4)
    torch.testing.assert_close(smooth[5], raw[3:8].mean(0))
    torch.testing.assert_close(smooth[[0, -1]], torch.stack([raw[:3].mean(0), raw[-3:].mean(0)]))


def test_tolerance_says_where_f_varies_too_little():
    means = torch.tensor([[2.0, 3.0, 4.0 + 1e-6, 6.0 + 5e-6, 1.0]], dtype=torch.float64)[..., None]
    s, b = regress(means, tolerance=1e-7)
    assert float(s) == pytest.approx(5, rel=1e-6)
    assert float(b) == pytest.approx(3 - 2 * 5, rel=1e-6)
    s, b = regress(means, tolerance=1e-5)
    assert (float(s), float(b)) == (0, 3)
    s, b = regress(means, tolerance=0.0, limit=4.9)
    assert (float(s), float(b)) == (0, 3)


def test_nearly_gaussian_data_do_not_break_the_solver():
    """The error of l' over a variance of f that is next to nothing: rates beyond the grid's are cut."""

    def almost(x, t):
        alpha, sigma = (f(schedule.from_network_time(t))[:, None] for f in (schedule.alpha, schedule.sigma))
        return sigma * x / ((0.5 * alpha) ** 2 + sigma**2) + 1e-4 * torch.tanh(x)

    schedule = VPContinuous()
    model = Model(almost, schedule=schedule, sample_shape=(2,))
    known = empirical_model(model, 0.5 * normal(64, 2), N=60, samples=64)
    assert float(known.s.abs().max()) <= 60 / float(known.lam[-1] - known.lam[0])
    for curve in known.tables:
        assert curve.isfinite().all()


# --- measuring ---

SETTINGS = {"N": 4, "samples": 20, "t_max": 20.0, "t_min": 0.05}


def test_batches_do_not_matter_and_seeds_do():
    data, model = draw(20), Mixture(EDM())
    one, other = (empirical_model(model, data, batch_size=b, **SETTINGS) for b in (7, 64))
    for name in "lsb":
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=1e-11)
    again = empirical_model(model, data, seed=1, **SETTINGS)
    assert (again.l - one.l).abs().max() > 1e-3


def test_probes_know_nothing_of_the_noise():
    """J v of eps_i = x_0 x_1 has v_0 v_1 x_i beside its diagonal: signs like those of x would add E|x_i|."""
    model = Model(lambda x, t: x.prod(1, keepdim=True).expand(-1, 2), schedule=EDM(), sample_shape=(2,))
    K = 4000
    got = empirical_model(model, torch.zeros(K, 2, dtype=torch.float64), N=2, samples=K, t_max=2.0, t_min=0.5)
    level = (-2 * got.lam).exp()[:, None]  # sigma^2, and the standard deviation of sigma (J v) v is sqrt(2) of it
    assert bool((got.l.abs() < 6 * level * math.sqrt(2 / K)).all())


def test_few_data_are_used_again_with_other_noise():
    got = empirical_model(Mixture(EDM()), draw(4), **{**SETTINGS, "samples": 8})
    assert got.samples == 8
    assert (got.l - empirical_model(Mixture(EDM()), draw(4), **{**SETTINGS, "samples": 4}).l).abs().max() > 1e-4


def test_samples_are_taken_from_all_the_data():
    """Sorted data: the first half alone would have a mean of 0.5 less."""
    means = []
    schedule = EDM()
    model = Model(lambda x, t: means.append(x.mean()) or torch.zeros_like(x), schedule=schedule, sample_shape=(1,))
    data = torch.linspace(-1, 1, 200, dtype=torch.float64)[:, None]
    empirical_model(model, data, N=2, samples=100, batch_size=100, t_max=0.003)
    assert abs(float(means[-1])) < 0.2


@pytest.mark.parametrize(("calls", "saved"), [(1, 0), (3, 2), (9, 7)])
def test_interrupted_measurement_goes_on_where_it_was(tmp_path, calls, saved):
    """One call finds out how to derive; of the five nodes each takes one for l, and then two."""
    mixture, data, out = Mixture(EDM()), draw(20), tmp_path / "x.safetensors"
    wanted = empirical_model(mixture, data, **SETTINGS)

    def interrupted(x, t):
        if model.calls > calls:
            raise KeyboardInterrupt
        return mixture(x, t)

    model = Model(interrupted, schedule=EDM(), sample_shape=(2,))
    with pytest.raises(KeyboardInterrupt):
        empirical_model(model, data, out=out, **SETTINGS)
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors.partial"]
    rest = Model(mixture, schedule=EDM(), sample_shape=(2,))
    got = empirical_model(rest, data, out=out, **SETTINGS)
    assert rest.calls == 16 - saved
    for name in "lsb":
        assert torch.equal(getattr(got, name), getattr(wanted, name))
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    torch.testing.assert_close(load(out).s, wanted.s, rtol=1e-6, atol=1e-6)


def test_unfinished_work_is_written_now_and_then(tmp_path, monkeypatch):
    monkeypatch.setattr(work, "SECONDS", -1.0)
    seen, mixture = [], Mixture(EDM())
    path = tmp_path / "x.safetensors.partial"

    def model(x, t):
        seen.append(path.exists())
        return mixture(x, t)

    empirical_model(
        Model(model, schedule=EDM(), sample_shape=(2,)), draw(20), out=tmp_path / "x.safetensors", **SETTINGS
    )
    assert seen.count(False) == 2  # finding out how to derive, and the first node
    assert not path.exists()


@pytest.fixture
def unfinished(tmp_path):
    """A file for statistics beside which an interrupted measurement of 20 samples left its work."""

    def interrupted(x, t):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        empirical_model(
            Model(interrupted, schedule=EDM(), sample_shape=(2,)), draw(20), out=tmp_path / "x.safetensors", **SETTINGS
        )
    return tmp_path / "x.safetensors"


@pytest.mark.parametrize("change", [{"seed": 1}, {"samples": 10}, {"window": 3.0}, {"t_min": 0.1}, {"prediction": "v"}])
def test_work_of_another_measurement_is_refused(unfinished, change):
    named = {"t_min": "lambda"}.get(*change, *change)
    with pytest.raises(ValueError, match=rf"(?s)another measurement.*\n  {named}: "):
        empirical_model(Mixture(EDM()), draw(20), out=unfinished, **{**SETTINGS, **change})
    with pytest.raises(ValueError, match=r"(?s)another measurement.*\n  data: "):
        empirical_model(Mixture(EDM()), draw(20, seed=1), out=unfinished, **SETTINGS)


def test_files_are_not_overwritten(unfinished):
    with pytest.raises(FileExistsError, match="holds an unfinished measurement"):
        empirical_model(Mixture(EDM()), draw(20), out=unfinished, resume=False, **SETTINGS)
    unfinished.with_name("x.safetensors.partial").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="truncated or no safetensors file"):
        empirical_model(Mixture(EDM()), draw(20), out=unfinished, **SETTINGS)
    unfinished.write_bytes(b"something")
    with pytest.raises(FileExistsError, match="already exists"):
        empirical_model(Mixture(EDM()), draw(20), out=unfinished, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"N": 1}, "N must be an integer of at least 2: got 1"),
        ({"samples": 1}, "samples must be an integer of at least 2: got 1"),
        ({"samples": 4.0}, "samples"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed must be an integer of at least 0: got -1"),
        ({"window": -0.1}, "window must be finite and not negative"),
        ({"window": math.nan}, "window"),
        ({"tolerance": -1.0}, "tolerance"),
        ({"t_max": 0.05}, "t_max must be greater than t_min: got 0.05, 0.05"),
        ({"t_max": 90.0}, "times must lie in"),
        ({"t_min": 0.0}, r"t_max, t_min must have finite log\(alpha/sigma\)"),
        ({"prediction": "score"}, "prediction must be one of"),
        ({"data": torch.zeros(4, 3)}, r"data must be \(M, 2\) with M >= 1: got \(4, 3\)"),
        ({"data": torch.zeros(0, 2)}, "data must be"),
        ({"data": torch.tensor([[0.0, math.inf]])}, "data must be finite"),
        ({"model": Model(schedule=None, sample_shape=(2,))}, "schedule must be given"),
        ({"schedule": "sigmoid"}, "schedule must be one of"),
    ],
)
def test_bad_input_is_refused_before_any_call(change, named):
    model = Model(schedule=EDM(), sample_shape=(2,))
    with pytest.raises(ValueError, match=named):
        empirical_model(**{"model": model, "data": draw(4), **SETTINGS, **change})
    assert model.calls == 0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": 3}, "model must be callable"),
        ({"data": torch.zeros(4, 2, dtype=torch.uint8)}, "data must be a floating-point tensor"),
        ({"data": [[0.0, 1.0]]}, "data must be a floating-point tensor"),
        ({"schedule": 3}, "schedule must be a schedule"),
    ],
)
def test_input_of_a_wrong_type_is_refused(change, named):
    with pytest.raises(TypeError, match=named):
        empirical_model(**{"model": Mixture(EDM()), "data": draw(4), **SETTINGS, **change})


def test_flow_needs_ends_with_signal_and_noise():
    with pytest.raises(ValueError, match="t_max, t_min must have finite"):
        empirical_model(Mixture(Flow()), draw(4), N=2, samples=2)


def test_model_that_returns_nan_is_named_by_its_node():
    mixture = Mixture(EDM())
    model = Model(lambda x, t: mixture(x, t) / (t < 1)[:, None], schedule=EDM(), sample_shape=(2,))
    with pytest.raises(ValueError, match=r"NaN or infinity at node 0 \(t = 20\)"):
        empirical_model(model, draw(4), **SETTINGS)


# --- the command ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("statistics")
    model = network(attention=()).float()
    io.save(model, folder / "tiny")
    np.save(folder / "x.npy", np.random.default_rng(0).uniform(-1, 1, (6, 4, 4)).astype(np.float32))
    return folder


def command(folder, out, *more):
    options = {"--model": folder / "tiny", "--data": folder / "x.npy", "--out": out, "--nodes": 2, "--samples": 4}
    return main(["statistics", *(str(a) for pair in options.items() for a in pair), *more])


def test_command_measures(saved, tmp_path, capsys):
    assert command(saved, tmp_path / "x.safetensors", "--half") == 0
    assert "4 images at 3 noise levels, mean l from " in capsys.readouterr().out
    got, model = load(tmp_path / "x.safetensors"), io.load(saved / "tiny")
    got.check(model=model, schedule=model.schedule, shape=(1, 4, 4))
    assert (got.N, got.samples) == (2, 4)
    wanted = empirical_model(model, gms_fast.data.load(saved / "x.npy"), N=2, samples=4)
    torch.testing.assert_close(got.l, wanted.l, rtol=1e-6, atol=1e-6)
    assert load_file(tmp_path / "x.safetensors")["s"].dtype == torch.float16


def test_command_keeps_and_replaces(saved, tmp_path, capsys):
    out = tmp_path / "x.safetensors"
    out.write_bytes(b"something")
    assert command(saved, out) == 2
    assert "already exists" in capsys.readouterr().err
    assert command(saved, out, "--nodes", "1", "--force") == 2
    assert out.read_bytes() == b"something"
    assert command(saved, out, "--force") == 0
    assert load(out).N == 2


def test_command_goes_on_after_an_interruption(saved, tmp_path, capsys, monkeypatch):
    out = tmp_path / "x.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(MomentUNet, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command(saved, out) == 130
    assert "--resume goes on" in capsys.readouterr().err
    assert command(saved, out) == 2
    assert "holds an unfinished measurement" in capsys.readouterr().err
    assert command(saved, out, "--resume") == 0


def test_command_refuses_another_suffix(saved, tmp_path, capsys):
    assert command(saved, tmp_path / "x.npz") == 2
    assert "--out must end in .safetensors" in capsys.readouterr().err


def test_command_measures_the_gaussian_of_data_and_of_samples(saved, tmp_path, capsys):
    out, options = tmp_path / "x.safetensors", ("statistics", "--gaussian", "--model", str(saved / "tiny"))
    assert main([*options, "--data", str(saved / "x.npy"), "--rank", "2", "--flips", "--half", "--out", str(out)]) == 0
    assert "12 images, 2 eigenvectors with " in capsys.readouterr().out
    measured, wanted = Gaussian.load(out), gaussian(gms_fast.data.load(saved / "x.npy"), 2, flips=True)
    torch.testing.assert_close(measured.eigenvalues, wanted.eigenvalues)
    assert load_file(out)["eigenvectors"].dtype == torch.float16
    assert main([*options, "--samples", "5", "--out", str(out)]) == 2
    assert "already exists; delete it or choose another file" in capsys.readouterr().err
    assert main([*options, "--samples", "5", "--batch-size", "2", "--out", str(out), "--force"]) == 0
    x = gms_fast.sample(io.load(saved / "tiny"), 20, solver="dpm-solver++", n=5)
    torch.testing.assert_close(Gaussian.load(out).mean, x.double().mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--gaussian", "--nodes", "3"), "--nodes does not go with --gaussian"),
        (("--rank", "3"), "--rank does not go without --gaussian"),
        ((), "--data must say what the model was trained on"),
        (("--gaussian", "--data", "digits", "--rank", "65"), "rank must be at most 64"),
    ],
)
def test_command_keeps_kinds_of_statistics_apart(tmp_path, capsys, more, message):
    assert main(["statistics", *more, "--out", str(tmp_path / "x.safetensors")]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


# --- what comes along ---


@pytest.mark.parametrize("name", ["mnist", "digits"])
def test_embedded_models_bring_their_statistics(name):
    statistics, model = load(name), io.load(name)
    statistics.check(model=model, schedule=model.schedule, shape=model.sample_shape)
    torch.testing.assert_close(statistics.lam[[0, -1]], model.schedule.log_snr([999, 0]), rtol=0, atol=1e-12)
    assert statistics.N >= 100
    mean = statistics.l.flatten(1).mean(1)
    assert float(mean[0]) == pytest.approx(1, abs=0.01)  # all noise
    smooth = mean.unfold(0, 10, 10).mean(1)
    assert bool((smooth.diff() < 0.003).all())  # falling, but for sampling error
    assert smooth[-1] < smooth[0] - 0.1
    assert statistics.tables.S.abs().max() < 50  # of which exponentials are taken
    assert all(bool(table.isfinite().all()) for table in statistics.tables)
