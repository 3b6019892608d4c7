"""Solvers compared with each other: where one equals another, and how they are built."""

import pytest
import torch
from released_runs import MIXTURE, run
from toys import Model

from gms_fast import NoiseMoments, solvers
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def without(model, *, second):
    """Network with the same e1, and central moments of zero."""
    zero = torch.zeros_like
    return Model(lambda x, t: NoiseMoments(model(x, t).e1, second * (1 + 0 * x), zero(x)), moments="central")


@pytest.mark.parametrize("shape", [(4,), (1, 2, 2)])
@pytest.mark.parametrize(
    ("one", "other", "second"),
    [
        (solvers.GMS(fit="exact"), solvers.SNDDPM(), 0.2),
        (solvers.GMS(fit="free"), solvers.SNDDPM(), 0.2),
        (solvers.GMS(fit="gaussian"), solvers.SNDDPM(), 0.2),
        (solvers.SNDDPM(), solvers.DDPM(), 0.0),
        (solvers.GMS(fit="exact"), solvers.DDPM(), 0.0),
        (solvers.DDIM(eta=1.0), solvers.DDPM(clip_pixel=None), 0.2),
    ],
    ids=["exact=sn", "free=sn", "gaussian=sn", "sn=ddpm", "exact=ddpm", "ddim1=ddpm"],
)
def test_solver_reduces_to_another(one, other, second, shape):
    """Compare solvers without skewness, without variance or with the noise of DDPM.

    They use the same draws and agree up to rounding. There is no data range, which would bound the variance of the fit
    "free" more tightly.
    """
    model = without(MIXTURE, second=second)
    times = VPLinear().timesteps(5)
    a, b = (run(solver, model, shape=shape, clip=None, timesteps=times) for solver in (one, other))
    assert (a - b).abs().max() < 1e-10
    assert b.std() > 0.1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: solvers.GMS(fit="best"), "fit must be one of exact, free, adan, gaussian: got 'best'"),
        (lambda: solvers.GMS(component="image"), "component must be one of sample, element: got 'image'"),
        (lambda: solvers.GMS(moments="raw"), "moments must be one of cumulant, released: got 'raw'"),
        (lambda: solvers.GMS(weight=0.5), r"weight must lie in \(0, 1\) and differ from 1/2: got 0.5"),
        (lambda: solvers.GMS(weight=1.0), "weight must lie in .* got 1.0"),
        (lambda: solvers.DDIM(eta=1.5), r"eta must lie in \[0, 1\]: got 1.5"),
    ],
)
def test_solver_refuses_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_solvers_are_frozen_and_built_by_name():
    assert {"gms", "ddpm", "sn-ddpm", "ddim"} <= set(solvers.names())
    for name in solvers.names():
        assert isinstance(solvers.build(name), solvers.Solver)
    assert solvers.build("gms") == solvers.GMS()
    with pytest.raises(AttributeError):
        solvers.GMS().fit = "free"
    with pytest.raises(TypeError):
        solvers.GMS("exact")


@pytest.mark.parametrize("make", [solvers.GMS, solvers.DDPM, solvers.SNDDPM])
@pytest.mark.parametrize("value", [-1, "a"])
def test_clip_pixel_is_checked(make, value):
    with pytest.raises(ValueError, match="clip_pixel must be a non-negative number or None"):
        make(clip_pixel=value)
