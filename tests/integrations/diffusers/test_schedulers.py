"""Scheduler interface of diffusers, point by point, and our own keywords."""

import copy
import json

import pytest
import torch
from scheduler_loops import apart, draw, network, normals

diffusers = pytest.importorskip("diffusers")
import gms_fast  # noqa: E402
from gms_fast import ERSDEScheduler, GMSScheduler, SolverScheduler, TeleportScheduler, UniPCScheduler  # noqa: E402
from gms_fast.types import NoiseMoments  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

LATENTS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
KINDS = {
    "any": lambda: SolverScheduler(solver="dpm-solver++:sde=true", **LATENTS),
    "er-sde": lambda: ERSDEScheduler(order=2, **LATENTS),
    "unipc": lambda: UniPCScheduler(order=3, variant="bh1", **LATENTS),
    "v3": lambda: gms_fast.DPMSolverV3Scheduler(statistics="mnist"),
    "teleport": lambda: TeleportScheduler(statistics="mnist", until=5.0, then="er-sde:order=2"),
    "ggdm": lambda: gms_fast.GGDMScheduler(table="mnist/5"),
    "gms": lambda: GMSScheduler(fit="free", clip_sample=True),
}


def moments(x):
    """Moments of noise that is Gaussian around 0.3 x."""
    e1 = 0.3 * x
    return torch.cat([e1, e1**2 + 0.2, e1**3 + 0.6 * e1], 1)


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def scheduler(request):
    return request.param()


def test_it_is_a_scheduler_of_diffusers(scheduler):
    assert isinstance(scheduler, diffusers.SchedulerMixin)
    assert isinstance(scheduler, diffusers.ConfigMixin)
    assert type(scheduler).__module__ == "gms_fast"
    assert getattr(gms_fast, type(scheduler).__name__) is type(scheduler)
    assert len(scheduler) == scheduler.config.num_train_timesteps == 1000
    assert scheduler.order == 1
    assert {"DDIMScheduler", "UniPCMultistepScheduler"} <= {kind.__name__ for kind in scheduler.compatibles}


def test_configuration_goes_to_disk_and_back(scheduler, tmp_path):
    scheduler.save_pretrained(tmp_path)
    again = type(scheduler).from_pretrained(tmp_path)
    expected = {word: v for word, v in scheduler.config.items() if word != "_use_default_values"}
    assert dict(again.config) == expected
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == type(scheduler).__name__


def test_configuration_serves_schedulers_of_diffusers_and_comes_back(scheduler):
    theirs = diffusers.DPMSolverMultistepScheduler.from_config(scheduler.config)
    assert theirs.config.beta_end == scheduler.config.beta_end
    assert type(scheduler).from_config(theirs.config).config.beta_end == scheduler.config.beta_end


def test_options_in_a_call_take_precedence():
    other = SolverScheduler.from_config(SolverScheduler(solver="ddim").config, solver="er-sde:order=2", beta_end=0.03)
    assert (other.config.solver, other.config.beta_end) == ("er-sde:order=2", 0.03)


def test_option_that_is_said_counts_before_what_diffusers_solver_had():
    """Include options that are set to their default."""
    theirs = diffusers.UniPCMultistepScheduler(**LATENTS, solver_order=3, solver_type="bh1", disable_corrector=[0])
    made = UniPCScheduler.from_config(theirs.config)._itself
    assert (made.order, made.variant, made.disable_corrector) == (3, "bh1", (0,))
    said = UniPCScheduler.from_config(theirs.config, order=2, variant="bh2")._itself
    assert (said.order, said.variant) == (2, "bh2")


def test_options_of_one_solver_are_not_those_of_another(tmp_path):
    """Names such as order belong to several solvers; a saved configuration has all options."""
    ERSDEScheduler(order=1, **LATENTS).save_pretrained(tmp_path)
    stored = ERSDEScheduler.load_config(tmp_path)
    for config in (stored, ERSDEScheduler(order=1).config):
        assert UniPCScheduler.from_config(config)._itself.order == 2
        assert ERSDEScheduler.from_config(config)._itself.order == 1
        assert SolverScheduler.from_config(config)._itself.order == 1
        assert SolverScheduler.from_config(config, solver="heun")._itself == gms_fast.solvers.Heun()
    same = gms_fast.DPMSolverV3Scheduler(statistics="mnist", corrector="same")
    assert UniPCScheduler.from_config(same.config)._itself.corrector is True
    assert gms_fast.DPMSolverV3Scheduler.from_config(same.config)._itself.corrector == "same"
    assert ERSDEScheduler.from_config(SolverScheduler(solver="er-sde:order=1").config)._itself.order == 1
    assert ERSDEScheduler.from_config(SolverScheduler(solver="unipc:order=1").config)._itself.order == 3


def test_levels_of_a_scheduler_that_was_ours_in_between_are_its_own():
    flow = SolverScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config, solver="ddim")
    words = {"use_flow_sigmas": True, "flow_shift": 7.0, "prediction_type": "flow_prediction"}
    theirs = diffusers.UniPCMultistepScheduler.from_config(flow.config, **words)
    assert apart(draw(SolverScheduler.from_config(theirs.config, solver="unipc")), draw(theirs)) < 1e-5
    own = gms_fast.GMSPipeline.of(gms_fast.load("digits")).scheduler
    draw(diffusers.DDIMScheduler.from_config(own.config), shape=(1, 1, 8, 8))
    assert GMSScheduler.from_config(own.config).config.grid == "solver"


def test_generator_is_left_alone_where_nothing_is_drawn():
    one, two = generators(1, 1)
    for kind in ("ddim", "dpm-solver++", "unipc", "heun", "er-sde:noise_scale=ode"):
        draw(SolverScheduler(solver=kind, **LATENTS), generator=one)
    assert torch.equal(one.get_state(), two.get_state())
    draw(SolverScheduler(solver="ddim:eta=0.1", **LATENTS), generator=one)
    assert not torch.equal(one.get_state(), two.get_state())


def test_heun_in_the_middle_of_flow_matching_is_refused():
    scheduler = SolverScheduler.from_config(diffusers.FlowMatchEulerDiscreteScheduler().config, solver="heun")
    scheduler.set_timesteps(4)
    scheduler.set_begin_index(2)
    x = normals(1, 4, 8, 8)
    with pytest.raises(ValueError, match="begin_index must be 0 for heun if the first noise level has no signal"):
        scheduler.step(x, scheduler.timesteps[2], x)


def test_times_fall_and_lie_where_they_are_asked_for():
    scheduler = ERSDEScheduler(**LATENTS)
    scheduler.set_timesteps(7, device="cpu")
    assert scheduler.timesteps.dtype == torch.int64
    assert len(scheduler.timesteps) == scheduler.num_inference_steps == 7
    assert (scheduler.timesteps.diff() < 0).all()
    assert len(scheduler.sigmas) == 8
    assert scheduler.sigmas[-1] == 0
    assert scheduler.init_noise_sigma == 1
    x = normals(2, 4, 8, 8)
    assert scheduler.scale_model_input(x, scheduler.timesteps[0]) is x


def test_step_gives_the_state_and_the_data_in_the_dtype_of_the_sample(scheduler):
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        scheduler.set_timesteps(5)
        x = normals(2, 1, 28, 28).to(dtype)
        t = scheduler.timesteps[0]
        seen = scheduler.scale_model_input(x, t)
        output = moments(seen) if isinstance(scheduler, GMSScheduler) else network(seen.float(), t).to(dtype)
        made = scheduler.step(output, t, x)
        assert made.prev_sample.dtype == made.pred_original_sample.dtype == dtype
        assert made.prev_sample.shape == made.pred_original_sample.shape == x.shape
        assert made.prev_sample.isfinite().all()


def test_tuple_and_output_are_the_same():
    (a, b), x = (ERSDEScheduler(**LATENTS) for _ in range(2)), normals(2, 4, 8, 8)
    for scheduler in (a, b):
        scheduler.set_timesteps(5)
    for t in a.timesteps:
        said = a.step(network(x, t), t, x, generators(1)[0] if t == a.timesteps[0] else None)
        (state,) = b.step(network(x, t), t, x, generators(1)[0] if t == a.timesteps[0] else None, return_dict=False)
        assert torch.equal(said.prev_sample, state)
        x = state


def test_pred_original_sample_is_the_estimate_at_that_time():
    scheduler = SolverScheduler(solver="ddim", **LATENTS, clip_sample=False)
    scheduler.set_timesteps(5)
    x, t = normals(2, 4, 8, 8), scheduler.timesteps[0]
    alpha = scheduler.alphas_cumprod[t] ** 0.5
    expected = (x - (1 - alpha**2) ** 0.5 * 0.2 * x) / alpha
    assert apart(scheduler.step(0.2 * x, t, x).pred_original_sample, expected) < 1e-5


def test_run_begins_where_a_pipeline_says_or_at_the_time_of_its_first_step():
    said, found = (UniPCScheduler(**LATENTS) for _ in range(2))
    x = normals(2, 4, 8, 8)
    for scheduler in (said, found):
        scheduler.set_timesteps(10)
        assert scheduler.step_index is None
        assert scheduler.begin_index is None
    said.set_begin_index(4)
    for i, t in enumerate(said.timesteps[4:], 4):
        a, b = (s.step(network(x, t), t, x).prev_sample for s in (said, found))
        assert torch.equal(a, b)
        assert said.step_index == found.step_index == i + 1
        x = a
    assert said.begin_index == 4
    said.set_timesteps(10)
    assert said.step_index is said.begin_index is None


def test_scheduler_that_is_copied_in_a_run_goes_on_alone():
    scheduler, x = UniPCScheduler(**LATENTS), normals(2, 4, 8, 8)
    scheduler.set_timesteps(5)
    first = scheduler.step(network(x, 1), scheduler.timesteps[0], x).prev_sample
    other = copy.deepcopy(scheduler)
    t = scheduler.timesteps[1]
    assert torch.equal(
        scheduler.step(network(first, t), t, first).prev_sample, other.step(network(first, t), t, first).prev_sample
    )


def test_time_that_is_not_listed_is_said():
    scheduler, x = ERSDEScheduler(**LATENTS), normals(1, 4, 8, 8)
    scheduler.set_timesteps(5)
    with pytest.warns(
        UserWarning, match="timestep must be one of .*timesteps: got 7, so the nearest one, 200, is used"
    ):
        scheduler.step(x, 7, x)


def test_seed_of_a_sample_does_not_depend_on_the_batch():
    scheduler = ERSDEScheduler(**LATENTS)
    both = draw(scheduler, generator=generators(3, 4))
    x = normals(2, 4, 8, 8)[1:]
    scheduler.set_timesteps(10)
    (generator,) = generators(4)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x, generator=[generator]).prev_sample
    assert torch.equal(x, both[1:])


def test_generator_is_drawn_from_once_a_run_and_goes_on():
    scheduler, (one,) = ERSDEScheduler(**LATENTS), generators(3)
    before = one.get_state().clone()
    first, second = draw(scheduler, generator=one), draw(scheduler, generator=one)
    assert apart(first, second) > 0.1
    one.set_state(before)
    assert torch.equal(draw(scheduler, generator=one), first)
    torch.manual_seed(5)
    third = draw(scheduler)
    torch.manual_seed(5)
    assert torch.equal(draw(scheduler), third)


def test_noise_of_the_user_takes_the_place_of_the_seeds():
    a, b = (SolverScheduler(solver="ddpm") for _ in range(2))
    x, z = normals(2, 3, 8, 8), normals(2, 3, 8, 8, seed=1)
    for scheduler in (a, b):
        scheduler.set_timesteps(5)
    t = a.timesteps[0]
    first = a.step(network(x, t), t, x, variance_noise=z).prev_sample
    other = b.step(network(x, t), t, x, variance_noise=0 * z).prev_sample
    std = ((first - other) / z).std()
    assert apart(first - other, z * ((first - other) / z).mean()) < 1e-5
    assert std < 1e-5


def test_eta_of_a_pipeline_is_that_of_ddim():
    asked, own = SolverScheduler(solver="ddim", **LATENTS), SolverScheduler(solver="ddim:eta=0.5", **LATENTS)
    x, z = normals(2, 4, 8, 8), normals(2, 4, 8, 8, seed=1)
    for scheduler in (asked, own):
        scheduler.set_timesteps(5)
    t = asked.timesteps[0]
    made = asked.step(network(x, t), t, x, variance_noise=z, eta=0.5).prev_sample
    assert torch.equal(made, own.step(network(x, t), t, x, variance_noise=z, eta=0.0).prev_sample)
    ready = ERSDEScheduler(**LATENTS)
    ready.set_timesteps(5)
    with pytest.raises(ValueError, match=r"eta must be 0 unless the solver is ddim: got 0\.5"):
        ready.step(x, ready.timesteps[0], x, eta=0.5)


def test_noise_is_added_at_the_level_of_a_time():
    ours, theirs = ERSDEScheduler(**LATENTS), diffusers.DDIMScheduler(**LATENTS)
    x, z = normals(3, 4, 8, 8), normals(3, 4, 8, 8, seed=1)
    times = torch.tensor([3, 500, 999])  # training times, before and after set_timesteps
    for _ in range(2):
        assert apart(ours.add_noise(x, z, times), theirs.add_noise(x, z, times)) < 1e-5
        assert apart(ours.get_velocity(x, z, times), theirs.get_velocity(x, z, times)) < 1e-5
        ours.set_timesteps(5)
    half = ours.add_noise(x.half(), z, times)
    assert half.dtype == torch.float16


def test_noise_is_added_at_the_level_that_a_run_has_reached():
    """As for image to image, and for inpainting that noises the known part again."""
    ours = ERSDEScheduler(**LATENTS, use_karras_sigmas=True)
    ours.set_timesteps(5)
    ours.set_begin_index(2)
    x, z = normals(1, 4, 8, 8), normals(1, 4, 8, 8, seed=1)
    level = float(ours.sigmas[2])
    expected = (x + level * z) / (1 + level**2) ** 0.5
    assert apart(ours.add_noise(x, z, ours.timesteps[2:3]), expected) < 1e-5
    for t in ours.timesteps[2:]:
        ours.step(0.1 * x, t, x)
    assert torch.equal(ours.add_noise(x, z, ours.timesteps[-1:]), x)


def test_flow_matching_scales_noise_as_its_pipelines_ask():
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    ours = SolverScheduler.from_config(theirs.config, solver="ddim")
    x, z = normals(1, 4, 8, 8), normals(1, 4, 8, 8, seed=1)
    for scheduler in (theirs, ours):
        scheduler.set_timesteps(5)
    t = theirs.timesteps[1:2]
    assert apart(ours.scale_noise(x, t, z), theirs.scale_noise(x, t, z)) < 1e-5
    assert torch.equal(ours.get_velocity(x, z, t), z - x)


def test_moments_in_channels_are_those_of_noise():
    """Compare 3C channels with `NoiseMoments`; 2C serve solvers of two moments."""
    x = normals(2, 1, 8, 8)
    made = []
    for output in (moments(x), NoiseMoments(*moments(x).chunk(3, 1))):
        scheduler = GMSScheduler(clip_sample=True)
        scheduler.set_timesteps(5)
        made.append(scheduler.step(output, scheduler.timesteps[0], x, generators(1)[0]).prev_sample)
    assert torch.equal(*made)
    second = SolverScheduler(solver="sn-ddpm")
    second.set_timesteps(5)
    assert second.step(moments(x)[:, :2], second.timesteps[0], x).prev_sample.isfinite().all()
    one = SolverScheduler(solver="ddim", clip_sample=False)
    one.set_timesteps(5)
    several = one.step(moments(x), one.timesteps[0], x).prev_sample
    one.set_timesteps(5)
    assert torch.equal(several, one.step(0.3 * x, one.timesteps[0], x).prev_sample)


def test_two_network_calls_a_step_are_listed_as_diffusers_lists_them():
    theirs = diffusers.HeunDiscreteScheduler(**LATENTS, timestep_spacing="leading")
    ours = SolverScheduler.from_config(theirs.config, solver="heun")
    assert ours.order == theirs.order == 2
    assert apart(draw(ours), draw(theirs)) < 1e-5
    assert len(ours.timesteps) == 2 * 10 - 1
    assert ours.num_inference_steps == 10


def test_jump_costs_no_call_and_happens_before_the_first():
    scheduler = KINDS["teleport"]()
    scheduler.set_timesteps(10)
    assert scheduler.timesteps[0] < 999
    x, t = normals(4, 1, 28, 28), scheduler.timesteps[0]
    seen = scheduler.scale_model_input(torch.cat([x, x]), t)  # guidance calls twice
    assert torch.equal(seen[:4], seen[4:])
    assert apart(seen[:4], x) > 0.01
    (alpha, sigma), known = scheduler._walk.levels[0], gms_fast.statistics.load_gaussian("mnist")
    first = scheduler._walk.stepper.plan.steps[0].coefficients
    expected = known.teleport(x, first.alpha_t, first.sigma_t, alpha, sigma)
    assert apart(seen[:4], expected) < 1e-5
    after = SolverScheduler(solver="er-sde:order=2")
    after.set_timesteps(timesteps=scheduler.timesteps)
    z = normals(4, 1, 28, 28, seed=1)
    made, same = (
        s.step(network(expected, t), t, y, variance_noise=z).prev_sample for s, y in ((scheduler, x), (after, expected))
    )
    assert apart(made, same) < 1e-5


def test_pipeline_that_does_not_let_a_teleport_jump_is_told():
    scheduler, x = KINDS["teleport"](), normals(4, 1, 28, 28)
    scheduler.set_timesteps(10)
    with pytest.raises(ValueError, match="scale_model_input must be called before the network"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_begin_index(3)  # in the middle there is nothing to jump over
    assert scheduler.step(x, scheduler.timesteps[3], x).prev_sample.isfinite().all()


@pytest.mark.parametrize("spacing", ["solver", "uniform", "quadratic", "log-snr", "angle", 7])
def test_grid_of_this_package_takes_as_many_calls_as_were_asked_for(spacing):
    if spacing == 7:
        with pytest.raises(ValueError, match="grid must be one of solver, uniform"):
            ERSDEScheduler(grid=spacing).set_timesteps(6)
        return
    for kind in (ERSDEScheduler, GMSScheduler):
        scheduler = kind(grid=spacing)
        for steps in (1, 6):
            scheduler.set_timesteps(steps)
            assert len(scheduler.timesteps) == steps
