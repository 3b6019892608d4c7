"""The loop: recorded runs, exactness on Gaussian data, equivalences and determinism."""

import functools
import json
import math

import numpy as np
import places
import pytest
import torch
from toys import Model, polynomial

import gms_fast
from gms_fast import NoiseMoments, schedules, solvers
from gms_fast.models import GaussianMixture1D, MomentUNet
from gms_fast.ops import native
from gms_fast.plan import COUNTED
from gms_fast.schedules import VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")

COMPILED = pytest.mark.skipif(not native.available, reason="plain torch rounds a tensor's tail differently")
VECTORS = json.loads((places.VECTORS / "gms_loop_vectors.json").read_text())
CASES = {case["method"]: case for case in VECTORS["cases"]}
DATA = VECTORS["data"]
MIXTURE = GaussianMixture1D(DATA["w"], DATA["mean"], DATA["std"], sample_shape=(4,))
DOUBLE = {"dtype": torch.float64}
# The third cumulant of eps is a sum of terms below 64 that cancel to a few roundings; the exact fit takes a cube root.
CUBE_ROOT_OF_ROUNDING = (64 * 8 * 2.0**-52) ** (1 / 3)
ALL = {
    "gms": solvers.GMS(),
    "exact, sample": solvers.GMS(fit="exact", component="sample"),
    "free, element": solvers.GMS(fit="free", component="element"),
    "ddpm": solvers.DDPM(),
    "sn-ddpm": solvers.SNDDPM(),
    "ddim": solvers.DDIM(),
    "ddim, eta 0.5": solvers.DDIM(eta=0.5),
}


def vector(values):
    return torch.tensor(values, dtype=torch.float64).reshape(VECTORS["shape"])


def recorded(method, solver, **options):
    """The recorded run with our loop, and the model's last e1."""
    case = CASES[method]
    z, u = [vector(v) for v in case["noise"]], torch.tensor([*case["select"], *[0.5] * 20], dtype=torch.float64)
    last = []

    def model(x, t):
        last[:] = [MIXTURE(x, t)]
        return last[0]

    x = gms_fast.sample(
        Model(model), case["steps"], solver=solver, x_T=vector(case["x_T"]),
        noise=lambda i: (z[i], u[4 * i :][:4]), **options,
    )  # fmt: skip
    return x, vector(case["out"]), last[0].e1


def test_gms_reproduces_the_released_run():
    """To 1e-3: the released optimiser amplifies rounding. It ran on N = 64 elements a call, so eps = 1e-8 N."""
    got, want, _ = recorded("gmddpm", solvers.GMS(fit="adan", moments="released", eps=64e-8))
    assert (got - want).abs().max() < 1e-3
    plain, _, _ = recorded("gmddpm", solvers.SNDDPM())
    assert (plain - want).abs().max() > 1e-2


@pytest.mark.parametrize(("method", "solver"), [("ddpm", solvers.DDPM()), ("analyticdpm", solvers.SNDDPM())])
def test_gaussian_solvers_reproduce_the_released_run(method, solver):
    """As close as the recorded run's own rounding lets them.

    That run read 1 - alpha_bar_0 = 1e-4 of its last network call from a float32 table of alpha_bar, whose entries below
    one are off by up to 2^-25: relatively delta = 2^-25/1e-4 = 3e-4 of sigma_0^2. Per component sigma e1 =
    sigma^2 (x - alpha m)/(alpha^2 s^2 + sigma^2) is proportional to sigma^2 at most, so that x_0 = (x - sigma e1)/alpha
    moves by up to delta sigma_0 |e1|/alpha_0; twice that leaves room for the weights of the components.
    """
    got, want, e1 = recorded(method, solver)
    bound = 2 * (2.0**-25 / 1e-4) * float(VPLinear().sigma(0)) * float(e1.abs().max())
    assert bound < 1e-5
    assert (got - want).abs().max() < bound


def naive_run(method):
    """docs/notation.md as a loop over numpy arrays."""
    case, bar = CASES[method], np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    w, m, s = (np.array(DATA[k]) for k in ("w", "mean", "std"))

    def moments(x, alpha, sigma):
        spread = (alpha * s) ** 2 + sigma**2
        log_p = np.log(w) - np.log(spread) / 2 - (x[:, None] - alpha * m) ** 2 / (2 * spread)
        p = np.exp(log_p - log_p.max(1, keepdims=True))
        p, mu = p / p.sum(1, keepdims=True), sigma * (x[:, None] - alpha * m) / spread
        return (p * mu).sum(1), (p * (mu**2 + (alpha * s) ** 2 / spread)).sum(1)

    def data(x, e1, alpha, sigma):
        return np.clip((x - sigma * e1) / alpha, -1, 1)

    x = np.array(case["x_T"])
    for i, (t, n) in enumerate(zip(case["timesteps"], case["timesteps"][1:], strict=False)):
        alpha_t, sigma_t, alpha_s, sigma_s = (math.sqrt(v) for v in (bar[t], 1 - bar[t], bar[n], 1 - bar[n]))
        decay = alpha_t / alpha_s
        beta = sigma_t**2 - decay**2 * sigma_s**2
        e1, e2 = moments(x, alpha_t, sigma_t)
        var = np.full_like(x, sigma_s**2 * beta / sigma_t**2)
        if method == "analyticdpm":
            v = np.clip((sigma_t / alpha_t) ** 2 * (e2 - e1**2), 0, 1)
            var += (alpha_s * beta / sigma_t**2) ** 2 * v
        if n == 0:
            var = np.minimum(var, (2 * 2 / 255 * math.sqrt(math.pi / 2)) ** 2)
        mean = decay * sigma_s**2 / sigma_t**2 * x + alpha_s * beta / sigma_t**2 * data(x, e1, alpha_t, sigma_t)
        x = mean + np.sqrt(var) * np.array(case["noise"][i])
    alpha_0, sigma_0 = math.sqrt(bar[0]), math.sqrt(1 - bar[0])
    return data(x, moments(x, alpha_0, sigma_0)[0], alpha_0, sigma_0)


@pytest.mark.parametrize(("method", "solver"), [("ddpm", solvers.DDPM()), ("analyticdpm", solvers.SNDDPM())])
def test_gaussian_solvers_equal_a_naive_loop(method, solver):
    got, _, _ = recorded(method, solver)
    assert np.abs(got.flatten().numpy() - naive_run(method)).max() < 1e-11


class Gaussian(Model):
    """Noise moments of N(mean, std^2) data in central form, whose third is exactly zero."""

    moments = "central"

    def __init__(self, mean, std):
        self.mean, self.std = mean, std

    def marginal(self, t):
        """Mean and variance of x_t."""
        alpha, sigma = (float(f(t)) for f in (self.schedule.alpha, self.schedule.sigma))
        return alpha * self.mean, (alpha * self.std) ** 2 + sigma**2

    def __call__(self, x, t):
        mean, var = self.marginal(float(t[0]))
        sigma = float(self.schedule.sigma(float(t[0])))
        return NoiseMoments(sigma * (x - mean) / var, torch.full_like(x, 1 - sigma**2 / var), torch.zeros_like(x))


def one_step(solver, model, t, s, x, z):
    """x_s from x_t = x with the normal z: what the second network call is asked about."""
    seen = []

    def spy(x_i, time):
        seen.append(float(x_i))
        return model(x_i, time)

    z, u = torch.full((1, 1), z, **DOUBLE), torch.full((1,), 0.9, **DOUBLE)
    start = torch.full((1, 1), x, **DOUBLE)
    spied = Model(spy, moments=model.moments)
    gms_fast.sample(spied, timesteps=[t, s], solver=solver, x_T=start, noise=lambda i: (z, u), clip=None)
    return seen[1]


def affine_step(solver, model, t, s):
    """(p, a, b) with x_s = p + a x_t + b z, which every solver is on Gaussian data."""
    p = one_step(solver, model, t, s, 0.0, 0.0)
    a, b = one_step(solver, model, t, s, 1.0, 0.0) - p, one_step(solver, model, t, s, 0.0, 1.0) - p
    assert one_step(solver, model, t, s, -2.0, 3.0) == pytest.approx(p - 2 * a + 3 * b, abs=1e-12)
    return p, a, b


STEPS = [(999, 799), (799, 599), (599, 399), (399, 199), (199, 0), (999, 0), (1, 0)]
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


@pytest.mark.parametrize(("t", "s"), STEPS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, None])
def test_ddim_and_ddpm_carry_a_single_picture_along(eta, t, s):
    """Where x_0 is known, every eta keeps the marginals; None stands for DDPM."""
    solver, model = solvers.DDPM() if eta is None else solvers.DDIM(eta=eta), Gaussian(0.3, 0.0)
    p, a, b = affine_step(solver, model, t, s)
    (mean_t, var_t), (mean_s, var_s) = model.marginal(t), model.marginal(s)
    assert p + a * mean_t == pytest.approx(mean_s, abs=1e-12)
    assert a**2 * var_t + b**2 == pytest.approx(var_s, rel=1e-10)
    assert (b == 0) == (eta == 0)


def test_ddpm_falls_short_of_the_variance_of_gaussian_data():
    model = Gaussian(0.3, 0.4)
    _, a, b = affine_step(solvers.DDPM(), model, 999, 399)
    assert a**2 * model.marginal(999)[1] + b**2 < 0.98 * model.marginal(399)[1]


def run(solver, model=MIXTURE, steps=6, **options):
    return gms_fast.sample(model, steps, solver=solver, **{"n": 8, **DOUBLE} | options)


def without(model, *, second):
    """The same e1, with central moments of zero."""
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
    """Without skewness, without variance, with the noise of DDPM; from the same draws, but for rounding.

    Without a data range, which bounds the variance of the fit "free" more tightly.
    """
    model = without(MIXTURE, second=second)
    times = VPLinear().timesteps(5)
    a, b = (run(solver, model, shape=shape, clip=None, timesteps=times) for solver in (one, other))
    assert (a - b).abs().max() < 1e-10
    assert b.std() > 0.1


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


def test_ddim_without_eta_depends_on_the_start_alone():
    x_T = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), **DOUBLE)
    a, b = run("ddim", x_T=x_T, seed=1), run("ddim", x_T=x_T, seed=2)
    assert torch.equal(a, b)
    assert not torch.equal(run("ddpm", x_T=x_T, seed=1), run("ddpm", x_T=x_T, seed=2))


@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
@pytest.mark.parametrize("as_attribute", [True, False])
def test_every_prediction_of_one_model_gives_the_same_samples(solver, as_attribute):
    schedule = VPLinear()

    def converted(form):
        def model(x, t):
            alpha, sigma = float(schedule.alpha(float(t[0]))), float(schedule.sigma(float(t[0])))
            e = MIXTURE(x, t).e1
            x_0 = (x - sigma * e) / alpha
            return {"noise": e, "x0": x_0, "v": alpha * e - sigma * x_0}[form]

        return model

    want = run(solver)
    for form in ("noise", "x0", "v"):
        given = {"prediction": form} if as_attribute else {}
        options = {} if as_attribute else {"prediction": form}
        got = run(solver, Model(converted(form), **given), **options)
        assert (got - want).abs().max() < 1e-9
    assert (run(solver, Model(converted("x0"))) - want).abs().max() > 1e-2


def test_central_and_raw_moments_give_the_same_samples():
    def central(x, t):
        e1, e2, e3 = MIXTURE(x, t)
        return NoiseMoments(e1, e2 - e1**2, e3 - 3 * e1 * e2 + 2 * e1**3)

    for solver in ("gms", "sn-ddpm"):
        a, b = run(solver), run(solver, Model(central, moments="central"))
        assert (a - b).abs().max() < CUBE_ROOT_OF_ROUNDING
    assert (run("gms", Model(central)) - run("gms")).abs().max() > 1e-2


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, marks=COMPILED), torch.float64, torch.bfloat16])
def test_sample_is_the_same_in_any_batch_split(solver, dtype):
    """To the bit in the compiled kernels; plain torch, which float64 runs in, rounds a tensor's tail differently."""
    split = CUBE_ROOT_OF_ROUNDING if dtype == torch.float64 else 0.0
    model = Model(polynomial)
    draw = functools.partial(gms_fast.sample, model, 5, solver=solver, dtype=dtype, clip=(-9.0, 9.0))
    whole = draw(n=12, seed=3)
    assert whole.dtype == dtype
    assert torch.isfinite(whole).all()
    for size in (1, 5):
        parts = [draw(n=min(size, 12 - i), seed=3, sample_offset=i) for i in range(0, 12, size)]
        assert (torch.cat(parts) - whole).abs().max() <= split
    assert torch.equal(draw(n=12, seed=3), whole)
    assert not torch.equal(draw(n=12, seed=4), whole)


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
def test_per_sample_seeds_stand_for_samples_of_their_own(solver):
    draw = functools.partial(gms_fast.sample, Model(polynomial), 5, solver=solver, clip=(-9.0, 9.0))
    seeds = [5, (1 << 64) - 1, 7]
    batch = draw(n=3, seed=seeds)
    for i, seed in enumerate(seeds):
        assert torch.equal(batch[i : i + 1], draw(n=1, seed=seed))
    assert torch.equal(draw(n=3, seed=torch.tensor([7, -1, 5])), batch.flip(0))
    assert torch.equal(draw(n=3, seed=torch.tensor(7)), draw(n=3, seed=7))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = MomentUNet(
        image_size=8, in_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=()
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        model.out2[3].bias.fill_(1.0)
    return model.eval()


@pytest.mark.parametrize("solver", ["gms", "sn-ddpm", "ddim"])
def test_network_samples_do_not_depend_on_the_batch(solver, network):
    """To 1e-4: convolutions of other batches sum in other orders."""
    whole = gms_fast.sample(network, 4, solver=solver, n=4)
    assert whole.shape == (4, 1, 8, 8)
    assert not whole.requires_grad
    parts = [gms_fast.sample(network, 4, solver=solver, n=2, sample_offset=i) for i in (0, 2)]
    assert (torch.cat(parts) - whole).abs().max() < 1e-4


def test_network_of_another_precision_keeps_a_float32_state(network):
    want = gms_fast.sample(network, 4, n=2)
    got = gms_fast.sample(copy_of(network).bfloat16(), 4, n=2)
    assert got.dtype == torch.float32
    assert 0 < (got - want).abs().mean() < 0.1


def copy_of(network):
    other = MomentUNet(**network.config)
    other.load_state_dict(network.state_dict())
    return other.eval()


@pytest.mark.parametrize("solver", ALL.values(), ids=ALL)
def test_given_noise_replaces_the_counters(solver):
    """Handing over the very draws that the counters give changes nothing."""
    seen = []

    def noise(step, both=True):
        seen.append(step)
        z = gms_fast.ops.philox_normal((3, 4), seed=2, step=COUNTED + step)
        each = isinstance(solver, solvers.GMS) and solver.component != "sample" and solver.fit != "adan"
        shape = (3, 4) if each else (3, 1)
        u = gms_fast.ops.philox_uniform(shape, seed=2, step=COUNTED + step, stream=1)
        return (z, u if both and shape == (3, 4) else u.flatten()) if both else z

    draw = functools.partial(gms_fast.sample, Model(polynomial), 5, solver=solver, n=3, seed=2, clip=(-9.0, 9.0))
    assert torch.equal(draw(noise=noise), draw())
    assert torch.equal(draw(noise=functools.partial(noise, both=False)), draw())
    assert set(seen) <= set(range(5))


def test_given_x_t_is_the_start():
    x_T = gms_fast.ops.philox_normal((8, 4), seed=7, stream=2, **DOUBLE) * float(VPLinear().sigma(999))
    before = x_T.clone()
    assert torch.equal(run("gms", x_T=x_T, seed=7), run("gms", seed=7))
    assert torch.equal(x_T, before)
    assert run("gms", x_T=x_T[:3].float(), dtype=None).dtype == torch.float32
    assert len(run("gms", x_T=x_T[:3])) == 3


def test_callback_sees_every_step():
    seen, inputs = [], []

    def model(x, t):
        inputs.append((x.clone(), t.clone()))
        return MIXTURE(x, t)

    x = gms_fast.sample(Model(model), 5, solver="sn-ddpm", n=2, callback=lambda *a: seen.append(a), **DOUBLE)
    assert [(i, t) for i, t, _, _ in seen] == list(enumerate([999, 799, 599, 399, 199]))
    assert [t.tolist() for _, t in inputs] == [[t, t] for t in (999, 799, 599, 399, 199, 0)]
    for (_, t, x_t, x_0), (given, _) in zip(seen, inputs, strict=False):
        assert torch.equal(x_t, given)
        alpha, sigma = (float(f(t)) for f in (VPLinear().alpha, VPLinear().sigma))
        e1 = MIXTURE(x_t, torch.full((2,), float(t))).e1
        assert torch.equal(x_0, ((x_t - sigma * e1) / alpha).clamp(-1, 1))
    assert x.shape == (2, 4)


def test_progress_goes_to_stderr_only_if_wanted(capsys):
    gms_fast.sample(Model(clip=(-1, 1)), 3, solver="ddim", n=1)
    assert capsys.readouterr() == ("", "")
    gms_fast.sample(Model(clip=(-1, 1)), 3, solver="ddim", n=1, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert "3/3" in err


def test_timesteps_replace_steps():
    for times in ([999, 665, 332, 0], torch.tensor([999, 665, 332, 0]), np.array([999, 665, 332, 0])):
        assert torch.equal(run("sn-ddpm", timesteps=times), run("sn-ddpm", steps=3))
    model = Model()
    gms_fast.sample(model, timesteps=[700, 300], solver="ddim", n=1)
    assert model.calls == 2


def test_defaults_come_from_the_model():
    schedule = schedules.VPCosine(T=4000)
    times = []
    model = Model(lambda x, t: times.extend(t[:1].tolist()) or 0 * x, schedule=schedule, sample_shape=(2, 3))
    assert gms_fast.sample(model, 2, solver="ddim").shape == (16, 2, 3)
    assert times == [3999, 1999, 0]
    assert gms_fast.sample(model, 2, solver="ddim", n=3, shape=(5,), schedule="linear").shape == (3, 5)
    assert times[3:] == [999, 499, 0]
    assert gms_fast.sample(model, 2, solver="ddim", n=0).shape == (0, 2, 3)


def test_clip_bounds_the_data_estimate():
    far = Model(lambda x, t: -50 + 0 * x)
    assert gms_fast.sample(far, 3, solver="ddim", n=2).eq(1).all()
    assert gms_fast.sample(far, 3, solver="ddim", n=2, clip=(0, 0.5)).eq(0.5).all()
    assert gms_fast.sample(far, 3, solver="ddim", n=2, clip=None).min() > 1
