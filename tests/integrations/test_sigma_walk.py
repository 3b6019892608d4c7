"""Run through a host's sigmas: source of the noise, the callback's dict, and bad input."""

from functools import partial

import pytest
import torch
from denoisers import Denoiser
from torch.utils._python_dispatch import TorchDispatchMode

from gms_fast import statistics
from gms_fast.integrations import k_diffusion
from gms_fast.schedules import EDM
from gms_fast.tables.origin import fingerprint

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = (3, 2, 4, 4)
SIGMAS = torch.tensor([14.0, 8.0, 4.5, 2.5, 1.4, 0.8, 0.4, 0.2, 0.1, 0.03, 0.0])
GAUSSIAN = statistics.gaussian(torch.linspace(-1, 1, 40 * 32).reshape(40, 2, 4, 4) ** 3, rank=3)
NODES = torch.linspace(-3, 4, 701, dtype=torch.float64)
CURVES = [torch.full((701, 2, 4, 4), value, dtype=torch.float64) for value in (0.8, 0.05, 0.02)]
KNOWN = statistics.EmpiricalModel(EDM(), NODES, *CURVES)
SAMPLERS = {
    "gms": partial(k_diffusion.sample_gms, covariance=GAUSSIAN, switch=0),
    "er_sde": k_diffusion.sample_er_sde,
    "dpmpp_2m": k_diffusion.sample_dpmpp_2m,
    "unipc": k_diffusion.sample_unipc,
    "dpmpp_2m_sde": k_diffusion.sample_dpmpp_2m_sde,
    "dpmpp_3m_sde": k_diffusion.sample_dpmpp_3m_sde,
    "teleport": partial(k_diffusion.sample_teleport, statistics=GAUSSIAN, until=5.0),
    "dpm_solver_v3": partial(k_diffusion.sample_dpm_solver_v3, statistics=KNOWN),
    "euler": k_diffusion.sample_euler,
    "euler_ancestral": k_diffusion.sample_euler_ancestral,
    "heun": k_diffusion.sample_heun,
}
NOISY = ("gms", "er_sde", "dpmpp_2m_sde", "dpmpp_3m_sde", "euler_ancestral")
each_sampler = pytest.mark.parametrize("name", SAMPLERS)
each_noisy = pytest.mark.parametrize("name", NOISY)


def start(dtype=torch.float32):
    return (torch.randn(SHAPE, generator=torch.Generator().manual_seed(3)) * SIGMAS[0]).to(dtype)


def run(name, seed=7, x=None, sigmas=SIGMAS, model=None, **options):
    extra = None if seed is None else {"seed": seed}
    return SAMPLERS[name](model or Denoiser(), start() if x is None else x, sigmas, extra, disable=True, **options)


@each_noisy
def test_sample_does_not_depend_on_the_batch(name):
    bits = {"rtol": 0, "atol": 1e-5 if name == "gms" else 0}  # products with a covariance round by batch size
    whole, x = run(name), start()
    torch.testing.assert_close(run(name, x=x[:2].contiguous()), whole[:2], **bits)
    alone = torch.cat([run(name, seed, x=x[i : i + 1].contiguous()) for i, seed in enumerate((4, 5, 6))])
    torch.testing.assert_close(run(name, [4, 5, 6]), alone, **bits)
    torch.testing.assert_close(run(name, torch.tensor([4, 5, 6])), alone, **bits)


@each_noisy
def test_seed_is_the_host_s_and_goes_on_to_the_model(name):
    model, extra = Denoiser(), {"seed": 2**64 - 3, "cond": "c"}
    x = SAMPLERS[name](model, start(), SIGMAS, extra, disable=True)
    assert torch.equal(x, run(name, 2**64 - 3))
    assert not torch.equal(x, run(name, 1))
    assert extra == {"seed": 2**64 - 3, "cond": "c"}
    assert model.keywords == [extra] * (len(SIGMAS) - 1)


@each_noisy
@pytest.mark.parametrize("extra", [None, {}, {"seed": None}])
def test_without_a_seed_torch_s_generator_has_one(name, extra):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first, second = (run(name, x=start(), seed=None) for _ in range(2))
        torch.manual_seed(1)
        model = Denoiser() if not extra else lambda x, sigma, seed: Denoiser()(x, sigma)
        again = SAMPLERS[name](model, start(), SIGMAS, extra, disable=True)
    assert torch.equal(first, again)
    assert not torch.equal(first, second)


def test_two_stages_draw_what_one_run_draws():
    """Use solvers without history; counters follow the noise level."""
    middle = run("euler_ancestral", sigmas=SIGMAS[:6])
    assert torch.equal(run("euler_ancestral", x=middle, sigmas=SIGMAS[5:]), run("euler_ancestral"))


@each_noisy
def test_levels_of_a_run_draw_noise_of_their_own(name):
    drawn = [run(name, sigmas=SIGMAS[i : i + 2]) - run(name, sigmas=SIGMAS[i : i + 2], s_noise=0.0) for i in range(4)]
    units = [z / z.std() for z in drawn]
    correlations = torch.corrcoef(torch.stack([u.flatten() for u in units])).fill_diagonal_(0)
    assert float(correlations.abs().max()) < 5 / 96**0.5  # five standard deviations for 96 independent draws


@each_sampler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_state_is_kept_and_so_is_its_dtype(name, dtype):
    x, sigmas = start(dtype), SIGMAS.clone()
    before = x.clone()
    made = run(name, x=x, sigmas=sigmas)
    assert made.dtype == dtype
    assert made.shape == x.shape
    assert torch.equal(x, before)
    assert torch.equal(sigmas, SIGMAS)
    assert bool(made.isfinite().all())


@each_sampler
def test_model_is_asked_at_each_level_with_one_sigma_a_sample(name):
    model = Denoiser()
    run(name, model=model)
    assert {(tuple(s.shape), s.dtype) for s in model.sigmas} == {((3,), torch.float32)}
    visited = sorted({float(s[0]) for s in model.sigmas}, reverse=True)
    want = [s for s in SIGMAS[:-1].tolist() if name != "teleport" or s <= 5]
    assert visited == pytest.approx(want, rel=0.0051)  # v3 goes to nodes, 0.01 apart in log sigma
    assert name == "dpm_solver_v3" or visited == want


@each_sampler
def test_callback_is_told_every_step(name):
    infos, x = [], start()
    run(name, x=x, callback=infos.append)
    places = [0, *range(2, 10)] if name == "teleport" else list(range(10))
    assert [info["i"] for info in infos] == places
    assert all(info.keys() == {"x", "i", "sigma", "sigma_hat", "denoised"} for info in infos)
    assert torch.equal(infos[0]["x"], x)
    for info in infos[1:] if name == "teleport" else infos:
        assert info["sigma"] == SIGMAS[info["i"]]
        assert name == "dpm_solver_v3" or info["sigma_hat"] == info["sigma"]
        assert torch.equal(info["denoised"], Denoiser()(info["x"], info["sigma_hat"].expand(3)))


@each_sampler
def test_last_sigma_of_zero_gives_the_model_s_estimate(name):
    infos = []
    made = run(name, callback=infos.append)
    assert torch.equal(made, infos[-1]["denoised"])


def test_of_equal_sigmas_the_first_counts():
    """Repeat sigmas, as tables in half precision do."""
    twice = torch.cat([SIGMAS[:3], SIGMAS[2:], SIGMAS[-1:]])
    assert torch.equal(run("er_sde", sigmas=twice), run("er_sde"))


def test_two_stages_of_a_flow_model_draw_what_one_run_draws():
    """Include runs from pure noise."""
    sigmas, x = torch.linspace(1, 0, 9), start() / SIGMAS[0]
    flow = partial(run, "euler_ancestral", model=Denoiser(flow=True))
    middle = flow(x=x, sigmas=sigmas[:6])
    assert torch.equal(flow(x=middle, sigmas=sigmas[5:]), flow(x=x, sigmas=sigmas))


@each_sampler
def test_a_single_level_is_no_step(name):
    model, x = Denoiser(), start()
    assert torch.equal(run(name, x=x, sigmas=SIGMAS[:1], model=model), x)
    assert not model.sigmas


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name not in ("teleport", "dpm_solver_v3")])
def test_one_step_to_no_noise_is_the_model_s_estimate(name):
    sigmas = torch.tensor([float(SIGMAS[0]), 0.0])
    assert torch.equal(run(name, sigmas=sigmas), Denoiser()(start(), SIGMAS[:1].expand(3)))


class Reads(TorchDispatchMode):
    """Counter of values that are read out of tensors."""

    def __init__(self):
        super().__init__()
        self.counted = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.counted += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@each_sampler
def test_nothing_is_read_while_it_walks(name):
    """Check that no step makes the host wait for a GPU."""
    reads, counted = Reads(), []

    def model(x, sigma, seed):
        counted.append(reads.counted)
        return x

    with reads:
        run(name, model=model)
        before = reads.counted
        torch.ones(()).item()
    assert counted[1] == counted[-1]  # v3 builds its tables in the first step
    assert reads.counted == before + 1


@pytest.mark.parametrize(("disable", "shown"), [(True, False), (False, True), (None, False)])
def test_progress_bar_shows_as_the_host_says(disable, shown, capsys):
    SAMPLERS["euler"](Denoiser(), start(), SIGMAS, None, None, disable)  # stderr is no terminal here
    assert ("10/10" in capsys.readouterr().err) == shown


WRONG = {
    "sigmas rise": ({"sigmas": SIGMAS.flip(0)}, r"sigmas must be .*\(K\+1,\).*decreasing: got \[0, 0.03"),
    "sigmas negative": ({"sigmas": torch.tensor([2.0, -1.0])}, r"sigmas must .*non-negative"),
    "sigmas infinite": ({"sigmas": torch.tensor([torch.inf, 1.0])}, r"sigmas must .*finite"),
    "sigmas nan": ({"sigmas": torch.tensor([2.0, torch.nan])}, r"sigmas must .*finite"),
    "sigmas empty": ({"sigmas": SIGMAS[:0]}, r"sigmas must be a floating tensor \(K\+1,\)"),
    "sigmas of two dimensions": (
        {"sigmas": SIGMAS[None]},
        r"sigmas must be a floating tensor \(K\+1,\).*got \(1, 11\)",
    ),
    "sigmas integers": ({"sigmas": torch.tensor([2, 1])}, r"sigmas must .*floating tensor.*int64"),
    "sigmas no tensor": ({"sigmas": [2.0, 1.0]}, "sigmas must be a tensor"),
    "x integers": ({"x": torch.ones(SHAPE, dtype=torch.int64)}, r"x must be a floating tensor \(B, \*\)"),
    "x without samples": ({"x": torch.ones(())}, r"x must be a floating tensor \(B, \*\)"),
    "x no tensor": ({"x": [1.0]}, "x must be a tensor"),
    "seeds too few": ({"seed": [1, 2]}, "seed must be one integer or one per sample, 3 of them: got 2"),
    "seed no integer": ({"seed": 0.5}, "seed must be an integer"),
    "model": ({"model": 3}, "model must be callable"),
    "callback": ({"callback": 3}, "callback must be callable"),
    "noise_sampler": ({"noise_sampler": 3}, "noise_sampler must be callable"),
    "s_noise": ({"s_noise": -1.0}, "s_noise must be finite and not negative"),
    "noise shape": ({"noise_sampler": lambda a, b: torch.zeros(3)}, "noise z must match"),
    "noise kind": ({"noise_sampler": lambda a, b: 0.0}, "noise_sampler's noise must be a tensor"),
    "model's shape": ({"model": lambda x, s, seed: x[:1]}, r"model's output must be shaped like x"),
    "model's kind": ({"model": lambda x, s, seed: 1}, "model must return a tensor or NoiseMoments"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_argument_is_named(wrong):
    options, said = WRONG[wrong]
    with pytest.raises((ValueError, TypeError), match=said):
        run("euler_ancestral", **options)


def test_extra_args_are_a_dict():
    with pytest.raises(TypeError, match="extra_args must be a dict"):
        k_diffusion.sample_euler(Denoiser(), start(), SIGMAS, [1])


def test_flow_has_no_levels_above_one():
    with pytest.raises(ValueError, match=r"sigmas must be at most 1 for a flow model.*got 14"):
        run("euler", model=Denoiser(flow=True))


@pytest.mark.parametrize("name", ["gms", "teleport", "dpm_solver_v3"])
def test_tables_of_another_shape_are_named_before_the_model_is_asked(name):
    model = Denoiser()
    with pytest.raises(ValueError, match=r"(statistics|covariance).*\(2, 4, 4\)"):
        run(name, x=start()[:, :1], model=model)
    assert not model.sigmas


@pytest.mark.parametrize("sigmas", [SIGMAS * 3, SIGMAS / 3, torch.tensor([2.0, 1.999, 1.0]), SIGMAS[-2:]])
def test_v3_goes_to_nodes_of_its_statistics_alone(sigmas):
    with pytest.raises(
        ValueError, match="sigmas must be two or more, each nearest to a different one of the statistics' 701 levels"
    ):
        run("dpm_solver_v3", sigmas=sigmas)


def test_v3_knows_its_network_inside_of_the_host_s():
    class Host(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.inner_model = network

        def forward(self, x, sigma, **keywords):
            return self.inner_model(x)

    network, other = (torch.nn.Conv2d(2, 2, 1) for _ in range(2))
    of_network = statistics.EmpiricalModel(EDM(), NODES, *CURVES, network=fingerprint(network))
    run("dpm_solver_v3", model=Host(network), statistics=of_network)
    with pytest.raises(ValueError, match=f"must be measured on this network, .*: got those of {of_network.network}"):
        run("dpm_solver_v3", model=Host(other), statistics=of_network)
