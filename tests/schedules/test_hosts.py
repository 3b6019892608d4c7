"""Schedules of diffusers: its own results at its own levels, from equal networks and noise."""

import math
import sys

import pytest
import torch

import gms_fast
from gms_fast.schedules import VP, Flow, Levels, from_diffusers
from gms_fast.solvers import DDIM, DDPM, DPMSolverPP, UniPC

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

WIDE = {"rtol": 0, "atol": 1e-9}  # both sides compute in float64 from the same float32 tables
SINGLE = {"rtol": 0, "atol": 2e-6}  # diffusers rounds its state (up to 4) to float32 in each of 20 steps


def noises(steps, seed=2):
    return torch.randn(steps, 3, 2, 4, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels_of(schedule, t):
    """Return (alpha, sigma) at network times, shaped like the times."""
    t = t.double()
    return schedule.alpha(schedule.from_network_time(t)), schedule.sigma(schedule.from_network_time(t))


def network_of(form, schedule):
    """Return the exact prediction for data around -0.6 and 0.6.

    The two parts overlap, so that nearby paths stay together.
    """
    mean = torch.tensor([-0.6, 0.6], dtype=torch.float64)
    var = torch.tensor([0.4, 0.3], dtype=torch.float64) ** 2
    weight = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def network(x, t):
        alpha, sigma = (v.reshape(-1, 1, 1, 1, 1) for v in levels_of(schedule, t))
        x = x[..., None].double()
        total = alpha**2 * var + sigma**2
        log = weight.log() - total.log() / 2 - (x - alpha * mean) ** 2 / (2 * total)
        m = (log.softmax(-1) * (mean + alpha * var / total * (x - alpha * mean))).sum(-1)
        x, alpha, sigma = x[..., 0], alpha[..., 0], sigma[..., 0]
        if form == "x0":
            return m
        e = (x - alpha * m) / sigma
        return {"noise": e, "v": alpha * e - sigma * m, "flow": e - m}[form]

    return network


def of_diffusers(scheduler, network, x, draws, monkeypatch, **options):
    """Sample by the scheduler's own steps from x, with draws[i] as the noise of step i."""
    module = sys.modules[type(scheduler).__module__]
    for i, t in enumerate(scheduler.timesteps):
        monkeypatch.setattr(module, "randn_tensor", lambda shape, i=i, **rest: draws[i].to(rest["dtype"]), False)
        seen = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
        y = network(seen, t.expand(len(x)))
        x = scheduler.step(y, t, x, **options).prev_sample
    return x


def compared(scheduler, solver, steps, monkeypatch, *, clip=None, options=None, network=None, **arguments):
    """Return (our sample, diffusers' sample) at the levels of the scheduler, set to `steps`."""
    training, timesteps, form = from_diffusers(scheduler)
    assert timesteps is None
    network = network or network_of(form, training)
    scheduler.set_timesteps(steps)
    for name in ("alphas_cumprod", "final_alpha_cumprod", "sigmas"):
        if hasattr(scheduler, name):
            setattr(scheduler, name, getattr(scheduler, name).double())
    schedule, timesteps, _ = from_diffusers(scheduler)
    draws, x_T = noises(len(timesteps)), noises(1, seed=1)[0]
    start = x_T / float(schedule.alpha(timesteps[0])) if unscaled(scheduler) else x_T
    want = of_diffusers(scheduler, network, start, draws, monkeypatch, **options or {})
    got = gms_fast.sample(
        network, solver=solver, schedule=schedule, timesteps=timesteps, prediction=form, x_T=x_T,
        noise=lambda i: draws[i], clip=clip, **arguments,
    )  # fmt: skip
    return got, want.double()


def unscaled(scheduler):
    """Tell whether the scheduler's own state is x_0 + s eps."""
    return type(scheduler).__name__.startswith(("Euler", "EDM"))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(
    ("spacing", "trained", "steps"), [("leading", 1000, 10), ("trailing", 1000, 10), ("linspace", 12, 12)]
)
def test_ddim(spacing, trained, steps, eta, monkeypatch):
    """With "linspace" and as many steps as times, diffusers' DDIM steps to the next time."""
    scheduler = diffusers.DDIMScheduler(trained, clip_sample=False, timestep_spacing=spacing)
    got, want = compared(scheduler, DDIM(eta=eta), steps, monkeypatch, options={"eta": eta})
    torch.testing.assert_close(got, want, **WIDE)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample"},
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"beta_schedule": "squaredcos_cap_v2"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"num_train_timesteps": 300, "trained_betas": [1e-4 + 1e-4 * i for i in range(300)]},
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_ddim_of_other_tables(options, monkeypatch):
    scheduler = diffusers.DDIMScheduler(clip_sample=False, **options)
    got, want = compared(scheduler, DDIM(eta=0.5), 10, monkeypatch, options={"eta": 0.5}, denoise=False)
    torch.testing.assert_close(got, want, **WIDE)


def test_ddim_that_clips(monkeypatch):
    scheduler = diffusers.DDIMScheduler(clip_sample_range=0.7)
    options = {"use_clipped_model_output": True}
    got, want = compared(scheduler, DDIM(), 10, monkeypatch, clip=(-0.7, 0.7), options=options)
    torch.testing.assert_close(got, want, **WIDE)
    assert float(got.abs().max()) == pytest.approx(0.7)


@pytest.mark.parametrize("eta", [0.0, 0.6])
@pytest.mark.parametrize("form", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("to_one", [False, True])
def test_ddim_that_clips_and_keeps_the_network_s_noise(form, eta, to_one, monkeypatch):
    """Without an offset, the last step of `set_alpha_to_one=False` stays at its level."""
    kept = {"set_alpha_to_one": to_one, "steps_offset": 1, "prediction_type": form}
    scheduler = diffusers.DDIMScheduler(clip_sample_range=0.7, **kept)
    ways = {"clip": (-0.7, 0.7), "options": {"eta": eta}, "denoise": False}
    got, want = compared(scheduler, DDIM(eta=eta, clipped_noise=False), 10, monkeypatch, **ways)
    torch.testing.assert_close(got, want, **WIDE)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("form", ["epsilon", "v_prediction", "sample"])
def test_ddpm(spacing, form, monkeypatch):
    scheduler = diffusers.DDPMScheduler(clip_sample_range=0.9, timestep_spacing=spacing, prediction_type=form)
    got, want = compared(scheduler, DDPM(clip_pixel=None), 14, monkeypatch, clip=(-0.9, 0.9))
    torch.testing.assert_close(got, want, **WIDE)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("sde", [False, True])
@pytest.mark.parametrize("kind", ["midpoint", "heun"])
@pytest.mark.parametrize(("last", "karras"), [("zero", False), ("zero", True), ("sigma_min", False)])
def test_dpm_solver(order, sde, kind, last, karras, monkeypatch):
    scheduler = diffusers.DPMSolverMultistepScheduler(
        solver_order=order, algorithm_type="sde-dpmsolver++" if sde else "dpmsolver++", final_sigmas_type=last,
        use_karras_sigmas=karras, solver_type=kind,
    )  # fmt: skip
    solver = DPMSolverPP(order=order, sde=sde, kind=kind)
    got, want = compared(scheduler, solver, 12, monkeypatch, denoise=False)
    torch.testing.assert_close(got, want, **SINGLE)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "v_prediction"},
        {"prediction_type": "sample", "timestep_spacing": "trailing"},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"use_exponential_sigmas": True},
        {"use_lu_lambdas": True},
        {"use_beta_sigmas": True},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"num_train_timesteps": 300, "trained_betas": [1e-4 + 1e-4 * i for i in range(300)]},
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
        {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012},
    ],
    ids=lambda options: " ".join(map(str, options)),
)
@pytest.mark.parametrize("steps", [6, 20])
def test_dpm_solver_of_other_levels(options, steps, monkeypatch):
    scheduler = diffusers.DPMSolverMultistepScheduler(**options)
    got, want = compared(scheduler, DPMSolverPP(order=2), steps, monkeypatch)
    torch.testing.assert_close(got, want, **SINGLE)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize(("variant", "last"), [("bh2", "zero"), ("bh2", "sigma_min"), ("bh1", "sigma_min")])
@pytest.mark.parametrize("disabled", [(), (0, 3), tuple(range(12))], ids=["all", "not 0 and 3", "none"])
def test_unipc(order, variant, last, disabled, monkeypatch):
    """diffusers' own "bh1" step to no noise is NaN."""
    scheduler = diffusers.UniPCMultistepScheduler(
        solver_order=order, solver_type=variant, final_sigmas_type=last, disable_corrector=list(disabled)
    )
    solver = UniPC(order=order, variant=variant, disable_corrector=disabled)
    got, want = compared(scheduler, solver, 12, monkeypatch, denoise=False)
    torch.testing.assert_close(got, want, **WIDE)


@pytest.mark.parametrize(
    "options",
    [
        {"prediction_type": "v_prediction", "use_karras_sigmas": True},
        {"prediction_type": "sample", "timestep_spacing": "trailing"},
        {"timestep_spacing": "leading", "steps_offset": 1},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"use_flow_sigmas": True, "flow_shift": 3.0, "prediction_type": "flow_prediction"},
    ],
    ids=lambda options: " ".join(map(str, options)),
)
@pytest.mark.parametrize("order", [2, 3])
def test_unipc_of_other_levels(options, order, monkeypatch):
    scheduler = diffusers.UniPCMultistepScheduler(solver_order=order, **options)
    solver = UniPC(order=order, lower_order_final=options.get("lower_order_final", True))
    got, want = compared(scheduler, solver, 10, monkeypatch, denoise=False)
    torch.testing.assert_close(got, want, **WIDE)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_karras_sigmas": True, "timestep_spacing": "trailing"},
        {"prediction_type": "v_prediction", "timestep_spacing": "leading", "steps_offset": 1},
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    ],
    ids=lambda options: " ".join(map(str, options)),
)
def test_euler(options, monkeypatch):
    """The scheduler's state is x_0 + s eps; the network sees it divided by sqrt(1 + s^2)."""
    got, want = compared(diffusers.EulerDiscreteScheduler(**options), DDIM(), 12, monkeypatch)
    torch.testing.assert_close(got, want, **SINGLE)


def test_ancestral_euler(monkeypatch):
    got, want = compared(diffusers.EulerAncestralDiscreteScheduler(), DDIM(eta=1.0), 12, monkeypatch)
    torch.testing.assert_close(got, want, **SINGLE)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_matching(shift, monkeypatch):
    got, want = compared(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift), DDIM(), 12, monkeypatch)
    torch.testing.assert_close(got, want, **SINGLE)


def raw(x, t):
    """Return any network F of the times log(s)/4."""
    return torch.tanh(x.double() + t.double().reshape(-1, 1, 1, 1))


@pytest.mark.parametrize(
    ("name", "solver"),
    [("EDMEulerScheduler", DDIM()), ("EDMDPMSolverMultistepScheduler", DPMSolverPP())],
)
def test_edm(name, solver, monkeypatch):
    got, want = compared(getattr(diffusers, name)(), solver, 12, monkeypatch, network=raw)
    torch.testing.assert_close(got, want, **SINGLE)


@pytest.mark.parametrize(
    "name",
    [
        "DDPMScheduler", "DDIMScheduler", "LCMScheduler", "UnCLIPScheduler", "CogVideoXDDIMScheduler", "TCDScheduler",
        "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "SASolverScheduler",
        "DEISMultistepScheduler", "EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "LMSDiscreteScheduler",
        "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler",
    ],
)  # fmt: skip
def test_networks_are_asked_at_the_times_of_the_scheduler(name):
    scheduler = getattr(diffusers, name)()
    schedule, timesteps, _ = from_diffusers(scheduler)
    assert timesteps is None
    assert isinstance(schedule, (VP, Flow, Levels))
    scheduler.set_timesteps(7)
    levels, timesteps, _ = from_diffusers(scheduler)
    assert len(timesteps) == 8
    asked = levels.network_time(timesteps)[:-1]
    torch.testing.assert_close(asked, scheduler.timesteps.double(), rtol=1e-12, atol=0)
    ratio = levels.sigma(timesteps) / levels.alpha(timesteps)
    assert bool((ratio.diff() < 0).all())
    if hasattr(scheduler, "sigmas"):
        s = scheduler.sigmas.double()
        torch.testing.assert_close(ratio, s / (1 - s) if "Flow" in name else s, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "FlowMatchHeunDiscreteScheduler"])
def test_schedulers_of_two_calls_a_step_visit_each_level_once(name):
    scheduler = getattr(diffusers, name)()
    assert from_diffusers(scheduler)[1] is None
    scheduler.set_timesteps(5)
    levels, timesteps, _ = from_diffusers(scheduler)
    assert len(timesteps) == 6
    main = scheduler.timesteps[0::2].double()  # the others lie between these, or repeat them
    torch.testing.assert_close(levels.network_time(timesteps)[:-1], main, rtol=1e-12, atol=0)


def test_the_training_is_what_it_was():
    schedule, _, form = from_diffusers(diffusers.DDPMScheduler(300, beta_start=2e-4, prediction_type="v_prediction"))
    assert (schedule.T, form) == (300, "v")
    betas = torch.linspace(2e-4, 0.02, 300, dtype=torch.float64)
    torch.testing.assert_close(schedule.betas, betas, rtol=1e-6, atol=0)
    assert schedule.network_time(299) == 299
    shifted, _, form = from_diffusers(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    assert (shifted.shift, shifted.time_scale, form) == (3.0, 1000.0, "flow")
    zero, _, _ = from_diffusers(diffusers.DDIMScheduler(rescale_betas_zero_snr=True))
    assert zero.alpha(999) == 0
    changed = diffusers.CogVideoXDDIMScheduler()  # its alphas do not follow from its betas
    levels, _, _ = from_diffusers(changed)
    torch.testing.assert_close(levels.alpha(levels.times) ** 2, changed.alphas_cumprod.flip(0).double())


def test_a_shift_that_depends_on_the_picture_moves_no_level():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0)
    assert from_diffusers(scheduler)[0].shift == 1
    scheduler.set_timesteps(4, mu=math.log(2))
    levels, timesteps, _ = from_diffusers(scheduler)
    torch.testing.assert_close(levels.sigma(timesteps), scheduler.sigmas.double())


@pytest.mark.parametrize(
    ("scheduler", "message"),
    [
        (lambda: diffusers.IPNDMScheduler(), "scheduler must be one of diffusers' DDPMScheduler, .*: got IPNDMSche"),
        (lambda: object(), "scheduler must be one of .*: got object"),
        (
            lambda: diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
            "scheduler must have decreasing noise levels: got FlowMatchEulerDiscreteScheduler with invert_sigmas=True",
        ),
        (
            lambda: diffusers.EDMEulerScheduler(prediction_type="v_prediction"),
            "scheduler must predict .*: got v_prediction with sigma_data=0.5",
        ),
        (
            lambda: diffusers.EDMEulerScheduler(final_sigmas_type="sigma_min"),
            'scheduler must have final_sigmas_type="zero"',
        ),
        (
            lambda: diffusers.DDIMScheduler(prediction_type="score"),
            "scheduler.config.prediction_type must be one of epsilon, .*: got 'score'",
        ),
    ],
)
def test_schedulers_that_are_refused(scheduler, message):
    with pytest.raises(ValueError, match=message):
        from_diffusers(scheduler())


def test_ddim_ends_where_it_counts_back_to():
    """From 166 by 1000//6 it ends at 0, the table's first; from 99 by 1000//10 at no noise."""
    scheduler = diffusers.DDIMScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(6)
    assert int(scheduler.timesteps[-1]) == 166
    levels, timesteps, _ = from_diffusers(scheduler)
    assert float(levels.alpha(timesteps[-1]) ** 2) == pytest.approx(float(scheduler.alphas_cumprod[0]))
    scheduler.set_timesteps(10)
    levels, timesteps, _ = from_diffusers(scheduler)
    assert float(levels.sigma(timesteps[-1])) == 0
