"""Adapter for diffusers, and for the other libraries where they are installed."""

import functools

import pytest
import torch

import gms_fast
from gms_fast.models import wrap
from gms_fast.schedules import Flow, VPLinear, from_diffusers
from gms_fast.solvers import DDPM, SNDDPM

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

UNET = {
    "sample_size": 8, "in_channels": 3, "out_channels": 3, "block_out_channels": (8, 8), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4, "attention_head_dim": 4,
}  # fmt: skip


def made(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(diffusers, name)(**options).eval()


def unet(**options):
    return made("UNet2DModel", **{**UNET, **options})


def text_unet():
    return made(
        "UNet2DConditionModel", sample_size=8, block_out_channels=(8, 8), layers_per_block=1, norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=6, attention_head_dim=4,
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def dit():
    return made(
        "DiTTransformer2DModel", num_attention_heads=2, attention_head_dim=4, in_channels=4, out_channels=8,
        num_layers=1, sample_size=8, num_embeds_ada_norm=10, norm_num_groups=2,
    )  # fmt: skip


def sd3():
    return made(
        "SD3Transformer2DModel", sample_size=8, in_channels=4, num_layers=1, attention_head_dim=4, patch_size=2,
        num_attention_heads=2, joint_attention_dim=6, caption_projection_dim=8, pooled_projection_dim=5,
        out_channels=4, pos_embed_max_size=8,
    )  # fmt: skip


def flux():
    network = made(
        "FluxTransformer2DModel", patch_size=1, in_channels=4, num_layers=1, num_single_layers=1,
        attention_head_dim=16, num_attention_heads=2, joint_attention_dim=6, pooled_projection_dim=5,
        axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return functools.partial(network, txt_ids=torch.zeros(2, 3), img_ids=torch.zeros(9, 3))


def times_of(network):
    """Return a list that records the times with which a network is called from now on."""
    asked = []

    def note(module, arguments, keywords):
        asked.append(float(keywords["timestep"][0]))

    network.register_forward_pre_hook(note, with_kwargs=True)
    return asked


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("make", "conditions", "shape", "clip"),
    [
        (unet, {}, (3, 8, 8), (-1.0, 1.0)),
        (lambda: unet(num_class_embeds=5), {"class_labels": torch.tensor([2])}, (3, 8, 8), (-1.0, 1.0)),
        (text_unet, {"encoder_hidden_states": normal(1, 2, 6)}, (4, 8, 8), None),
        (dit, {"class_labels": torch.tensor([2])}, (4, 8, 8), None),
        (sd3, {"encoder_hidden_states": normal(1, 2, 6), "pooled_projections": normal(1, 5)}, (4, 8, 8), None),
    ],
    ids=["unet", "classes", "text", "dit", "sd3"],
)
def test_networks(make, conditions, shape, clip):
    network = make()
    model = wrap((network, diffusers.DDPMScheduler()), **conditions)
    assert (model.sample_shape, model.clip, model.prediction) == (shape, clip, "noise")
    x, t = normal(3, *shape, seed=1), torch.full((3,), 321.0)
    with torch.no_grad():
        got = model(x, t)
        rows = {name: value.expand(3, *value.shape[1:]) for name, value in conditions.items()}
        want = network(x, timestep=t, **rows).sample
    torch.testing.assert_close(got if isinstance(got, torch.Tensor) else got.e1, want[:, : shape[0]])
    assert gms_fast.sample(model, 3, solver="ddim", n=2).shape == (2, *shape)
    if conditions:
        with pytest.raises(ValueError, match=f"{next(iter(conditions))} must be given"):
            gms_fast.sample(wrap((network, diffusers.DDPMScheduler())), 3, solver="ddim", n=2)


def test_the_sample_of_a_pipeline(monkeypatch):
    pipeline = diffusers.DDIMPipeline(unet(), diffusers.DDIMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    x_T = normal(2, 3, 8, 8)
    module = "diffusers.pipelines.ddim.pipeline_ddim.randn_tensor"
    monkeypatch.setattr(module, lambda *shape, **rest: x_T.clone())
    want = pipeline(2, num_inference_steps=10, output_type="np", use_clipped_model_output=True).images
    model = wrap(pipeline)  # uses the training schedule, although the scheduler is set to ten steps now
    assert model.schedule.T == 1000
    levels, timesteps, _ = from_diffusers(pipeline.scheduler)
    got = gms_fast.sample(model, solver="ddim", schedule=levels, timesteps=timesteps, x_T=x_T)
    torch.testing.assert_close(got.permute(0, 2, 3, 1) / 2 + 0.5, torch.from_numpy(want), rtol=0, atol=1e-5)


def test_learned_variance_as_the_scheduler_has_it(monkeypatch):
    """Compare with DDPMScheduler(variance_type="learned_range") over all steps, at v in (-1, 1)."""
    network = unet(out_channels=6)
    network.register_forward_hook(lambda *call: (torch.cat([call[2][0][:, :3], call[2][0][:, 3:].tanh()], 1),))
    scheduler = diffusers.DDPMScheduler(30, beta_end=0.3, variance_type="learned_range")
    z = normal(30, 2, 3, 8, 8, seed=1)
    x = x_T = normal(2, 3, 8, 8)
    model = wrap((network, scheduler))
    scheduler.set_timesteps(30)
    for i, t in enumerate(scheduler.timesteps):
        draw = "diffusers.schedulers.scheduling_ddpm.randn_tensor"
        monkeypatch.setattr(draw, lambda *shape, i=i, **rest: z[i])
        with torch.no_grad():
            x = scheduler.step(network(x, t, return_dict=False)[0], t, x).prev_sample
    times = list(range(29, -1, -1))
    got = gms_fast.sample(model, solver=SNDDPM(clip_pixel=None), timesteps=times, x_T=x_T, noise=lambda i: z[i])
    torch.testing.assert_close(got, x, rtol=0, atol=2e-5)  # 30 steps in float32 of 1/alpha up to 11


def test_a_second_half_of_unknown_meaning_is_refused():
    network = unet(out_channels=6)
    with pytest.raises(ValueError, match=r'moments must be "learned-range".*UNet2DModel returns 6 channels for 3'):
        gms_fast.sample(wrap((network, diffusers.DDPMScheduler())), 3, solver="ddim", n=1)
    model = wrap(network, schedule=VPLinear(), moments="learned-range")
    assert gms_fast.sample(model, 3, solver="sn-ddpm", n=1).shape == (1, 3, 8, 8)


def test_flows_are_asked_at_a_thousand_t():
    conditions = {"encoder_hidden_states": normal(1, 2, 6), "pooled_projections": normal(1, 5)}
    network = sd3()
    asked = times_of(network)
    gms_fast.sample(wrap(network, schedule=Flow(), **conditions), 2, solver="ddim", n=1)
    assert asked == [1000.0, 500.0]
    asked.clear()
    model = wrap((network, diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)), **conditions)
    assert (model.prediction, model.schedule.shift) == ("flow", 3.0)
    gms_fast.sample(model, 2, solver="ddim", n=1)
    assert asked == [1000.0, 750.0]
    asked.clear()
    gms_fast.sample(wrap(network, schedule=Flow(time_scale=1.0), **conditions), 2, solver="ddim", n=1)  # as it says
    assert asked == [1.0, 0.5]


@pytest.mark.parametrize("schedule", [None, Flow(), Flow(time_scale=1.0)])
def test_flux_is_asked_at_t(schedule):
    """Its pipeline divides the scheduler's times by 1000.

    Positions have no batch axis, so a partial binds them.
    """
    network = flux()
    asked = times_of(network.func)
    conditions = {"encoder_hidden_states": normal(1, 2, 6), "pooled_projections": normal(1, 5)}
    whole = network if schedule is not None else (network, diffusers.FlowMatchEulerDiscreteScheduler())
    model = wrap(whole, schedule=schedule, **conditions)
    assert len(list(model.parameters())) == len(list(network.func.parameters()))
    assert gms_fast.sample(model, 2, solver="ddim", n=2, shape=(9, 4)).shape == (2, 9, 4)
    assert asked == pytest.approx([1.0, 0.5], rel=1e-6)


def test_learned_time_embeddings_get_whole_numbers():
    model = wrap((unet(time_embedding_type="learned", num_train_timesteps=1000), diffusers.DDPMScheduler()))
    assert gms_fast.sample(model, 3, solver="ddim", n=1).shape == (1, 3, 8, 8)


def test_the_state_is_float32_where_the_network_is_narrower():
    model = wrap((unet().to(torch.bfloat16), diffusers.DDPMScheduler()))
    assert model.dtype == torch.bfloat16
    assert gms_fast.sample(model, 3, solver="ddim", n=1).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "coder", "clip"),
    [
        ({}, None, (-1.0, 1.0)),
        ({"clip_sample_range": 2.0}, None, (-2.0, 2.0)),
        ({"clip_sample": False}, None, None),
        ({}, "vqvae", None),
    ],
)
def test_data_range(options, coder, clip):
    parts = {"unet": unet(), "scheduler": diffusers.DDIMScheduler(**options), "vae": None, coder or "vae": coder}
    pipeline = type("Pipeline", (), {**parts, "__call__": lambda self: None})()
    assert wrap(pipeline).clip == clip


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unet, "schedule must be given: it cannot be read from UNet2DModel"),
        (lambda: (unet(), diffusers.IPNDMScheduler()), "scheduler must be one of diffusers' .*: got IPNDMScheduler"),
        (
            lambda: (unet(in_channels=6), diffusers.DDPMScheduler()),
            "with in_channels=6, out_channels=3; wrap a callable",
        ),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        wrap(make())


def test_a_known_schedule_and_prediction_need_no_known_scheduler():
    model = wrap((unet(), diffusers.IPNDMScheduler()), schedule=VPLinear(), prediction="v")
    assert (model.schedule.T, model.prediction) == (1000, "v")


@pytest.mark.parametrize("objective", ["pred_noise", "pred_x0", "pred_v"])
def test_denoising_diffusion_pytorch_itself(objective, monkeypatch):
    host = pytest.importorskip("denoising_diffusion_pytorch")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = host.Unet(8, dim_mults=(1, 2)).eval()
    diffusion = host.GaussianDiffusion(network, image_size=8, timesteps=30, objective=objective)
    z = normal(31, 2, 3, 8, 8)
    draws = iter(z)
    monkeypatch.setattr(torch, "randn", lambda *shape, **rest: next(draws))
    monkeypatch.setattr(torch, "randn_like", lambda *like, **rest: next(draws))
    want = 2 * diffusion.p_sample_loop((2, 3, 8, 8)) - 1
    monkeypatch.undo()
    times = list(range(29, -1, -1))
    solver = DDPM(clip_pixel=None)
    got = gms_fast.sample(wrap(diffusion), solver=solver, timesteps=times, x_T=z[0], noise=lambda i: z[i + 1])
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


@pytest.mark.parametrize("compute", [torch.float32, torch.bfloat16])
def test_float8_is_storage(compute):
    """Samples under layerwise casting stay close to those of the float32 network.

    x then comes in the dtype of the arithmetic. float8 keeps three bits of a weight, so it loses at most 2^-4 of it.
    """
    network, stored = unet(), unet()
    stored.load_state_dict(network.state_dict())
    stored.to(compute).enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=compute)
    seen = []
    stored.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].dtype))
    want, got = (gms_fast.sample(wrap(net, schedule=VPLinear()), 4, n=2, solver="ddim") for net in (network, stored))
    assert torch.float8_e4m3fn in {p.dtype for p in stored.parameters()}
    assert set(seen) == {compute}
    assert got.dtype == torch.float32
    assert (got - want).abs().mean() < 2.0**-4
