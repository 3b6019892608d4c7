"""Samplers with k-diffusion's signature, against their formulas in plain float64."""

import re
import subprocess
import sys
from itertools import pairwise
from math import exp, inf, log, sqrt

import pytest
import torch
from denoisers import Denoiser
from places import ROOT

import gms_fast
from gms_fast import NoiseMoments, solvers, statistics
from gms_fast.integrations import k_diffusion
from gms_fast.schedules import EDM, Levels

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (3, 2, 4, 4)
SIGMAS = torch.tensor([14.0, 8.0, 4.5, 2.5, 1.4, 0.8, 0.4, 0.2, 0.1, 0.03, 0.0], dtype=torch.float64)
# states of up to 50 in ten steps, whose weights are of the order of 1: 50 * 10 * 2^-53 * a few roundings each
EXACT = {"rtol": 0, "atol": 1e-12}
GAUSSIAN = statistics.gaussian(torch.linspace(-1, 1, 40 * 32).reshape(40, 2, 4, 4) ** 3, rank=3)
NODES = torch.linspace(-log(20.0), -log(0.02), 801, dtype=torch.float64)
CURVES = [torch.full((801, 2, 4, 4), value, dtype=torch.float64) for value in (0.8, 0.05, 0.02)]
KNOWN = statistics.EmpiricalModel(EDM(), NODES, *CURVES)
SAMPLERS = {
    "sample_gms": {"covariance": GAUSSIAN, "switch": 0},
    "sample_er_sde": {},
    "sample_dpmpp_2m": {},
    "sample_unipc": {},
    "sample_dpmpp_2m_sde": {},
    "sample_dpmpp_3m_sde": {},
    "sample_teleport": {"statistics": GAUSSIAN, "until": 5.0},
    "sample_dpm_solver_v3": {"statistics": KNOWN},
    "sample_euler": {},
    "sample_euler_ancestral": {},
    "sample_heun": {},
}
NOISY = ("sample_gms", "sample_er_sde", "sample_dpmpp_2m_sde", "sample_dpmpp_3m_sde", "sample_euler_ancestral")
each_sampler = pytest.mark.parametrize("name", SAMPLERS)


def start(sigmas=SIGMAS, dtype=torch.float64):
    """State at the first sigma."""
    return (torch.randn(SHAPE, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * sigmas[0]).to(dtype)


def run(name, model, x, sigmas=SIGMAS, seed=7, **options):
    extra = {"seed": seed}
    return getattr(k_diffusion, name)(model, x, sigmas, extra, disable=True, **{**SAMPLERS[name], **options})


class Noise:
    """A `noise_sampler` that records its arguments and repeats its noise in the next run."""

    def __init__(self):
        self.asked, self.generator = [], torch.Generator().manual_seed(11)

    def __call__(self, sigma, sigma_next):
        self.asked.append((float(sigma), float(sigma_next)))
        return torch.randn(SHAPE, generator=self.generator, dtype=torch.float64)


def stepped(step, x, model=None, noise=None, sigmas=SIGMAS):
    """Apply step(x, m, s, t, z, past) from level s to t; `past` holds (m, level), latest first."""
    model, past = model or Denoiser(), []
    for s, t in zip(sigmas.tolist(), sigmas[1:].tolist(), strict=False):
        m = model(x, torch.full((len(x),), s, dtype=torch.float64))
        past.insert(0, (m, s))
        z = noise(s, t) if noise is not None and t > 0 else torch.zeros_like(x)
        x = step(x, m, s, t, z, past) if t > 0 else m
    return x


def euler(x, m, s, t, z, past):
    return x + (t - s) * (x - m) / s


def ancestral(eta):
    """Posterior of x_t given x_s and x_0, with eta^2 of its variance."""

    def step(x, m, s, t, z, past):
        var = eta**2 * t**2 * (1 - t**2 / s**2)
        return m + sqrt(t**2 - var) * (x - m) / s + sqrt(var) * z

    return step


def dpmpp_2m(x, m, s, t, z, past):
    """Exponential integrator of order 2 in -log sigma, with m extrapolated to mid-step."""
    h = log(s / t)
    if len(past) > 1:
        before, s_before = past[1]
        m = m + (m - before) * h / log(s_before / s) / 2
    return t / s * x + (1 - t / s) * m


def dpmpp_sde(order, eta, midpoint=False):
    """Reverse SDE with eta times its noise: e^{p u} times a polynomial, integrated.

    The polynomial in log sigma goes through the past m. Order 2 with "midpoint" takes it at the middle of the step;
    order 3 halves its second derivative.
    """

    def step(x, m, s, t, z, past):
        h = log(s / t)
        ph = (1 + eta) * h
        whole = 1 - exp(-ph)
        slope = 1 - whole / ph  # int_0^1 of u, weighted
        values, ages = [value for value, _ in past], [log(level / s) / h for _, level in past]
        moved = t / s * exp(-eta * h) * x + whole * m
        if order > 1 and len(past) > 1:
            first = (values[0] - values[1]) / ages[1]
            if order > 2 and len(past) > 2:
                before = (values[1] - values[2]) / (ages[2] - ages[1])
                second = (first - before) / ages[2]
                moved = moved + slope * (first + second * ages[1]) + (0.5 - slope / ph) * second
            else:
                moved = moved + (whole / 2 if midpoint else slope) * first
        return moved + t * sqrt(1 - exp(-2 * eta * h)) * z

    return step


def heun(model):
    def step(x, m, s, t, z, past):
        slope = (x - m) / s
        there = x + (t - s) * slope
        other = (there - model(there, torch.full((len(x),), t, dtype=torch.float64))) / t
        return x + (t - s) * (slope + other) / 2

    return step


def er_sde(order, phi):
    """Taylor expansion of E[x_0|x] in sigma, with integrals by a left sum of 200 points."""

    def step(x, m, s, t, z, past):
        kept = phi(t) / phi(s)
        points = [t + (s - t) * j / 200 for j in range(200)]
        moved = kept * x + (1 - kept) * m
        levels = [level for _, level in past]
        values = [value for value, _ in past]
        if order > 1 and len(past) > 1:
            first = (values[0] - values[1]) / (levels[0] - levels[1])
            moved = moved + (t - s + phi(t) * sum((s - t) / 200 / phi(p) for p in points)) * first
        if order > 2 and len(past) > 2:
            before = (values[1] - values[2]) / (levels[1] - levels[2])
            second = 2 * (first - before) / (levels[0] - levels[2])
            area = sum((s - t) / 200 * (p - s) / phi(p) for p in points)
            moved = moved + ((s - t) ** 2 / 2 + phi(t) * area) * second
        return moved + sqrt(max(t**2 - kept**2 * s**2, 0)) * z

    return step


def test_euler_follows_the_slope():
    torch.testing.assert_close(run("sample_euler", Denoiser(), start()), stepped(euler, start()), **EXACT)


def test_heun_takes_the_mean_of_two_slopes():
    model = Denoiser()
    torch.testing.assert_close(run("sample_heun", Denoiser(), start()), stepped(heun(model), start()), **EXACT)


def test_dpmpp_2m_is_the_integrator_of_second_order():
    torch.testing.assert_close(run("sample_dpmpp_2m", Denoiser(), start()), stepped(dpmpp_2m, start()), **EXACT)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_euler_ancestral_draws_from_the_posterior(eta):
    made = run("sample_euler_ancestral", Denoiser(), start(), eta=eta, noise_sampler=Noise())
    torch.testing.assert_close(made, stepped(ancestral(eta), start(), noise=Noise()), **EXACT)


def with_churn(x, noise, churn, low, high, second):
    """Algorithm 2 of Karras et al. 2022: noise before each step, then a step of Euler or Heun."""
    model = Denoiser()

    def slope(x, s):
        return (x - model(x, torch.full((len(x),), s, dtype=torch.float64))) / s

    for s, t in pairwise(SIGMAS.tolist()):
        raised = s * (1 + min(churn / 10, sqrt(2) - 1)) if low <= s <= high else s
        x = x + sqrt(raised**2 - s**2) * noise(s, raised) if raised > s else x
        d = slope(x, raised)
        if second and t > 0:
            d = (d + slope(x + (t - raised) * d, t)) / 2
        x = x + (t - raised) * d
    return x


@pytest.mark.parametrize(("churn", "low", "high"), [(3.0, 0.0, inf), (40.0, 0.15, 5.0), (3.0, 20.0, 30.0)])
@pytest.mark.parametrize("name", ["sample_euler", "sample_heun"])
def test_churn_raises_levels_within_its_limits_the_first_too(name, churn, low, high):
    ours, plain, infos = Noise(), Noise(), []
    options = {"s_churn": churn, "s_tmin": low, "s_tmax": high, "noise_sampler": ours, "callback": infos.append}
    made = run(name, Denoiser(), start(), **options)
    want = with_churn(start(), plain, churn, low, high, name == "sample_heun")
    torch.testing.assert_close(made, want, **EXACT)
    assert [float(info["sigma"]) for info in infos] == SIGMAS[:-1].tolist()
    raised = {float(info["sigma"]): float(info["sigma_hat"]) for info in infos if info["sigma_hat"] > info["sigma"]}
    assert [s for s, _ in ours.asked] == [s for s, _ in plain.asked] == list(raised)
    assert list(raised.values()) == pytest.approx([s for _, s in plain.asked], rel=1e-14)


@pytest.mark.parametrize("name", ["sample_euler", "sample_heun"])
def test_churn_draws_from_the_seed(name):
    x = start()
    made = [run(name, Denoiser(), x, seed=seed, s_churn=5.0) for seed in (1, 1, 2)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])
    assert torch.equal(run(name, Denoiser(), x[:1], seed=1, s_churn=5.0), made[0][:1])
    assert torch.equal(run(name, Denoiser(), x, seed=1, s_churn=5.0, s_tmin=20.0), run(name, Denoiser(), x))
    assert run(name, Denoiser(), x.half(), s_churn=5.0).dtype == torch.float16


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.3])
def test_dpmpp_sde_is_the_integrator_of_the_reverse_sde(eta):
    for name, options, step in (
        ("sample_dpmpp_2m_sde", {}, dpmpp_sde(2, eta, midpoint=True)),
        ("sample_dpmpp_2m_sde", {"solver_type": "heun"}, dpmpp_sde(2, eta)),
        ("sample_dpmpp_3m_sde", {}, dpmpp_sde(3, eta)),
    ):
        made = run(name, Denoiser(), start(), eta=eta, noise_sampler=Noise() if eta else None, **options)
        want = stepped(step, start(), noise=Noise() if eta else None)
        torch.testing.assert_close(made, want, **EXACT)


def test_dpmpp_2m_sde_has_two_types():
    with pytest.raises(ValueError, match="solver_type must be one of midpoint, heun: got 'k-diffusion'"):
        run("sample_dpmpp_2m_sde", Denoiser(), start(), solver_type="k-diffusion")


PHI = {
    "default": (None, lambda v: v * (exp(v**0.3) + 10)),
    "tensors": (lambda v: v**2 if isinstance(v, torch.Tensor) else 1 / 0, lambda v: v**2),
    "name": ("er_sde_1", lambda v: v**1.5),
}


@pytest.mark.parametrize("phi", PHI)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_er_sde_is_the_expansion_with_200_points(order, phi):
    given, plain = PHI[phi]
    options = {"noise_scaler": given, "max_stage": order, "noise_sampler": Noise()}
    made = run("sample_er_sde", Denoiser(), start(), **options)
    torch.testing.assert_close(made, stepped(er_sde(order, plain), start(), noise=Noise()), **EXACT)


def test_v3_without_shape_is_dpmpp_at_the_nodes():
    """With l = 1 and s = b = 0, expect DPM-Solver++; at order 1 that is Euler's step."""
    nodes = torch.cat([NODES[[0, 100, 300, 500, 700]].neg().exp(), torch.zeros(1, dtype=torch.float64)])
    plain, near = KNOWN.degenerate(), nodes * 1.001  # near the nodes, but not equal to them
    options = {"statistics": plain, "order": 1, "corrector": None}
    made = run("sample_dpm_solver_v3", Denoiser(), start(nodes), near, **options)
    want = stepped(euler, start(nodes), sigmas=nodes)
    # trapezoids of exp(lambda) between nodes 0.0086 apart: 0.0086^2/12 of the weight of m, |m| < 1.6, in five steps
    torch.testing.assert_close(made, want, rtol=0, atol=5e-5)


@each_sampler
def test_flow_is_the_same_run_of_a_scaled_state(name):
    """Check that x/(1 - sigma) is the state at sigma/(1 - sigma) of a model without scale."""
    levels = torch.cat([NODES[::80].neg().exp(), SIGMAS[-1:]])  # levels of the statistics
    plain, flow = (
        run(name, Denoiser(flow=is_flow), start(sigmas), sigmas, noise_sampler=Noise())
        for is_flow, sigmas in ((False, levels), (True, levels / (1 + levels)))
    )
    # 1 - sigma is rounded: up to 1e-15 of 20 relative, in ten steps
    torch.testing.assert_close(flow, plain, rtol=0, atol=1e-11)


@pytest.mark.parametrize("name", ["sample_er_sde", "sample_euler", "sample_euler_ancestral", "sample_dpmpp_2m"])
def test_flow_starts_from_noise_alone(name):
    """At sigma = 1 the state has no x_0: the first step goes from E[x_0] to the next level."""
    sigmas = torch.tensor([1.0, 0.9, 0.0], dtype=torch.float64)
    model, noise = Denoiser(flow=True), Noise()
    run(name, model, start(sigmas), sigmas, noise_sampler=noise)
    near = torch.tensor([1 - 1e-9, 0.9, 0.0], dtype=torch.float64)
    made = [run(name, Denoiser(flow=True), start(sigmas), s, noise_sampler=Noise()) for s in (sigmas, near)]
    assert [float(s[0]) for s in model.sigmas] == [1.0, 0.9]
    # the level moves by 1e-9, the kept state by less than 100 times that
    torch.testing.assert_close(*made, rtol=0, atol=1e-7)


@pytest.mark.parametrize("name", NOISY)
def test_noise_sampler_is_asked_for_each_step_but_the_last(name):
    noise = Noise()
    run(name, Denoiser(), start(), noise_sampler=noise)
    levels = SIGMAS.tolist()
    assert noise.asked == list(pairwise(levels[:-1]))


@pytest.mark.parametrize("name", ["sample_euler", "sample_dpmpp_2m", "sample_heun", "sample_dpm_solver_v3"])
def test_noise_sampler_is_not_asked_where_nothing_is_drawn(name):
    noise = Noise()
    run(name, Denoiser(), start(), noise_sampler=noise)
    assert not noise.asked


@pytest.mark.parametrize("name", NOISY)
@pytest.mark.parametrize("given", [True, False])
def test_noise_is_scaled(name, given):
    """In one step, expect the sample to move in proportion to s_noise, with counter-based noise."""
    sigmas = SIGMAS[3:5]
    none, one, two = (
        run(name, Denoiser(), start(sigmas), sigmas, s_noise=s, noise_sampler=Noise() if given else None)
        for s in (0.0, 1.0, 2.0)
    )
    assert not torch.equal(none, one)
    # counter-based noise has float32 precision; here it is drawn in the step and before it
    torch.testing.assert_close(two - none, 2 * (one - none), rtol=0, atol=1e-12 if given else 1e-6)


def moments_of(x, sigma, **keywords):
    """Moments of the noise, computed with sums and products only."""
    return NoiseMoments(0.8 * x, 0.64 * x * x + 0.3, 0.5 * x * x * x + 0.2)


def test_gms_reads_moments_as_sample_does():
    """Expect the bits of `gms_fast.sample` on the same levels; counters follow the noise level."""
    levels = Levels([0.0] + [1.0] * 5, [1.0, *SIGMAS[2:7].tolist()])
    x = start(SIGMAS[2:])
    options = {"solver": "gms", "schedule": levels, "timesteps": levels.times[1:], "x_T": x, "clip": (-1, 1), "seed": 7}
    want = gms_fast.sample(lambda x, t: moments_of(x, t), **options)
    sigmas = torch.cat([SIGMAS[2:7], SIGMAS[-1:]])
    made = run("sample_gms", moments_of, x, sigmas, covariance=None, switch=None, clip=(-1, 1))
    assert torch.equal(made, want)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 3])
def test_unipc_is_our_solver_on_these_levels(variant, order):
    levels = Levels([1.0] * 10, SIGMAS[:-1].tolist(), SIGMAS[:-1].tolist())
    solver = solvers.UniPC(order=order, variant=variant)
    options = {"schedule": levels, "timesteps": levels.times, "x_T": start(), "prediction": "x0", "clip": None}
    want = gms_fast.sample(Denoiser(), solver=solver, **options)
    assert torch.equal(run("sample_unipc", Denoiser(), start(), order=order, variant=variant), want)


def test_gms_of_one_tensor_says_what_it_needs():
    with pytest.raises(ValueError, match=r"train_moment_heads.*er-sde or gms:covariance=FILE,switch=0"):
        run("sample_gms", Denoiser(), start(), covariance=None, switch=None)


def test_teleport_lands_where_the_flow_of_the_gaussian_goes():
    class OfGaussian(Denoiser):
        def __call__(self, x, sigma, **keywords):
            self.sigmas.append(sigma)
            return GAUSSIAN.denoise(x, 1.0, float(sigma[0]))

    model, infos, sigmas = OfGaussian(), [], SIGMAS[:4]
    made = k_diffusion.sample_teleport(
        model, start(), sigmas, {"seed": 1}, infos.append, True, statistics=GAUSSIAN, until=5.0, then=solvers.DDIM()
    )
    there = GAUSSIAN.teleport(start(), 1.0, 14.0, 1.0, 4.5)
    want = run("sample_euler", OfGaussian(), there, sigmas[2:])
    torch.testing.assert_close(made, want, **EXACT)
    assert [float(s[0]) for s in model.sigmas] == [4.5]
    assert [info["i"] for info in infos] == [0, 2]
    torch.testing.assert_close(infos[0]["denoised"], GAUSSIAN.denoise(start(), 1.0, 14.0))


def test_tables_are_loaded_from_files(tmp_path):
    GAUSSIAN.save(tmp_path / "g.safetensors", dtype=torch.float64)
    KNOWN.save(tmp_path / "k.safetensors")
    for name, option, file in (
        ("sample_gms", "covariance", "g.safetensors"),
        ("sample_teleport", "statistics", "g.safetensors"),
        ("sample_dpm_solver_v3", "statistics", "k.safetensors"),
    ):
        loaded = run(name, Denoiser(), start(), **{option: str(tmp_path / file)})
        torch.testing.assert_close(loaded, run(name, Denoiser(), start()), rtol=0, atol=1e-4)  # curves in float32
        with pytest.raises(FileNotFoundError, match=r"nowhere\.safetensors"):
            run(name, Denoiser(), start(), **{option: tmp_path / "nowhere.safetensors"})


def test_hosts_are_not_imported():
    code = "import sys, gms_fast.integrations.k_diffusion; print(*{name.partition('.')[0] for name in sys.modules})"
    ran = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert not {"k_diffusion", "comfy", "diffusers"} & set(ran.stdout.split())


def test_page_runs_and_names_every_sampler():
    text = (ROOT / "docs" / "k_diffusion.md").read_text()
    scope = {}
    for block in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(block, scope)
    assert scope["samples"].shape == scope["x"].shape
    assert {name for name in vars(k_diffusion) if name.startswith("sample_")} == set(
        re.findall(r"`(sample_[a-z]\w+)`", text)
    )
    assert SAMPLERS.keys() == set(re.findall(r"`(sample_[a-z]\w+)`", text))
