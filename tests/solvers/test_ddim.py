"""DDIM: exact where x_0 is known, and without eta a function of the start."""

import pytest
import torch
from gaussian_steps import STEPS, Gaussian, affine_step
from released_runs import DOUBLE, run

from gms_fast import solvers

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("t", "s"), STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, None])
def test_ddim_and_ddpm_carry_a_single_picture_along(eta, t, s):
    """With x_0 known, every eta keeps the marginals; None stands for DDPM."""
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
