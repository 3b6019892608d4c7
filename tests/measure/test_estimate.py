"""The estimator against published numbers and closed forms."""

import math

import pytest
import torch
from published_statistics import SCHEDULES, VECTORS, Mixture, draw, normal, tensors
from toys import Model

from gms_fast.derivatives import double_backward, forward_mode
from gms_fast.measure.estimate import diagonal, moments, nodes_of, regress, residuals, slope
from gms_fast.measure.noise import noise_of
from gms_fast.schedules import VPContinuous
from gms_fast.statistics import empirical_model

pytestmark = pytest.mark.usefixtures("one_thread")


def signs(*shape, seed=0):
    return normal(*shape, seed=seed).sign()


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
    """f' against differences of f between x + h dx/dlambda and x - h dx/dlambda.

    l = 1/(1 + exp(lambda)).
    """
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
    """l = 1/(1 + c^2 e^(2 lambda)), s = 0 by the tolerance, and b = 2 m l (1 - l).

    The only error is that of l' by differences, in b.
    """
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
    mean_y = mean.abs() + 6 * ((c**2 + (-2 * lam).exp()) / K).sqrt()  # exceeded once in 10^8
    assert bool(((got.b - 2 * mean * l * (1 - l)).abs() <= mistake * mean_y + 1e-8).all())
    assert mistake.max() < 0.1


def test_mixture_gives_its_population_statistics():
    """Every tenth node agrees with the stored integrals within standard errors.

    They are those of the mean for l, and White's for s and b.
    """
    K, wanted, schedule = 20_000, tensors(VECTORS["ems"]["vp_linear_N120"]), VPContinuous()
    lam, l = wanted["lam"], wanted["l"]
    stencil = torch.tensor([-1.0, 9, -45, 0, 45, -9, 1], dtype=torch.float64) / (60 * float(lam[1] - lam[0]))
    l_slope = (l.unfold(0, 7, 1) * stencil).sum(-1)  # at nodes 3 .., with an error of the sixth order in the step
    noise, x_0, scores = noise_of(Mixture(schedule), schedule, "noise"), draw(K), []
    chosen = range(5, 120, 10)
    for j, node in zip(chosen, nodes_of(schedule, schedule.inverse_log_snr(lam[5::10]), lam[5::10]), strict=True):
        x, other = (node.alpha * x_0 + node.sigma * normal(K, 2, seed=j + away) for away in (1000, 2000))
        one = diagonal(noise, forward_mode, node, x, signs(K, 2, seed=j))
        f, f_slope, size = residuals(noise, forward_mode, node, other, l[j], l_slope[j - 3])
        s, b = (v[0] for v in regress(moments(f, f_slope, size)[None] / K, 1e-12))
        away, rest = f - f.mean(0), f_slope - s * f - b
        pull = away * rest / away.var(0)  # influence of one sample on s
        errors = (one.std(0), pull.std(0), (rest - f.mean(0) * pull).std(0))
        for got, error, name in zip((one.mean(0), s, b), errors, "lsb", strict=True):
            scores.append((got - wanted[name][j]) / (error / math.sqrt(K)))
            assert bool((scores[-1].abs() < 5).all()), f"{name} at node {j}: {scores[-1]} standard errors"
    assert 0.5 < float(torch.stack(scores).square().mean()) < 1.6  # about 1 if the standard errors are right


def test_measured_mixture_is_near_the_population():
    """A whole measurement: l within six standard errors, s and b where they are well determined."""
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
