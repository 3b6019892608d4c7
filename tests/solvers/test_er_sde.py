"""ER-SDE against numbers of the released code, closed forms and other solvers."""

import json
import math

import numpy as np
import places
import pytest
import torch

import gms_fast
from gms_fast.models import GaussianMixture1D
from gms_fast.schedules import EDM, Flow, Schedule, VPCosine, VPLinear
from gms_fast.solvers import DDIM, DDPM, ERSDE, DPMSolverPP
from gms_fast.solvers.er_sde import NOISE_SCALES

VECTORS = json.loads((places.VECTORS / "er_sde_vectors.json").read_text())
NAMES = {1: "ode", 2: "sde", 3: "sde_1", 4: "er_sde_1", 5: "er_sde_2", 6: "er_sde_3", 7: "er_sde_4"}
CASES = {case["id"]: case for case in VECTORS["cases"]}


class EndsClean(Schedule):
    """Linear schedule without noise at time 0."""

    def alpha(self, t):
        t = torch.as_tensor(t, dtype=torch.float64)
        return torch.where(t == 0, 1.0, VPLinear().alpha(t))

    def sigma(self, t):
        t = torch.as_tensor(t, dtype=torch.float64)
        return torch.where(t == 0, 0.0, VPLinear().sigma(t))


def grid_of(case):
    """Return (schedule, times, alpha) of a case."""
    grid = VECTORS["grids"][case["grid"]]
    if grid["kind"] == "ve":
        return EDM(), grid["sigma"], [1.0] * len(grid["sigma"])
    kinds = {"vp_linear8zero_8": EndsClean, "vp_cosine_8": VPCosine, "vp_flow_6": Flow}
    schedule = kinds.get(case["grid"], VPLinear)()
    return schedule, grid["sigma" if isinstance(schedule, Flow) else "times"], grid["alpha"]


def network(case, schedule):
    """Return the exact denoiser of the case's data, in the case's prediction."""
    data = VECTORS["models"][case["model"]]
    w, means, stds = (torch.tensor(data[k], dtype=torch.float64) for k in ("weights", "means", "stds"))

    def model(x, t):
        t = schedule.from_network_time(t)
        alpha, sigma = (f(t)[:, None, None] for f in (schedule.alpha, schedule.sigma))
        spread, y = (alpha * stds) ** 2 + sigma**2, x[..., None]
        p = torch.softmax(w.log() - 0.5 * spread.log() - (y - alpha * means) ** 2 / (2 * spread), -1)
        m = (p * (alpha * stds**2 * y + sigma**2 * means) / spread).sum(-1)
        if case["prediction"] == "x0":
            return m.to(getattr(torch, case["model_output_dtype"]))
        e = (x - alpha[..., 0] * m) / sigma[..., 0]
        return e - sigma[..., 0] * 2 * (0.5 - x) / (1 + sigma[..., 0] ** 2) if case.get("guidance") else e

    return model


@pytest.mark.parametrize("name", CASES)
def test_released_trajectory_is_reproduced(name):
    case = CASES[name]
    schedule, times, alpha = grid_of(case)
    z, want = (torch.tensor(case[k], dtype=torch.float64) for k in ("noise", "x_states"))
    states, estimates = [], []

    def watch(index, t, x, x0):
        states.append(x[:, 0])
        estimates.append(x0[:, 0])

    solver = ERSDE(order=case["order"], noise_scale=NAMES[case["phi"]])
    x = gms_fast.sample(
        network(case, schedule), solver=solver, schedule=schedule, timesteps=times, clip=None, callback=watch,
        prediction={"eps": "noise"}.get(case["prediction"], case["prediction"]),
        x_T=want[0][:, None], noise=lambda i: z[i][:, None],
    )  # fmt: skip
    torch.testing.assert_close(torch.stack([*states, x[:, 0]]), want, rtol=0, atol=case["tol_abs"])
    torch.testing.assert_close(
        torch.stack(estimates), torch.tensor(case["x0_pred"], dtype=torch.float64), rtol=0, atol=10 * case["tol_abs"]
    )
    assert len(states) == len(case["steps"])  # one call a step
    for (weights, std), step in zip(solver.plan(schedule, times), case["steps"], strict=True):
        assert len(weights) == step["order_used"] + 1
        if step["r"]:
            i = case["steps"].index(step)
            assert weights[0] == pytest.approx(alpha[i + 1] / alpha[i] * step["r"], rel=1e-10)
        assert std == pytest.approx(step["noise_std"], rel=1e-9, abs=1e-15)


def test_noise_scales_have_the_values_of_the_released_code():
    for number, stored in VECTORS["noise_scale_functions"].items():
        for value in stored["values"]:
            got = NOISE_SCALES[NAMES[int(number)]](np.array(value["x"]))
            assert float(got) == pytest.approx(value["phi"], rel=1e-13)


@pytest.mark.parametrize("row", VECTORS["gaussian_moments"]["rows"], ids=lambda r: "-".join(map(str, r.values()))[:30])
def test_moments_on_gaussian_data(row):
    """Compare mean and variance on Gaussian data, where the sampler is linear.

    They follow from the contributions of x_T and of each noise.
    """
    moments = VECTORS["gaussian_moments"]
    if row["family"] == "ve":
        schedule, times = EDM(), EDM().timesteps(row["num_steps"])
    else:
        schedule = {"linear": VPLinear, "cosine": VPCosine}[row["grid"].removeprefix("vp_")]()
        times = [math.floor(k * 1000 / (row["num_steps"] + 1)) for k in range(row["num_steps"], -1, -1)]
    model = GaussianMixture1D([1.0], [moments["data_mean"]], [moments["data_std"]], schedule=schedule)
    steps, first = len(times) - 1, float(schedule.sigma(times[0])) if row["family"] == "ve" else 1.0
    units = torch.eye(steps + 2, dtype=torch.float64)[:, :, None]  # row 0: no noise at all; then x_T, then the steps
    x = gms_fast.sample(
        model, solver=ERSDE(order=row["order"], noise_scale=NAMES[row["phi"]]), timesteps=times, clip=None,
        x_T=first * units[:, 1], noise=lambda i: units[:, i + 2] if i + 2 < steps + 2 else None,
    )[:, 0]  # fmt: skip
    assert float(x[0]) == pytest.approx(row["mean"], abs=1e-9)
    assert float((x[1:] - x[0]).square().sum().sqrt()) == pytest.approx(row["std"], abs=1e-9)


MIXTURE = {"weights": [0.3, 0.7], "means": [-1.0, 0.6], "stds": [0.25, 0.15], "sample_shape": (5,)}


def run(solver, schedule, times, x_T, draws=None, model=None):
    """Return all states of a run."""
    states = []
    x = gms_fast.sample(
        model or GaussianMixture1D(**MIXTURE, schedule=schedule), solver=solver, schedule=schedule, timesteps=times,
        x_T=x_T, noise=None if draws is None else lambda i: draws[i], clip=None,
        callback=lambda i, t, x, x0: states.append(x),
    )  # fmt: skip
    return torch.stack([*states, x])


def start(schedule, times, n=3):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 5, generator=generator, dtype=torch.float64) * float(schedule.sigma(times[0]))
    return x, torch.randn(len(times), n, 5, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("schedule", [VPLinear(), EDM(), Flow(0.99, 0.01)], ids=repr)
def test_first_order_is_ddim_or_ddpm(schedule):
    times = schedule.timesteps(6)
    x, z = start(schedule, times)
    for phi, other in (("ode", DDIM()), ("sde", DDIM(eta=1.0)), ("sde", DPMSolverPP(order=1, sde=True))):
        got = run(ERSDE(order=1, noise_scale=phi, quadrature="exact"), schedule, times, x, z)
        want = run(other, schedule, times, x, z)
        torch.testing.assert_close(got[:-1], want[:-1], rtol=1e-12, atol=1e-12)
    want = run(DDPM(), schedule, times, x, z)
    torch.testing.assert_close(got[:-1], want[:-1], rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("quadrature", ["released", "exact"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_scale_of_phi_does_not_matter(order, quadrature):
    times = VPLinear().timesteps(8)
    phi = NOISE_SCALES["er_sde_4"]
    plain, scaled = (
        ERSDE(order=order, noise_scale=f, quadrature=quadrature).plan(VPLinear(), times)
        for f in (phi, lambda x: 1e6 * phi(x))
    )
    for (weights, std), (others, other) in zip(plain, scaled, strict=True):
        assert weights == pytest.approx(others, rel=1e-9, abs=1e-12)
        assert std == pytest.approx(other, rel=1e-9)


def test_noise_to_signal_ratio_is_all_that_matters():
    """Check that VP at (alpha, sigma) is alpha times VE at sigma/alpha."""
    times = VPLinear().timesteps(8)
    alpha, sigma = VPLinear().alpha(times), VPLinear().sigma(times)
    x, z = start(VPLinear(), times)
    level = (sigma / alpha).tolist()
    vp = run(ERSDE(), VPLinear(), times, x, z)
    ve = run(ERSDE(), EDM(sigma_max=200), level, x / alpha[0], z)
    torch.testing.assert_close(vp, ve * alpha[:, None, None], rtol=1e-10, atol=1e-10)


def test_constant_data_are_found_by_every_order():
    times = EDM().timesteps(6)
    x, z = start(EDM(), times)
    model = lambda x, t: (x - 0.4) / t[:, None]  # noqa: E731
    states = [run(ERSDE(order=order), EDM(), times, x, z, model) for order in (1, 2, 3)]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-12)
    torch.testing.assert_close(states[0], states[2], rtol=0, atol=1e-12)
    torch.testing.assert_close(states[0][-1], torch.full_like(x, 0.4), rtol=0, atol=1e-12)


def test_data_linear_in_the_level_are_integrated_exactly():
    """Use X = 0.3 - 0.2 lambda, for which y = 0.3 + lambda (C + 0.2 log lambda).

    Order 2 follows it from the second step on, and order 3 equals order 2.
    """
    times = [10.0, 6.0, 3.0, 1.5, 0.5]
    model = lambda x, t: (x - (0.3 - 0.2 * t[:, None])) / t[:, None]  # noqa: E731
    x, _ = start(EDM(), times)
    two, three = (
        run(ERSDE(order=order, noise_scale="ode", quadrature="exact"), EDM(), times, x, model=model) for order in (2, 3)
    )
    torch.testing.assert_close(two, three, rtol=0, atol=1e-12)
    for high, low, before, after in zip(times[1:], times[2:], two[1:], two[2:], strict=False):
        constant = (before - 0.3) / high - 0.2 * math.log(high)
        torch.testing.assert_close(after, 0.3 + low * (constant + 0.2 * math.log(low)), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("order", "quadrature", "slope"), [(1, "exact", 1), (2, "exact", 2), (3, "exact", 2)])
def test_order_of_convergence(order, quadrature, slope):
    x = torch.tensor([[7.0, -3.0, 1.5]], dtype=torch.float64)
    want = torch.tensor([[0.66009896, 0.40706985, 0.54494956]], dtype=torch.float64)
    model = GaussianMixture1D([0.3, 0.7], [-1.0, 0.6], [0.25, 0.15], sample_shape=(3,), schedule=EDM())

    def error(steps):
        times = torch.logspace(1, math.log10(0.05), steps + 1, dtype=torch.float64).tolist()
        end = run(ERSDE(order=order, noise_scale="ode", quadrature=quadrature), EDM(), times, x, model=model)[-1]
        return float((end - want).abs().max())

    errors = [error(n) for n in (160, 640)]
    assert math.log(errors[0] / errors[1], 4) == pytest.approx(slope, abs=0.2)


@pytest.mark.parametrize("phi", [n for n in NAMES.values() if n != "er_sde_3"])
def test_flow_starts_from_pure_noise(phi):
    """Compare a start at t = 1 with the limit of starts ever closer to 1.

    At t = 1 the velocity of N(0, 0.5^2) data is x.
    """

    def model(x, t):
        t = t[:, None]
        return x * (t - 0.25 * (1 - t)) / (0.25 * (1 - t) ** 2 + t**2)

    def end(first):
        times = [first, 0.8, 0.5, 0.2, 0.0]
        x, z = start(Flow(), times)
        solver = ERSDE(noise_scale=phi, quadrature="exact")
        return gms_fast.sample(
            model, solver=solver, schedule=Flow(), timesteps=times, prediction="flow", clip=None,
            x_T=x / first, noise=lambda i: z[i],
        )  # fmt: skip

    limit = end(1.0)
    assert limit.isfinite().all()
    gaps = [float((end(1 - gap) - limit).abs().max()) for gap in (1e-3, 1e-6)]
    assert gaps[1] < 0.05 * gaps[0] + 1e-9 or gaps[0] < 1e-3


@pytest.mark.parametrize("phi", NAMES.values())
def test_float32_never_meets_a_negative_variance(phi):
    for steps in (2, 10, 20):
        x = gms_fast.sample(
            GaussianMixture1D(**MIXTURE, schedule=EDM()), steps, solver=ERSDE(noise_scale=phi, variance_clip=0.0), n=4
        )
        assert x.isfinite().all()


def test_clip_is_a_switch():
    times = EDM().timesteps(8)
    stds = {clip: [std for _, std in ERSDE(variance_clip=clip).plan(EDM(), times)] for clip in (None, 0.0, 1e-6)}
    assert stds[None] == stds[1e-6]
    assert stds[None][6] == 0 < stds[0.0][6]
    assert [std for _, std in ERSDE(quadrature="exact").plan(EDM(), times)] == stds[0.0]
    assert all(std == 0 for _, std in ERSDE(noise_scale="ode", variance_clip=0.0).plan(EDM(), times))


def test_samples_do_not_depend_on_the_batch():
    model = GaussianMixture1D(**MIXTURE, schedule=VPLinear())
    whole = gms_fast.sample(model, 6, solver="er-sde", n=6, seed=3)
    parts = [gms_fast.sample(model, 6, solver="er-sde", n=2, seed=3, sample_offset=i) for i in (0, 2, 4)]
    assert torch.equal(whole, torch.cat(parts))


REFUSALS = {
    "order": ({"order": 4}, "order must be one of 1, 2, 3: got 4"),
    "noise_scale": ({"noise_scale": "er_sde_9"}, "noise_scale must be a callable .* got 'er_sde_9'"),
    "quadrature": ({"quadrature": "simpson"}, "quadrature must be one of released, exact: got 'simpson'"),
    "variance_clip": ({"variance_clip": -1.0}, "variance_clip must be a non-negative number or None: got -1.0"),
    "phi falls": ({"noise_scale": lambda x: x**0.5}, r"phi\(x\)/x .* decreases from .* at .* to .* at x = 80"),
    "phi zero": ({"noise_scale": lambda x: 0 * x}, r"noise_scale must be positive .* got phi\(80\) = 0"),
    "phi NaN": ({"noise_scale": lambda x: x * math.nan}, r"noise_scale must be positive .* = nan"),
    "phi infinite": ({"noise_scale": lambda x: np.exp(x**3)}, r"noise_scale must be positive and finite .* = inf"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_argument_is_named_before_the_model_is_called(case):
    options, message = REFUSALS[case]
    with pytest.raises(ValueError, match=message):
        gms_fast.sample(pytest.fail, 20, solver=ERSDE(**options), schedule=EDM(), shape=(2,))
