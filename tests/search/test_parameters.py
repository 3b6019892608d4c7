"""Learned parameters: they start as the first table, and their constraints hold."""

import pytest
import torch
from toy_search import SCHEDULE, TOY, VECTORS, double, sampler

import gms_fast
from gms_fast.search.parameters import VARIANTS, Parameters, matched
from gms_fast.solvers import DDIM, GGDM, DPMSolverPP, GGDMTable, UniP
from gms_fast.tables.ggdm import marginals


@pytest.mark.parametrize("solver", [DDIM(), DDIM(eta=0.3), DPMSolverPP(), UniP()], ids=repr)
@pytest.mark.parametrize("variant", VARIANTS)
def test_they_begin_as_the_first_table(variant, solver):
    """The samples before the first iteration are those of the solver."""
    times = [999, 600, 200, 40]
    table = GGDMTable.of(solver, SCHEDULE, times)
    known = Parameters(table, variant, stochastic=False)
    options = {"model": TOY, "solver": solver, "timesteps": times, "clip": None, "dtype": torch.float64, "n": 7}
    want = gms_fast.sample(**options, seed=4)
    made = known()
    got = sampler(seed=4)(made["tau"], known.updates(made), 7, 0)
    assert (got - want).abs().max() < 1e-11
    through_kernels = gms_fast.sample(
        TOY, 4, solver=GGDM(known.table(None)), n=7, seed=4, clip=None, dtype=torch.float64
    )
    assert (through_kernels - want).abs().max() < 1e-11


def test_matched_is_that_of_the_vectors():
    entry = VECTORS["constrained"]
    abar = double(entry["abar"])
    mu, sigma = matched(double(entry["raw"]), double(entry["eta"]), abar.sqrt(), (1 - abar).sqrt())
    assert (mu - double(entry["mu"])).abs().max() < 1e-14
    assert (sigma - double(entry["sigma"])).abs().max() < 1e-14
    a, v = marginals(mu, sigma)
    assert (a**2 - abar)[1:].abs().max() < 1e-14
    assert (v - 1 + abar)[1:].abs().max() < 1e-14


@pytest.mark.parametrize("stochastic", [False, True])
def test_constrained_stays_on_the_marginals(stochastic):
    known = Parameters(GGDMTable.of(UniP(), SCHEDULE, [999, 600, 200, 40]), "constrained", stochastic=stochastic)
    with torch.no_grad():
        for p in known.parameters():
            p += 0.3 * torch.randn(p.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    table = known.table(None)
    a, v = table.marginals()
    assert (a - SCHEDULE.alpha(table.tau))[1:].abs().max() < 1e-12
    assert (v - SCHEDULE.sigma(table.tau) ** 2)[1:].abs().max() < 1e-12
    assert bool((table.sigma[1:-1] > 0).all()) == stochastic


def test_learned_times_stay_in_order():
    known = Parameters(GGDMTable.of(DDIM(), SCHEDULE, [999, 600, 200, 40]), "time", stochastic=False)
    with torch.no_grad():
        known.tau += 3 * torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    tau = known()["tau"]
    assert (tau[0], tau[-1]) == (0, 999)
    assert bool((tau.diff() > 0).all())


pytestmark = pytest.mark.usefixtures("one_thread")
