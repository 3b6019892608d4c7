"""Gaussian statistics against recorded numbers and closed forms, and bad input."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from recorded_gaussian import MIXTURE, PROBLEM, VECTORS, close, tensor

from gms_fast import schedules, statistics
from gms_fast.statistics import Gaussian, gaussian
from gms_fast.steps import StepCoefficients

# --- the recorded numbers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", range(len(VECTORS["ve_full"]["sigma"])))
def test_ve_path(i):
    v = VECTORS["ve_full"]
    sigma, x_T = v["sigma"][i], tensor(v["x_T"])
    close(PROBLEM.teleport(x_T, 1, v["sigma_T"], 1, sigma), v["x"][i], 1e-11)
    gains = PROBLEM.teleport(PROBLEM.eigenvectors.T + PROBLEM.mean, 1, v["sigma_T"], 1, sigma) - PROBLEM.mean
    close((gains * PROBLEM.eigenvectors.T).sum(1), v["gain"][i], 1e-11)
    if sigma > 0:
        close(PROBLEM.denoise(tensor(v["x"][i]), 1, sigma), v["denoised"][i], 1e-11)


def test_score():
    v = VECTORS["score_check"]
    x, sigma = tensor(v["x"]), v["sigma"]
    close((PROBLEM.denoise(x, 1, sigma) - x) / sigma**2, v["score"], 1e-13)


def test_low_rank_without_and_with_the_variance_of_the_rest():
    v, p = VECTORS["ve_lowrank"], VECTORS["problem"]
    r, lam = v["rank"], p["lam"]
    kept = [row[:r] for row in p["U"]]
    floor = sum(lam[r:]) / (len(lam) - r)
    assert floor == pytest.approx(v["floor"], rel=1e-14)
    x_T, sigma_T = tensor(VECTORS["ve_full"]["x_T"]), VECTORS["ve_full"]["sigma_T"]
    for residual, key, rms in ((0.0, "x", "rms_diff_to_full"), (floor, "x_floor", "rms_diff_to_full_floor")):
        statistics = Gaussian(p["mu"], kept, lam[:r], residual)
        for i, sigma in enumerate(v["sigma"]):
            got = statistics.teleport(x_T, 1, sigma_T, 1, sigma)
            close(got, v[key][i], 1e-11)
            off = (got - PROBLEM.teleport(x_T, 1, sigma_T, 1, sigma)).square().mean().sqrt()
            assert float(off) == pytest.approx(v[rms][i], abs=1e-11)


def test_vp_path():
    v = VECTORS["vp"]
    schedule = schedules.VPContinuous(v["beta_min"], v["beta_max"])
    times = [v["t_T"], *v["t"]]
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    close(alpha, v["alpha"], 1e-13)
    close(sigma, v["sigma"], 1e-13)
    for i, (a, s) in enumerate(zip(alpha[1:].tolist(), sigma[1:].tolist(), strict=True)):
        x = PROBLEM.teleport(tensor(v["x_T"]), float(alpha[0]), float(sigma[0]), a, s)
        close(x, v["x"][i], 1e-11)
        close((x - a * PROBLEM.denoise(x, a, s)) / s, v["eps"][i], 1e-9 if s < 0.1 else 1e-11)  # x - a D cancels


def test_flow_path():
    v = VECTORS["flow"]
    for t, x in zip(v["t"], v["x"], strict=True):
        close(PROBLEM.teleport(tensor(v["x_T"]), 1 - v["t_T"], v["t_T"], 1 - t, t), x, 1e-11)


@pytest.mark.parametrize("N", [18, 40])
def test_the_tail_of_the_edm_grid_is_the_edm_grid_from_there(N):
    schedule = schedules.EDM(sigma_min=0.002, sigma_max=80.0)
    grid = schedule.timesteps(N, spacing="karras")[:-1]
    close(tensor(grid), VECTORS["edm_schedule"][f"N{N}"], 1e-12)
    for k in range(1, N - 2):
        close(tensor(schedule.timesteps(N - k, spacing="karras", t_max=grid[k])), tensor([*grid[k:], 0.0]), 1e-12)
    calls = [2 * len(grid[k:]) - 1 for k in range(len(VECTORS["edm_schedule"][f"nfe_N{N}"]))]  # Heun's
    assert calls == VECTORS["edm_schedule"][f"nfe_N{N}"]


def test_stationary_covariance():
    v = VECTORS["fft"]
    row = np.array(v["cov_first_row"])
    power = np.fft.fft(row).real
    close(torch.from_numpy(power), v["power"], 1e-12)
    covariance = np.stack([np.roll(row, i) for i in range(len(row))])
    lam, U = np.linalg.eigh(covariance)
    x_T = tensor(v["x_T"]).view(1, -1)
    got = Gaussian(v["mu"], U, lam.clip(0)).teleport(x_T, 1, v["sigma"][0], 1, v["sigma"][1])
    close(got[0], tensor(v["x"]).flatten(), 1e-12)


def test_direct_start():
    v = VECTORS["direct_start"]
    z = tensor(v["z"])
    close(PROBLEM.draw(z, 1, v["sigma"]), v["x"], 1e-12)
    apart = PROBLEM.draw(z, 1, v["sigma"]) - PROBLEM.teleport(80 * z, 1, 80.0, 1, v["sigma"])
    assert float(apart.abs().max()) == pytest.approx(v["diff_to_teleport_from_80"], abs=1e-12)


def heun(x, sigmas):
    """Run the second-order ODE solver of Karras et al. 2022."""
    for s, r in pairwise(sigmas):
        slope = (x - MIXTURE(x, s)) / s
        y = x + (r - s) * slope
        x = y if r == 0 else x + (r - s) * (slope + (y - MIXTURE(y, r)) / r) / 2
    return x


@pytest.fixture(scope="module")
def end():
    """Return x_T, and the end of its probability flow at 0.002, with the mean there."""
    from scipy.integrate import solve_ivp

    x_T = 80 * np.random.default_rng(0).standard_normal((256, 6))

    def slope(log_sigma, flat):
        x = torch.from_numpy(flat).view(-1, 6)
        return (x - MIXTURE(x, math.exp(log_sigma))).numpy().ravel()

    span = (math.log(80.0), math.log(0.002))
    x = solve_ivp(slope, span, x_T.ravel(), method="DOP853", rtol=1e-10, atol=1e-10).y[:, -1].reshape(-1, 6)
    return torch.from_numpy(x_T), MIXTURE(torch.from_numpy(x), 0.002)


def test_the_mixture_and_its_end_are_those_recorded(end):
    v = VECTORS["hybrid_mixture"]
    close(MIXTURE.gaussian.mean, v["global_mean"], 1e-12)
    close(MIXTURE.gaussian.eigenvalues, v["global_eigs_desc"], 1e-12)
    close(end[0][:2], v["x_T0"], 1e-12)
    close(end[1][:2], v["ref_x0"], 1e-6)


def _error(end, sigmas):
    """Return the mean distance from the end after a jump to the first level and Heun's steps."""
    x_T, x_0 = end
    x = MIXTURE.gaussian.teleport(x_T, 1, 80.0, 1, sigmas[0])
    return float((heun(x, [*sigmas, 0.0]) - x_0).norm(dim=1).mean())


@pytest.mark.parametrize("row", VECTORS["hybrid_mixture"]["rows"], ids=lambda row: f"skip{row[0]}")
def test_same_grid_fewer_steps(end, row):
    skipped, sigma, calls, error, _ = row
    grid = schedules.EDM(sigma_min=0.002, sigma_max=80.0).timesteps(18, spacing="karras")[skipped:-1]
    assert (grid[0], 2 * len(grid) - 1) == (pytest.approx(sigma), calls)
    assert _error(end, grid) == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("row", VECTORS["hybrid_mixture"]["fixed_nfe_rows"], ids=lambda row: f"{row[0]}from{row[1]:g}")
def test_same_calls_shorter_range(end, row):
    steps, sigma, calls, error = row
    grid = schedules.EDM(sigma_min=0.002, sigma_max=80.0).timesteps(steps, spacing="karras", t_max=sigma)[:-1]
    assert 2 * len(grid) - 1 == calls
    assert _error(end, grid) == pytest.approx(error, rel=1e-6)


# --- mathematics ---------------------------------------------------------------------------------------------------


def test_paths_compose_and_run_back():
    x = tensor(VECTORS["ve_full"]["x_T"])
    straight = PROBLEM.teleport(x, 1, 80.0, 1, 2.0)
    close(PROBLEM.teleport(PROBLEM.teleport(x, 1, 80.0, 1, 12.9), 1, 12.9, 1, 2.0), straight, 1e-13)
    close(PROBLEM.teleport(straight, 1, 2.0, 1, 80.0), x, 1e-13)


def test_step_noise_makes_reverse_steps_exact_for_gaussian_data():
    """Check that the covariance of x_s is the schedule's.

    Cov x_s = A^2 Cov x_t + 2 A B Cov(x_t, m) + B^2 Cov m + Cov noise.
    """
    schedule = schedules.VPLinear()
    k = StepCoefficients.between(schedule, 700, 300)
    lam = PROBLEM.eigenvalues
    noise = PROBLEM.step_noise(PROBLEM.eigenvectors.T, k)  # of unit vectors along the eigenvectors
    std = (noise * PROBLEM.eigenvectors.T).sum(1)
    gain = k.alpha_t * lam / (k.alpha_t**2 * lam + k.sigma_t**2)
    spread = (k.A + k.B * gain) ** 2 * (k.alpha_t**2 * lam + k.sigma_t**2) + std**2
    close(spread, k.alpha_s**2 * lam + k.sigma_s**2, 1e-13)


def test_filter_keeps_shape_and_dtype_and_serves_what_is_left_out():
    data = torch.randn(50, 2, 3, 4, generator=torch.Generator().manual_seed(0))
    g = gaussian(data, rank=5)
    x = torch.randn(3, 2, 3, 4, dtype=torch.bfloat16)
    assert g.filter(x, torch.sqrt).dtype == torch.bfloat16
    assert g.filter(x, torch.sqrt).shape == x.shape
    wide = x.double()
    identity = g.filter(wide, torch.ones_like)
    close(identity, wide, 1e-14)
    left_out = wide.flatten(1) - (wide.flatten(1) @ g.eigenvectors) @ g.eigenvectors.T
    only = g.filter(wide, lambda lam: (lam == g.residual) * 2.0)
    close(only.flatten(1), 2 * left_out, 1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_files(tmp_path, dtype):
    g = gaussian(torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1, rank=6)
    g.save(tmp_path / "g.safetensors", dtype=dtype)
    back = Gaussian.load(tmp_path / "g.safetensors")
    assert (back.sample_shape, back.rank, back.range, back.count) == ((1, 4, 4), 6, g.range, 30)
    assert back.residual == g.residual
    assert torch.equal(back.eigenvalues, g.eigenvalues)
    close(back.eigenvectors, g.eigenvectors, torch.finfo(dtype).eps)


def test_embedded_statistics():
    for name in ("mnist", "digits"):
        g = statistics.load_gaussian(name)
        g.check(clip=(-1.0, 1.0))
        assert g.range == (-1.0, 1.0)


GOOD = torch.randn(10, 4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_results_have_the_dtype_of_their_input(dtype):
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    ways = (
        lambda x: PROBLEM.denoise(x, 0.9, 0.4),
        lambda x: PROBLEM.teleport(x, 0.5, 0.8, 0.9, 0.4),
        lambda x: PROBLEM.draw(x, 0.5, 0.8),
    )
    for way in ways:
        assert way(x).dtype == dtype
        exact = way(x.double())
        close(way(x).double(), exact, 4 * max(torch.finfo(dtype).eps, 1e-15) * float(exact.abs().max()))


def test_copies_made_without_autograd_serve_it_later():
    g = gaussian(GOOD)
    with torch.inference_mode():
        g.denoise(GOOD, 1.0, 1.0)
    g.denoise(GOOD.clone().requires_grad_(), 1.0, 1.0).sum().backward()


def test_another_layout_of_as_many_elements_is_refused():
    g = gaussian(torch.rand(30, 4, 4, 3) * 2 - 1)
    with pytest.raises(ValueError, match=r"of shape \(3, 4, 4\): got \(4, 4, 3\)"):
        g.check(shape=(3, 4, 4))
    g.check(shape=(48,))
    gaussian(torch.rand(30, 48)).check(shape=(3, 4, 4))


# --- what is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: gaussian(torch.zeros(5, 3, dtype=torch.uint8)), TypeError, "data must be floating point"),
        (lambda: gaussian(torch.full((5, 3), math.nan)), ValueError, "data must be finite"),
        (lambda: gaussian(torch.zeros(1, 3)), ValueError, "data must hold at least 2 samples: got 1"),
        (lambda: gaussian(torch.zeros(3)), ValueError, r"data must be \(M, \*\)"),
        (lambda: gaussian([torch.zeros(3, 2), torch.zeros(3, 4)]), ValueError, r"data must be .* of one shape"),
        (lambda: gaussian(3), TypeError, "data must be a tensor"),
        (lambda: gaussian(GOOD, rank=0), ValueError, "rank must be a positive integer"),
        (lambda: gaussian(GOOD, rank=5), ValueError, "rank must be at most 4, all that 10 samples can have: got 5"),
        (lambda: gaussian(torch.randn(4, 9), rank=4), ValueError, "rank must be at most 3, all that 4 samples"),
        (lambda: gaussian(GOOD, batch_size=0), ValueError, "batch_size must be"),
        (lambda: Gaussian([0.0, math.inf], [[1.0], [0.0]], [1.0]), ValueError, "mean must be finite"),
        (lambda: Gaussian([0.0, 0.0], [[1.0], [0.0]], [-1.0]), ValueError, "eigenvalues and residual .* got -1"),
        (lambda: Gaussian([0.0, 0.0], [[1.0], [0.0]], [1.0], -0.5), ValueError, "residual .* got -0.5"),
        (lambda: Gaussian([0.0, 0.0], [[1.0], [0.0]], [1.0], count=1), ValueError, "count must be"),
        (lambda: Gaussian([0.0, 0.0], [[1.0], [0.0]], [1.0], range=(1, 0)), ValueError, "range must be"),
        (
            lambda: Gaussian(torch.zeros(20), torch.eye(20).index_fill(1, torch.tensor([10]), 0), torch.ones(20)),
            ValueError,
            "eigenvectors must be orthonormal",
        ),
        (lambda: gaussian(GOOD).save("x", dtype=torch.bfloat16), ValueError, "dtype must be"),
        (lambda: gaussian(torch.zeros(5, 0)), ValueError, "data must be"),
        (lambda: Gaussian([0.0, 0.0], [[1.0, 0.0]], [1.0]), ValueError, r"eigenvectors must be \(2, 1\)"),
        (lambda: Gaussian([0.0, 0.0], [[1.0], [1.0]], [1.0]), ValueError, "eigenvectors must be orthonormal"),
        (lambda: gaussian(GOOD).check(shape=(5,)), ValueError, r"of shape \(5,\): got \(4,\)"),
        (lambda: gaussian(torch.rand(9, 4)).check(clip=(-1.0, 1.0)), ValueError, "in the units of clip, -1 .. 1"),
        (lambda: gaussian(255 * torch.rand(9, 4)).check(clip=(-1.0, 1.0)), ValueError, "in the units of clip"),
        (lambda: gaussian(torch.rand(9, 4) * 2 - 1).check(clip=(0.0, 1.0)), ValueError, "in the units of clip"),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("shape", "[2, 2]"), ("residual", '"much"'), ("format", "other"), ("range", "[3]"), ("range", '"ab"'),
        ("range", "[null, 1]"), ("range", "[2, -2]"), ("count", '"x"'),
    ],
)  # fmt: skip
def test_a_file_of_other_things_is_refused_by_name(tmp_path, key, value):
    import safetensors.torch
    from safetensors import safe_open

    path = tmp_path / "g.safetensors"
    gaussian(GOOD).save(path)
    with safe_open(path, "pt") as file:
        stored = file.metadata()
    safetensors.torch.save_file(safetensors.torch.load_file(path), path, stored | {key: value})
    with pytest.raises(ValueError, match=r"g\.safetensors.*"):
        Gaussian.load(path)
