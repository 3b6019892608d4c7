"""GMS: against the released run, and exact on Gaussian data."""

import math

import pytest
import torch
from gaussian_steps import STEPS, Gaussian, affine_step
from released_runs import DOUBLE, recorded
from toys import Model, polynomial

import gms_fast
from gms_fast import NoiseMoments, solvers
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def test_gms_reproduces_the_released_run():
    """To 1e-3: the released optimiser amplifies rounding. It ran on N = 64 elements a call, so eps = 1e-8 N."""
    got, want, _ = recorded("gmddpm", solvers.GMS(fit="adan", moments="released", eps=64e-8))
    assert (got - want).abs().max() < 1e-3
    plain, _, _ = recorded("gmddpm", solvers.SNDDPM())
    assert (plain - want).abs().max() > 1e-2


EXACT = [solvers.SNDDPM(), *(solvers.GMS(fit=fit, component="sample") for fit in ("exact", "free", "gaussian"))]


@pytest.mark.parametrize(("t", "s"), STEPS)
@pytest.mark.parametrize("solver", EXACT, ids=["sn-ddpm", "exact", "free", "gaussian"])
def test_step_carries_gaussian_data_along(solver, t, s):
    """Of any size: q(x_s|x_t) is Gaussian then, and its mean and variance are all there is to match."""
    model = Gaussian(0.3, 0.4)
    p, a, b = affine_step(solver, model, t, s)
    (mean_t, var_t), (mean_s, var_s) = model.marginal(t), model.marginal(s)
    assert p + a * mean_t == pytest.approx(mean_s, abs=1e-12)
    assert a**2 * var_t + b**2 == pytest.approx(var_s, rel=1e-10)


def test_last_step_of_pictures_is_bounded():
    """Of (B, C, H, W) the last draw keeps at most (2 2/255)^2 pi/2 of variance; other data keeps its law."""
    unsure = Model(lambda x, t: NoiseMoments(0 * x, 1 + 0 * x, 0 * x), moments="central")
    for shape, bound in (((1, 50, 50), (4 / 255) ** 2 * math.pi / 2), ((2500,), math.inf)):
        for solver in (solvers.GMS(), solvers.SNDDPM(), solvers.DDPM()):
            seen = []
            model = Model(lambda x, t, seen=seen: seen.append(x) or unsure(x, t), moments="central")
            x_T = torch.zeros(1, *shape, **DOUBLE)
            gms_fast.sample(model, timesteps=[500, 0], solver=solver, x_T=x_T, clip=None)
            k = gms_fast.StepCoefficients.between(VPLinear(), 500, 0)
            v = 0.0 if isinstance(solver, solvers.DDPM) else (k.B * k.sigma_t / k.alpha_t) ** 2
            assert float(seen[1].var()) == pytest.approx(min(k.c + v, bound), rel=5 * math.sqrt(2 / 2500))


@pytest.mark.parametrize("given", [1, 2])
def test_gms_says_how_to_get_the_missing_moments(given):
    model = Model(polynomial if given == 3 else lambda x, t: x if given == 1 else NoiseMoments(x, x))
    with pytest.raises(ValueError, match=f"3 moments for GMS, but gives {given}: .*train_moment_heads.* ddim"):
        gms_fast.sample(model)
    assert model.calls == 1
    if given == 1:
        with pytest.raises(ValueError, match="2 moments for SNDDPM, but gives 1"):
            gms_fast.sample(model, solver="sn-ddpm")
