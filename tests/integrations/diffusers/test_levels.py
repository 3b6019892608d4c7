"""Levels and times of schedulers, against diffusers' own from the same configuration."""

import pytest
import torch
from scheduler_loops import apart, draw

diffusers = pytest.importorskip("diffusers")
from gms_fast import SolverScheduler  # noqa: E402
from gms_fast.integrations.diffusers import levels  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LATENTS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SD = {**LATENTS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}
DPM, UNIPC, FLOW = "DPMSolverMultistep", "UniPCMultistep", "FlowMatchEulerDiscrete"
FEW, MANY = 10, 20  # below and above 15 calls, from which on the last steps keep their order

SAME = {
    "DDIM": ("DDIM", {**LATENTS, "clip_sample": False}, "ddim", {}),
    "DDIM of latents": ("DDIM", SD, "ddim", {}),
    "DDIM, clipped": ("DDIM", {}, "ddim", {}),
    "DDIM, of v": ("DDIM", {"prediction_type": "v_prediction"}, "ddim", {}),
    "DDIM, of x_0": ("DDIM", {"prediction_type": "sample"}, "ddim", {}),
    "DDIM, dynamic thresholding": ("DDIM", {"clip_sample": False, "thresholding": True}, "ddim", {}),
    "DDIM, no signal at first": (
        "DDIM",
        {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
        "ddim",
        {},
    ),
    "CogVideoX": ("CogVideoXDDIM", {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}, "ddim", {}),
    "2M": (DPM, LATENTS, "dpm-solver++", {}),
    "2M, trained betas": (DPM, {"trained_betas": torch.linspace(1e-4, 0.03, 1000).tolist()}, "dpm-solver++", {}),
    "2M, cosine": (DPM, {"beta_schedule": "squaredcos_cap_v2"}, "dpm-solver++", {}),
    "2M, thresholding": (DPM, {**LATENTS, "thresholding": True}, "dpm-solver++", {}),
    "2M, small threshold": (DPM, {**LATENTS, "thresholding": True, "sample_max_value": 0.5}, "dpm-solver++", {}),
    "2M, Karras": (DPM, {**LATENTS, "use_karras_sigmas": True}, "dpm-solver++", {}),
    "2M, exponential": (DPM, {**LATENTS, "use_exponential_sigmas": True}, "dpm-solver++", {}),
    "2M, Lu": (DPM, {**LATENTS, "use_lu_lambdas": True}, "dpm-solver++", {}),
    "2M, to sigma_min": (DPM, {**LATENTS, "final_sigmas_type": "sigma_min"}, "dpm-solver++", {}),
    "2M, leading": (DPM, {**LATENTS, "timestep_spacing": "leading", "steps_offset": 1}, "dpm-solver++", {}),
    "2M, clipped levels": (DPM, {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, "dpm-solver++", {}),
    "2M of flow": (
        DPM,
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        "dpm-solver++",
        {},
    ),
    "2M at given times": (DPM, LATENTS, "dpm-solver++", {"steps": None, "timesteps": [900, 500, 100]}),
    "order 3, heun": (DPM, {**LATENTS, "solver_order": 3, "solver_type": "heun"}, "dpm-solver++", {"steps": MANY}),
    "order 3, said in the text": (DPM, {**LATENTS, "solver_order": 3}, "dpm-solver++:order=3", {"steps": MANY}),
    "Heun, its own betas": ("HeunDiscrete", {}, "heun", {}),
    "DDIM, last step to where it is": (
        "DDIM",
        {**LATENTS, "clip_sample": False, "set_alpha_to_one": False},
        "ddim",
        {},
    ),
    "2M, last step to where it is": (
        DPM,
        {**LATENTS, "use_karras_sigmas": True, "final_sigmas_type": "sigma_min"},
        "dpm-solver++",
        {"steps": 6},
    ),
    "order 3, last step to where it is": (
        DPM,
        {**LATENTS, "use_exponential_sigmas": True, "final_sigmas_type": "sigma_min", "solver_order": 3},
        "dpm-solver++",
        {"steps": 6},
    ),
    "one step": (DPM, LATENTS, "dpm-solver++", {"steps": 1}),
    "UniPC": (UNIPC, LATENTS, "unipc", {}),
    "UniPC, order 3": (UNIPC, {**LATENTS, "solver_order": 3}, "unipc", {"steps": MANY}),
    "UniPC, bh1": (UNIPC, {**LATENTS, "solver_type": "bh1", "final_sigmas_type": "sigma_min"}, "unipc", {}),
    "UniPC, not corrected": (UNIPC, {**LATENTS, "disable_corrector": [0, 2]}, "unipc", {}),
    "UniPC of flow": (
        UNIPC,
        {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        "unipc",
        {},
    ),
    "flow": (FLOW, {"shift": 3.0}, "ddim", {}),
    "flow, dynamic shift": (FLOW, {"use_dynamic_shifting": True}, "ddim", {"mu": 0.8}),
    "flow, given levels": (FLOW, {"shift": 3.0}, "ddim", {"steps": None, "sigmas": [1.0, 0.7, 0.4, 0.1]}),
    "EDM": ("EDMEuler", {}, "ddim", {}),
    "EDM, 2M": ("EDMDPMSolverMultistep", {}, "dpm-solver++", {}),
}  # fmt: skip


@pytest.mark.parametrize("case", SAME.values(), ids=SAME)
def test_sample_is_that_of_diffusers(case):
    """Allow rounding only: 1e-5 of the scale."""
    kind, words, solver, times = case
    theirs = getattr(diffusers, f"{kind}Scheduler")(**words)
    ours = SolverScheduler.from_config(theirs.config, solver=solver)
    times = {"steps": FEW, **times}
    expected = draw(theirs, **times)
    assert apart(draw(ours, **times), expected) < 1e-5
    assert len(ours.timesteps) == len(theirs.timesteps)
    assert ours.num_inference_steps == (theirs.num_inference_steps or len(theirs.timesteps))


def test_levels_of_eulers_scheduler_are_scaled_to_what_the_network_sees():
    theirs = diffusers.EulerDiscreteScheduler(**LATENTS)
    ours = SolverScheduler.from_config(theirs.config, solver="ddim", levels="EulerDiscreteScheduler")
    assert apart(draw(ours), draw(theirs)) < 1e-5
    assert ours.init_noise_sigma == pytest.approx(
        float(theirs.sigmas[0] / (1 + theirs.sigmas[0] ** 2) ** 0.5), rel=1e-6
    )


def test_configuration_of_another_scheduler_gives_what_diffusers_makes_of_it():
    """Check that, as in diffusers, the other scheduler's defaults are not taken over."""
    other = diffusers.DDIMScheduler(**SD).config
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(other)
    assert apart(draw(SolverScheduler.from_config(other, solver="dpm-solver++")), draw(theirs)) < 1e-5


def test_given_times_where_diffusers_takes_none():
    ours = SolverScheduler(solver="ddim", clip_sample=False)
    ours.set_timesteps(timesteps=[900, 600, 100])
    assert ours.timesteps.tolist() == [900, 600, 100]
    alphas = diffusers.DDIMScheduler().alphas_cumprod
    assert ours.sigmas[:3].tolist() == pytest.approx(
        [float(((1 - a) / a) ** 0.5) for a in alphas[[900, 600, 100]]], rel=1e-4
    )
    assert ours.sigmas[-1] == 0


@pytest.mark.parametrize("name", ["VQDiffusionScheduler", "CMStochasticIterativeScheduler", "SCMScheduler"])
def test_configuration_without_levels_that_are_known_is_refused(name):
    """Consistency models have keywords of EDM, but other levels and times."""
    config = {"_class_name": name, "num_vec_classes": 3, "num_train_timesteps": 40, "sigma_data": 0.5, "rho": 7.0}
    with pytest.raises(ValueError, match=f"config must come from a scheduler .* got {name}"):
        SolverScheduler.from_config(config)


@pytest.mark.parametrize("name", ["Lines", "KarrasVeScheduler"])
def test_levels_that_are_unknown_are_refused(name):
    with pytest.raises(ValueError, match=f"levels must be one of diffusers' .* got '{name}'"):
        SolverScheduler(levels=name)


def test_sigmas_where_the_kind_takes_none_are_refused():
    with pytest.raises(ValueError, match="sigmas must not be given, because DPMSolverMultistepScheduler"):
        SolverScheduler().set_timesteps(sigmas=[3.0, 1.0])


def test_every_word_of_diffusers_is_known():
    words = levels.words()
    assert {
        "beta_schedule",
        "use_karras_sigmas",
        "shift",
        "sigma_data",
        "clip_sample",
        "timestep_spacing",
    } <= words.keys()
    assert words["num_train_timesteps"] == 1000
    assert words["clip_sample"] is None  # DDIM clips, DPM-Solver does not
