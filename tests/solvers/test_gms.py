"""GMS against the released run, and exact on Gaussian data; with covariance in one step."""

import math
import warnings

import pytest
import torch
from gaussian_data import KNOWN, D, OfGaussian, start
from gaussian_steps import STEPS, Gaussian, affine_step
from released_runs import DOUBLE, recorded
from toys import Model, polynomial

import gms_fast
from gms_fast import NoiseMoments, solvers
from gms_fast.schedules import VPLinear
from gms_fast.solvers import DDIM, GMS, Teleport

pytestmark = pytest.mark.usefixtures("one_thread")


def test_gms_reproduces_the_released_run():
    """Compare to 1e-3, because the released optimiser amplifies rounding.

    It ran on N = 64 elements a call, so eps = 1e-8 N.
    """
    got, want, _ = recorded("gmddpm", solvers.GMS(fit="adan", moments="released", eps=64e-8))
    assert (got - want).abs().max() < 1e-3
    plain, _, _ = recorded("gmddpm", solvers.SNDDPM())
    assert (plain - want).abs().max() > 1e-2


EXACT = [solvers.SNDDPM(), *(solvers.GMS(fit=fit, component="sample") for fit in ("exact", "free", "gaussian"))]


@pytest.mark.parametrize(("t", "s"), STEPS)
@pytest.mark.parametrize("solver", EXACT, ids=["sn-ddpm", "exact", "free", "gaussian"])
def test_step_carries_gaussian_data_along(solver, t, s):
    """Check steps of any size: q(x_s|x_t) is Gaussian, and only two moments must match."""
    model = Gaussian(0.3, 0.4)
    p, a, b = affine_step(solver, model, t, s)
    (mean_t, var_t), (mean_s, var_s) = model.marginal(t), model.marginal(s)
    assert p + a * mean_t == pytest.approx(mean_s, abs=1e-12)
    assert a**2 * var_t + b**2 == pytest.approx(var_s, rel=1e-10)


def test_last_step_of_pictures_is_bounded():
    """Check that the last draw of images keeps at most (2 2/255)^2 pi/2 of variance.

    Data of another shape than (B, C, H, W) keeps its law.
    """
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
    with pytest.raises(ValueError, match=f"3 moments for GMS, but returned {given}: .*train_moment_heads.* ddim"):
        gms_fast.sample(model)
    assert model.calls == 1
    if given == 1:
        with pytest.raises(ValueError, match="2 moments for SNDDPM, but returned 1"):
            gms_fast.sample(model, solver="sn-ddpm")


@pytest.mark.parametrize("K", [1, 3])
def test_steps_of_any_size_are_exact_for_gaussian_data(K):
    model = OfGaussian(schedule=VPLinear())
    solver = GMS(covariance=KNOWN, switch=0, clip_pixel=None)
    times = [999, 600, 300, 0][3 - K :] if K == 3 else [999, 0]
    x = gms_fast.sample(model, timesteps=times, solver=solver, n=20_000, dtype=torch.float64, clip=None)
    want = KNOWN.eigenvectors @ KNOWN.eigenvalues.diag() @ KNOWN.eigenvectors.T
    assert (torch.cov(x.T) - want).abs().max() < 5 * want.diagonal().max() * (2 / 20_000) ** 0.5
    assert (x.mean(0) - KNOWN.mean).abs().max() < 5 * want.diagonal().max() ** 0.5 / 20_000**0.5


def test_it_needs_no_heads_where_it_never_switches():
    model = Model(lambda x, t: 0.5 * x, sample_shape=(D,))
    assert gms_fast.sample(model, 4, solver=GMS(covariance=KNOWN, switch=0), n=2, clip=None).isfinite().all()
    with pytest.raises(ValueError, match="3 moments"):
        gms_fast.sample(model, 4, solver=GMS(covariance=KNOWN, switch=1.0), n=2, clip=None)


def test_below_the_switch_steps_are_those_of_gms():
    model = Model(polynomial, sample_shape=(D,))
    grid, states, ways = model.schedule.timesteps(6, spacing="angle"), {}, []
    generator = torch.Generator().manual_seed(2)
    z, u = (f(6, 5, D, generator=generator, dtype=torch.float64) for f in (torch.randn, torch.rand))
    first = next(i for i, ratio in enumerate((-model.schedule.log_snr(grid)).exp()) if ratio <= 1.0)

    def run(solver, times, x_T, skip=0):
        return gms_fast.sample(
            model, timesteps=times, solver=solver, x_T=x_T, clip=None, noise=lambda i: (z[i + skip], u[i + skip]),
            callback=lambda i, t, x, x0: states.update({t: x.clone()}),
        )  # fmt: skip

    for solver in (GMS(covariance=KNOWN, switch=1.0), GMS()):
        end = run(solver, grid, start())
        ways.append(states[grid[first]])
        assert torch.equal(run(GMS(), grid[first:], ways[-1], first), end)
    assert not torch.equal(*ways)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("solver", [Teleport(KNOWN, 4.0, DDIM()), GMS(covariance=KNOWN, switch=2.0)])
def test_states_keep_their_dtype(solver, dtype):
    seen = []
    options = {"n": 3, "clip": None, "solver": solver}
    x = gms_fast.sample(
        Model(polynomial, sample_shape=(D,)), 5, dtype=dtype, callback=lambda i, t, x, x0: seen.append(x), **options
    )
    assert {x.dtype, *(state.dtype for state in seen)} == {dtype}
    if dtype != torch.float64:  # each step rounds its state once; the largest stands first, at sigma = 1
        exact = gms_fast.sample(Model(polynomial, sample_shape=(D,)), 5, dtype=torch.float64, **options)
        assert (x.double() - exact).abs().max() < 20 * torch.finfo(dtype).eps * (1 + exact.abs().max())


@pytest.mark.parametrize("solver", [Teleport(KNOWN, 4.0, DDIM(eta=1)), GMS(covariance=KNOWN, switch=2.0)])
def test_samples_do_not_depend_on_the_batch(solver):
    model = Model(polynomial, sample_shape=(D,))
    options = {"clip": None, "solver": solver, "dtype": torch.float64, "seed": 5}
    whole = gms_fast.sample(model, 5, n=6, **options)
    parts = [gms_fast.sample(model, 5, n=n, sample_offset=i, **options) for i, n in ((0, 1), (1, 3), (4, 2))]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-12, atol=1e-12)
    each = [gms_fast.sample(model, 5, n=2, **(options | {"seed": torch.tensor([s, 9])}))[:1] for s in (3, 4)]
    both = gms_fast.sample(model, 5, n=2, **(options | {"seed": torch.tensor([3, 4])}))
    torch.testing.assert_close(torch.cat(each), both, rtol=1e-12, atol=1e-12)


def test_a_flow_that_starts_without_signal_may_draw_together():
    """Start at alpha = 0, where a velocity gives E[x_0], which is all that eq. 13 needs."""

    def velocity(x, t):
        alpha, sigma = float(1 - t[0]), float(t[0])
        m = KNOWN.denoise(x, alpha, sigma)
        return (x - alpha * m) / sigma - m

    z = start(4000)
    x = gms_fast.sample(
        velocity, timesteps=[1.0, 0.5, 0.0], schedule="flow", prediction="flow", x_T=z, clip=None, shape=(D,),
        solver=GMS(covariance=KNOWN, switch=0),
    )  # fmt: skip
    covariance = KNOWN.eigenvectors @ KNOWN.eigenvalues.diag() @ KNOWN.eigenvectors.T
    off = (torch.cov(x.T) - covariance).norm() / covariance.norm()
    assert off < 5 * math.sqrt(2 / 4000)


def test_noise_of_another_shape_is_refused_by_name():
    model = Model(polynomial, sample_shape=(D,))
    with pytest.raises(ValueError, match=r"noise z must match the output: got \(2, 4\), want \(2, 6\)"):
        gms_fast.sample(
            model, 3, solver=GMS(covariance=KNOWN, switch=0), n=2, noise=lambda _: torch.zeros(2, 4), clip=None
        )


@pytest.mark.parametrize(("switch", "kind"), [(200.0, "independently"), (1e-3, "together")])
def test_a_switch_that_never_happens_is_said(switch, kind):
    model = Model(polynomial, sample_shape=(D,))
    with pytest.warns(UserWarning, match=rf"switch = {switch:g} lies outside .* 157 to .* {kind}"):
        gms_fast.sample(model, 5, solver=GMS(covariance=KNOWN, switch=switch), n=1, clip=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gms_fast.sample(model, 5, solver=GMS(covariance=KNOWN, switch=0), n=1, clip=None)
