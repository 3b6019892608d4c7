"""Pipelines: networks with moment heads, stock networks, and text to image."""

import json

import pytest
import torch
from scheduler_loops import apart, normals

diffusers = pytest.importorskip("diffusers")
import gms_fast  # noqa: E402
from gms_fast import GMSPipeline, GMSScheduler, MomentUNetModel, SolverScheduler  # noqa: E402
from gms_fast.models import MomentUNet  # noqa: E402
from gms_fast.prediction import Guided  # noqa: E402
from gms_fast.types import NoiseMoments  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def generators(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def quiet(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def tiny(**options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = MomentUNet(
            image_size=8, model_channels=32, channel_mult=(1,), num_res_blocks=1, in_channels=1, **options
        )
        for weight in model.parameters():
            torch.nn.init.normal_(weight, std=0.1)
        return model.eval()


@pytest.mark.parametrize("options", [{}, {"moments": "central", "schedule": gms_fast.schedules.VPCosine(T=100)}])
def test_pipeline_draws_what_sample_does(options):
    """Use the same start and seeds; the network is called at its own unit of time."""
    model = tiny(**options)
    pipe = quiet(GMSPipeline.of(model))
    start = normals(3, 1, 8, 8)
    made = pipe(3, 6, generator=generators(1, 2, 3), latents=start, output_type="latent").images
    seeds = torch.tensor([int(torch.randint(-(2**63), 2**63 - 1, (), generator=g)) for g in generators(1, 2, 3)])
    expected = gms_fast.sample(model, 5, x_T=start, seed=seeds, clip=(-1, 1))
    assert apart(made, expected) < 1e-5


def test_pipeline_goes_to_disk_and_back(tmp_path):
    pipe = quiet(GMSPipeline.of(tiny(moments="central")))
    before = pipe(2, 4, generator=generators(1, 2), output_type="np").images
    pipe.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["unet"] == ["gms_fast", "MomentUNetModel"]
    assert index["scheduler"] == ["gms_fast", "GMSScheduler"]
    again = quiet(GMSPipeline.from_pretrained(tmp_path))
    assert (again(2, 4, generator=generators(1, 2), output_type="np").images == before).all()
    assert before.shape == (2, 8, 8, 1)
    assert again(1, 2).images[0].size == (8, 8)


def test_whole_pipeline_on_disk_keeps_our_scheduler_and_its_table(tmp_path):
    """Load a stock pipeline with `DiffusionPipeline`, after its folder has moved."""
    source = gms_fast.storage.embedded.named("mnist", "empirical.safetensors")
    table = tmp_path / "of,mine.safetensors"
    table.write_bytes(source.read_bytes())
    scheduler = gms_fast.DPMSolverV3Scheduler(statistics=str(table), order=2)
    pipe = quiet(diffusers.DDPMPipeline(unet=stock(1, 28), scheduler=scheduler))
    expected = pipe(num_inference_steps=4, generator=generators(1)[0], output_type="np").images
    pipe.save_pretrained(tmp_path / "saved")
    table.unlink()
    moved = (tmp_path / "saved").rename(tmp_path / "moved")
    assert json.loads((moved / "model_index.json").read_text())["scheduler"] == ["gms_fast", "DPMSolverV3Scheduler"]
    again = quiet(diffusers.DiffusionPipeline.from_pretrained(moved))
    assert isinstance(again.scheduler, gms_fast.DPMSolverV3Scheduler)
    assert again.scheduler.config.statistics == str(moved / "scheduler" / table.name)
    made = again(num_inference_steps=4, generator=generators(1)[0], output_type="np").images
    assert apart(*map(torch.from_numpy, (made, expected))) < 1e-4  # the network's rounding
    by_text = SolverScheduler(solver=f"dpm-solver-v3:order=2,statistics={source}")
    by_text.save_pretrained(tmp_path / "text")
    again = SolverScheduler.from_pretrained(tmp_path / "text")
    assert again.config.solver == f"dpm-solver-v3:order=2,statistics={tmp_path / 'text' / source.name}"


def stock(channels=3, size=8, out=1, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return diffusers.UNet2DModel(
            sample_size=size, in_channels=channels, out_channels=out * channels, block_out_channels=(8, 8),
            layers_per_block=1, down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4, **options,
        ).eval()  # fmt: skip


@pytest.mark.parametrize(("solver", "kind"), [("ddim", "DDIM"), ("dpm-solver++", "DPMSolverMultistep")])
def test_stock_pipeline_is_that_of_diffusers(solver, kind):
    theirs = getattr(diffusers, f"{kind}Scheduler")()
    made = []
    for scheduler in (SolverScheduler.from_config(theirs.config, solver=solver), theirs):
        pipe = quiet(diffusers.DDPMPipeline(unet=stock(), scheduler=scheduler))
        made.append(pipe(batch_size=2, num_inference_steps=6, generator=generators(1, 2), output_type="np").images)
    assert apart(*map(torch.from_numpy, made)) < 1e-5


def test_classes_are_handed_on_and_guided():
    """Check that guidance shifts the noise and keeps its central moments."""
    unet, scheduler = stock(out=3, num_class_embeds=5), GMSScheduler(clip_sample=True)
    pipe, start = quiet(GMSPipeline(unet, scheduler)), normals(2, 3, 8, 8)
    labels, others = torch.tensor([1, 2]), torch.tensor([4, 4])
    plain = pipe(2, 3, generator=generators(1, 2), class_labels=labels, latents=start, output_type="latent").images
    guided = pipe(
        2, 3, generator=generators(1, 2), class_labels=labels, guidance_scale=2.0, negative_class_labels=others,
        latents=start, output_type="latent",
    ).images  # fmt: skip
    assert apart(plain, guided) > 1e-4
    scheduler.set_timesteps(3)
    x, g = start * scheduler.init_noise_sigma, generators(1, 2)
    for t in scheduler.timesteps:
        c, u = (unet(x, t, class_labels=y).sample for y in (labels, others))
        led = Guided(NoiseMoments(*c.chunk(3, 1)), u[:, :3], 2.0).merged(central=False)
        x = scheduler.step(led, t, x, generator=g).prev_sample
    assert torch.equal(guided, x)
    with pytest.raises(ValueError, match=r"class_labels must be given, .* \(2,\), because the network has 5 classes"):
        pipe(2, 3)
    with pytest.raises(ValueError, match="negative_class_labels must be given"):
        pipe(2, 3, class_labels=labels, guidance_scale=2.0)
    with pytest.raises(ValueError, match="class_labels must be None, because the network has no classes"):
        quiet(GMSPipeline.of(tiny()))(2, 3, class_labels=labels)


def test_callback_may_replace_the_state():
    pipe, seen = quiet(GMSPipeline.of(tiny(), gms_fast.ERSDEScheduler)), []

    def callback(pipeline, i, t, tensors):
        seen.append((pipeline is pipe, i, int(t)))
        return {"latents": 0 * tensors["latents"]} if i == 2 else None

    made = pipe(1, 3, output_type="latent", callback_on_step_end=callback).images
    assert [i for _, i, _ in seen] == [0, 1, 2]
    assert (made == 0).all()


def test_what_does_not_fit_is_refused():
    model = MomentUNetModel.of(tiny(moments="central"))
    with pytest.raises(ValueError, match=r"network_moments of the scheduler must be central, .*: got raw"):
        GMSPipeline(model, GMSScheduler())
    with pytest.raises(ValueError, match="model must have a VP schedule"):
        GMSPipeline.of(tiny(schedule=gms_fast.schedules.EDM()))
    for call in (lambda: GMSPipeline.of(torch.nn.Identity()), lambda: GMSPipeline(torch.nn.Identity(), GMSScheduler())):
        with pytest.raises(TypeError, match=r"must be a Mo\w+: got Identity; gms_fast.sample accepts every network"):
            call()
    pipe = quiet(GMSPipeline.of(tiny()))
    with pytest.raises(ValueError, match=r"latents must have shape \(2, 1, 8, 8\): got \(1, 1, 8, 8\)"):
        pipe(2, 3, latents=normals(1, 1, 8, 8))
    with pytest.raises(ValueError, match="output_type must be pil, np, pt or latent: got 'jpg'"):
        pipe(1, 1, output_type="jpg")
