"""Text pipelines of tiny random parts, with our schedulers and diffusers' of the same kind."""

import pytest
import torch
from scheduler_loops import apart, normals

diffusers = pytest.importorskip("diffusers")
pytest.importorskip("transformers")
from gms_fast import ERSDEScheduler, SolverScheduler  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]

LATENTS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PICTURE, MASK = normals(2, 3, 16, 16).tanh(), (torch.arange(16) > 7).float().expand(2, 1, 16, 16)
KINDS = {
    "dpm-solver++": ("DPMSolverMultistep", LATENTS),
    "unipc": ("UniPCMultistep", LATENTS),
    "ddim": ("DDIM", {**LATENTS, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1}),
}
CALLS = {
    "StableDiffusionPipeline": {"height": 16, "width": 16},
    "StableDiffusionImg2ImgPipeline": {"image": PICTURE, "strength": 0.6},
    "StableDiffusionInpaintPipeline": {
        "image": PICTURE, "mask_image": MASK, "strength": 0.7, "height": 16, "width": 16,
    },
}  # fmt: skip


def made(kind, *arguments, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return kind(*arguments, **options).eval()


def vae(**options):
    return made(
        diffusers.AutoencoderKL, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, **options,
    )  # fmt: skip


def stable_diffusion(name, scheduler, dtype=torch.float32):
    unet = made(
        diffusers.UNet2DConditionModel, sample_size=8, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=6, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip
    pipe = getattr(diffusers, name)(
        vae=vae(latent_channels=4).to(dtype), text_encoder=None, tokenizer=None, unet=unet.to(dtype),
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, seeds=(1, 2), dtype=torch.float32, **call):
    """Latents, guided away from a negative prompt."""
    prompts = [normals(5, 6, seed=10 + seed).to(dtype) for seed in seeds]
    negative = normals(5, 6, seed=9).to(dtype).expand(len(seeds), 5, 6)
    return pipe(
        prompt_embeds=torch.stack(prompts), negative_prompt_embeds=negative, num_inference_steps=6, guidance_scale=4.0,
        generator=[torch.Generator().manual_seed(seed) for seed in seeds], output_type="latent", **call,
    ).images  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("solver", KINDS)
def test_stable_diffusion_is_that_of_diffusers_scheduler(name, solver):
    kind, words = KINDS[solver]
    theirs = getattr(diffusers, f"{kind}Scheduler")(**words)
    ours = SolverScheduler.from_config(theirs.config, solver=solver)
    a, b = (draw(stable_diffusion(name, scheduler), **CALLS[name]) for scheduler in (ours, theirs))
    assert apart(a, b) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_weights_differ_by_their_rounding(dtype):
    """Bound the rounding of the state: 20 units of it for 6 guided steps, on both sides."""
    theirs = diffusers.DPMSolverMultistepScheduler(**LATENTS)
    ours = SolverScheduler.from_config(theirs.config, solver="dpm-solver++")
    call = {"height": 16, "width": 16, "dtype": dtype}
    a, b = (draw(stable_diffusion("StableDiffusionPipeline", s, dtype), **call) for s in (ours, theirs))
    assert a.dtype == dtype
    assert apart(a.float(), b.float()) < 20 * torch.finfo(dtype).eps


def test_picture_of_a_batch_is_that_drawn_alone():
    pipe = stable_diffusion("StableDiffusionPipeline", ERSDEScheduler(**LATENTS))
    both = draw(pipe, height=16, width=16)
    assert apart(draw(pipe, (2,), height=16, width=16), both[1:]) < 1e-5


def flow_pipe(name, scheduler):
    """SD3 or Flux pipeline."""
    own = {"shift_factor": 0.06, "scaling_factor": 1.5, "use_quant_conv": False, "use_post_quant_conv": False}
    empty = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    if name.startswith("Flux"):
        transformer = made(
            diffusers.FluxTransformer2DModel, patch_size=1, in_channels=4, num_layers=1, num_single_layers=1,
            attention_head_dim=16, num_attention_heads=2, joint_attention_dim=8, pooled_projection_dim=8,
            axes_dims_rope=[4, 4, 8],
        )  # fmt: skip
    else:
        empty = (*empty, "text_encoder_3", "tokenizer_3")
        transformer = made(
            diffusers.SD3Transformer2DModel, sample_size=8, patch_size=1, in_channels=4, num_layers=1,
            attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=16,
            pooled_projection_dim=8, out_channels=4,
        )  # fmt: skip
    own["latent_channels"] = 1 if name.startswith("Flux") else 4
    pipe = getattr(diffusers, name)(
        transformer=transformer, vae=vae(**own), scheduler=scheduler, **dict.fromkeys(empty)
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("words", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
@pytest.mark.parametrize("name", ["FluxPipeline", "FluxImg2ImgPipeline", "StableDiffusion3Pipeline"])
def test_flow_matching_is_that_of_diffusers_scheduler(name, words):
    if name.startswith("Stable") and "use_dynamic_shifting" in words:
        words = {"shift": 1.5}
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(**words)
    ours = SolverScheduler.from_config(theirs.config, solver="ddim")
    call = {"image": PICTURE, "strength": 0.6} if "Img2Img" in name else {"height": 16, "width": 16}
    if name.startswith("Stable"):
        call |= {
            "negative_prompt_embeds": normals(2, 7, 8, seed=5),
            "negative_pooled_prompt_embeds": normals(2, 8, seed=6),
        }

    def drawn(scheduler):
        return flow_pipe(name, scheduler)(
            prompt_embeds=normals(2, 7, 8, seed=3), pooled_prompt_embeds=normals(2, 8, seed=4), guidance_scale=4.0,
            num_inference_steps=5, output_type="latent",
            generator=[torch.Generator().manual_seed(i) for i in range(2)], **call,
        ).images  # fmt: skip

    assert apart(drawn(ours), drawn(theirs)) < 1e-5
