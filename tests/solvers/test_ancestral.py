"""DDPM and SN-DDPM against recorded runs and a loop over arrays, and DDPM's variance."""

import math

import numpy as np
import pytest
from gaussian_steps import Gaussian, affine_step
from released_runs import CASES, DATA, recorded

from gms_fast import solvers
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("method", "solver"), [("ddpm", solvers.DDPM()), ("analyticdpm", solvers.SNDDPM())])
def test_gaussian_solvers_reproduce_the_released_run(method, solver):
    """Compare as closely as the recorded run's own rounding allows.

    That run read 1 - alpha_bar_0 = 1e-4 of its last network evaluation from a float32 table of alpha_bar. Its entries
    below one are off by up to 2^-25: relatively delta = 2^-25/1e-4 = 3e-4 of sigma_0^2. Per component, sigma e1 =
    sigma^2 (x - alpha m)/(alpha^2 s^2 + sigma^2) is proportional to sigma^2 at most. So x_0 = (x - sigma e1)/alpha
    moves by up to delta sigma_0 |e1|/alpha_0; twice that leaves a margin for the weights of the components.
    """
    got, want, e1 = recorded(method, solver)
    bound = 2 * (2.0**-25 / 1e-4) * float(VPLinear().sigma(0)) * float(e1.abs().max())
    assert bound < 1e-5
    assert (got - want).abs().max() < bound


def naive_run(method):
    """Run docs/notation.md as a loop over numpy arrays."""
    case, bar = CASES[method], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    w, m, s = (np.array(DATA[k]) for k in ("w", "mean", "std"))

    def moments(x, alpha, sigma):
        spread = (alpha * s) ** 2 + sigma**2
        log_p = np.log(w) - np.log(spread) / 2 - (x[:, None] - alpha * m) ** 2 / (2 * spread)
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        p, mu = p / p.sum(1, keepdims=True), sigma * (x[:, None] - alpha * m) / spread
        return (p * mu).sum(1), (p * (mu**2 + (alpha * s) ** 2 / spread)).sum(1)

    def data(x, e1, alpha, sigma):
        return np.clip((x - sigma * e1) / alpha, -1, 1)

    x = np.array(case["x_T"])
    for i, (t, n) in enumerate(zip(case["timesteps"], case["timesteps"][1:], strict=False)):
        alpha_t, sigma_t, alpha_s, sigma_s = (math.sqrt(v) for v in (bar[t], 1 - bar[t], bar[n], 1 - bar[n]))
        decay = alpha_t / alpha_s
        beta = sigma_t**2 - decay**2 * sigma_s**2
        e1, e2 = moments(x, alpha_t, sigma_t)
        var = np.full_like(x, sigma_s**2 * beta / sigma_t**2)
        if method == "analyticdpm":
            v = np.clip((sigma_t / alpha_t) ** 2 * (e2 - e1**2), 0, 1)
            var += (alpha_s * beta / sigma_t**2) ** 2 * v
        if n == 0:
            var = np.minimum(var, (2 * 2 / 255 * math.sqrt(math.pi / 2)) ** 2)
        mean = decay * sigma_s**2 / sigma_t**2 * x + alpha_s * beta / sigma_t**2 * data(x, e1, alpha_t, sigma_t)
        x = mean + np.sqrt(var) * np.array(case["noise"][i])
    alpha_0, sigma_0 = math.sqrt(bar[0]), math.sqrt(1 - bar[0])
    return data(x, moments(x, alpha_0, sigma_0)[0], alpha_0, sigma_0)


@pytest.mark.parametrize(("method", "solver"), [("ddpm", solvers.DDPM()), ("analyticdpm", solvers.SNDDPM())])
def test_gaussian_solvers_equal_a_naive_loop(method, solver):
    got, _, _ = recorded(method, solver)
    assert np.abs(got.flatten().numpy() - naive_run(method)).max() < 1e-11


def test_ddpm_falls_short_of_the_variance_of_gaussian_data():
    model = Gaussian(0.3, 0.4)
    _, a, b = affine_step(solvers.DDPM(), model, 999, 399)
    assert a**2 * model.marginal(999)[1] + b**2 < 0.98 * model.marginal(399)[1]
