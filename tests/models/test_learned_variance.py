"""Learned variances as noise moments, against improved-diffusion."""

import pytest
import torch
from host_networks import UNetModel, made, normal

import gms_fast
from gms_fast.models import wrap
from gms_fast.models.learned_variance import LearnedVariance
from gms_fast.schedules import VP, VPCosine, VPLinear
from gms_fast.solvers import DDPM, SNDDPM

pytestmark = pytest.mark.usefixtures("one_thread")


def down(T):
    return list(range(T - 1, -1, -1))


def of_improved_ddpm(network, betas, x, z, form, times=lambda t: t, **conditions):
    """Ancestral sampling with the learned variance, eqs. 10, 11, 15 of Nichol & Dhariwal 2021."""
    total = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=betas.dtype), total[:-1]])
    posterior = betas * (1 - before) / (1 - total)
    lowest = torch.cat([posterior[1:2], posterior[1:]]).log()
    for i, t in enumerate(down(len(betas))):
        y, v = network(x, torch.full((len(x),), float(times(t)), dtype=x.dtype), **conditions).chunk(2, 1)
        x_0 = y if form == "x0" else (x - (1 - total[t]).sqrt() * y) / total[t].sqrt()
        x_0 = x_0.clamp(-1, 1)
        mean = before[t].sqrt() * betas[t] * x_0 + (1 - betas[t]).sqrt() * (1 - before[t]) * x
        f = (v + 1) / 2
        std = (0.5 * (f * betas[t].log() + (1 - f) * lowest[t])).exp()
        x = mean / (1 - total[t]) + (std * z[i] if t else 0)
    return x


@pytest.mark.parametrize("form", ["noise", "x0"])
@pytest.mark.parametrize("classes", [None, 5])
@pytest.mark.parametrize("schedule", [VPLinear(100, 0.001, 0.2), VPCosine(40)], ids=repr)
def test_learned_variance_samples_as_improved_ddpm(form, classes, schedule):
    network = made(UNetModel, num_classes=classes)
    labels = {} if classes is None else {"y": torch.tensor([1, 4])}
    x_T, z = normal(2, 3, 4, 4), normal(schedule.T, 2, 3, 4, 4, seed=1)
    with torch.no_grad():
        want = of_improved_ddpm(network, schedule.betas, x_T, z, form, **labels)
    model = wrap(network, schedule=schedule, prediction=form, **labels)
    same = {"timesteps": down(schedule.T), "x_T": x_T, "noise": lambda i: z[i]}
    got = gms_fast.sample(model, solver=SNDDPM(clip_pixel=None), **same)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)  # e2 is float32, and adds up over the steps
    plain = gms_fast.sample(model, solver=DDPM(clip_pixel=None), **same)
    assert float((plain - want).abs().max()) > 1e-3  # the variance matters


def test_learned_variance_at_rescaled_times():
    schedule = VP(VPLinear(40, 0.002, 0.3).betas, rescale_time=True)
    network, x_T, z = made(UNetModel), normal(2, 3, 4, 4), normal(40, 2, 3, 4, 4, seed=1)
    with torch.no_grad():
        want = of_improved_ddpm(network, schedule.betas, x_T, z, "noise", times=lambda t: 25 * t)
    model = wrap(network, schedule=schedule)
    got = gms_fast.sample(model, solver=SNDDPM(clip_pixel=None), timesteps=down(40), x_T=x_T, noise=lambda i: z[i])
    torch.testing.assert_close(got, want, rtol=0, atol=2e-6)


def test_ends_of_a_learned_variance():
    """v = -1 means a known x_0; v = 1 means data N(0, 1).

    For the latter E[eps^2] - E[eps]^2 = alpha^2.
    """
    schedule = VPLinear()
    learned, t = LearnedVariance(schedule), torch.arange(1000.0)
    none, all_of_it = (learned.second(torch.full((1000, 1), v), t)[:, 0].double() for v in (-1.0, 1.0))
    assert none[1:].abs().max() == 0
    torch.testing.assert_close(all_of_it, schedule.alpha(t) ** 2, rtol=1e-6, atol=0)
    c = schedule.betas[1] * (1 - schedule.alpha(0) ** 2) / (1 - schedule.alpha(1) ** 2)
    assert float(none[0]) == pytest.approx(float(schedule.alpha(0) ** 2 * c / schedule.betas[0]), rel=1e-6)


def test_a_learned_variance_keeps_the_law_of_x_0_on_coarser_grids():
    model = wrap(made(UNetModel), schedule=VPLinear())
    x, t = normal(2, 3, 4, 4), torch.full((2,), 500.0)
    _, e2, e3 = model(x, t)
    assert e3 is None
    assert model.moments == "central"
    alpha = float(VPLinear().alpha(500))
    assert bool(((e2 >= 0) & (e2 <= alpha**2)).all())
    assert gms_fast.sample(model, 5, solver="sn-ddpm", n=2).shape == (2, 3, 4, 4)
