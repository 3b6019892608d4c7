"""DDIM: exact for known x_0, and without eta a function of the initial noise."""

import pytest
import torch
from gaussian_steps import STEPS, Gaussian, affine_step
from released_runs import DOUBLE, run
from toys import Model, polynomial

import gms_fast
from gms_fast import prediction, solvers
from gms_fast.guidance import ClassifierFree
from gms_fast.schedules import EDM, Flow, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("t", "s"), STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, None])
def test_ddim_and_ddpm_carry_a_single_picture_along(eta, t, s):
    """Check that with a known x_0 every eta keeps the marginals; None stands for DDPM."""
    solver, model = solvers.DDPM() if eta is None else solvers.DDIM(eta=eta), Gaussian(0.3, 0.0)
    p, a, b = affine_step(solver, model, t, s)
    (mean_t, var_t), (mean_s, var_s) = model.marginal(t), model.marginal(s)
    assert p + a * mean_t == pytest.approx(mean_s, abs=1e-12)
    assert a**2 * var_t + b**2 == pytest.approx(var_s, rel=1e-10)
    assert (b == 0) == (eta == 0)


def test_ddim_without_eta_depends_on_the_start_alone():
    x_T = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), **DOUBLE)
    a, b = run("ddim", x_T=x_T, seed=1), run("ddim", x_T=x_T, seed=2)
    assert torch.equal(a, b)
    assert not torch.equal(run("ddpm", x_T=x_T, seed=1), run("ddpm", x_T=x_T, seed=2))


RAW = solvers.DDIM(eta=0.5, clipped_noise=False)


def by_hand(schedule, times, x, noises, data, noise, eta=0.5):
    """Return alpha_s clip(m) + sqrt(sigma_s^2 - std^2) e + std z with the network's own e."""
    alpha, sigma = schedule.alpha(times).tolist(), schedule.sigma(times).tolist()
    for i, z in enumerate(noises):
        std = eta * sigma[i + 1] * (1 - (alpha[i] * sigma[i + 1] / (alpha[i + 1] * sigma[i])) ** 2) ** 0.5
        m, e = data(x, alpha[i], sigma[i]).clamp(-1, 1), noise(x, alpha[i], sigma[i])
        x = alpha[i + 1] * m + (sigma[i + 1] ** 2 - std**2) ** 0.5 * e + std * z
    return x


@pytest.mark.parametrize("form", prediction.names())
@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), Flow(0.98)], ids=repr)
def test_noise_of_the_network_is_kept_where_data_is_clipped(schedule, form):
    """Use an output 0.8 x + 0.3 of any form, and a wide x_T so that clipping acts.

    The tolerance 1e-12 is 6 steps of float64's rounding times the largest sigma/alpha, 80 and 157, in m.
    """
    times = schedule.timesteps(6)
    noises = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0), **DOUBLE)
    x_T = 3 * float(schedule.sigma(times[0])) * noises[0]
    output = lambda x: 0.8 * x + 0.3  # noqa: E731
    data = lambda x, a, s: prediction.to_data(form, output(x), x, a, s)  # noqa: E731
    noise = lambda x, a, s: (x - a * data(x, a, s)) / s  # noqa: E731
    want = by_hand(schedule, times, x_T, noises, data, noise)
    got = gms_fast.sample(
        lambda x, t: output(x), solver=RAW, schedule=schedule, timesteps=times, prediction=form, x_T=x_T,
        clip=(-1, 1), noise=lambda i: noises[i], denoise=False,
    )  # fmt: skip
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12 * float(x_T.abs().max()))


def test_without_a_data_range_the_network_s_noise_is_what_data_leaves():
    options = {"n": 3, "seed": 2, "clip": None, "dtype": torch.float64}
    want = gms_fast.sample(Model(polynomial), 8, solver=solvers.DDIM(eta=0.5), **options)
    got = gms_fast.sample(Model(polynomial), 8, solver=RAW, **options)
    torch.testing.assert_close(got, want, rtol=1e-11, atol=0)


@pytest.mark.parametrize("moments", [False, True])
def test_guidance_leads_the_network_s_noise(moments):
    """Check that one pass over both outputs equals the pass over their guided sum."""

    def network(x, t, label):
        made = polynomial(x + label[:, None], t)
        return made if moments else made.e1

    given = torch.tensor([1.0]), torch.tensor([-0.5])
    guided = ClassifierFree(network, *given, scale=2.5)
    options = {"n": 3, "shape": (4,), "schedule": VPLinear(), "clip": (-1, 1), "dtype": torch.float64}
    got = gms_fast.sample(guided, 6, solver="ddim:eta=0.5,clipped_noise=false", **options)
    led = lambda x, t: -0.5 * 0.8 + 0.8 * x + 2.5 * (1.0 + 0.5) * 0.8  # noqa: E731
    torch.testing.assert_close(got, gms_fast.sample(led, 6, solver=RAW, **options), rtol=0, atol=1e-12)


def test_network_s_noise_makes_no_table():
    with pytest.raises(TypeError, match="solver must be linear"):
        solvers.GGDMTable.of(RAW, VPLinear(), [999, 500, 100])
