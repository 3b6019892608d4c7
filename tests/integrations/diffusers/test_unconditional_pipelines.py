"""Unconditional pipelines of diffusers, and the keywords that pipelines pass to a step."""

import pytest
import torch
from scheduler_loops import apart, normals

diffusers = pytest.importorskip("diffusers")
from gms_fast import ERSDEScheduler, SolverScheduler  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def pipeline(kind, training):
    """Pipeline of a tiny network, with its own scheduler."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        unet = diffusers.UNet2DModel(
            8, 1, 1, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4,
            down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
        )  # fmt: skip
    pipe = kind(unet.eval(), training)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe, **call):
    seeds = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipe(batch_size=2, generator=seeds, num_inference_steps=4, output_type="np", **call).images


@pytest.mark.parametrize("name", ["DDIMPipeline", "DDPMPipeline"])
def test_er_sde_draws_in_an_unconditional_pipeline(name):
    pipe = pipeline(getattr(diffusers, name), diffusers.DDPMScheduler())
    pipe.scheduler = ERSDEScheduler.from_config(pipe.scheduler.config)
    images = drawn(pipe)
    assert images.shape == (2, 8, 8, 1)
    assert (images == drawn(pipe)).all()


def test_ddim_draws_what_diffusers_does_there():
    pipe = pipeline(diffusers.DDIMPipeline, diffusers.DDIMScheduler())
    wanted = drawn(pipe, use_clipped_model_output=False)
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, solver="ddim")
    assert abs(drawn(pipe, use_clipped_model_output=False) - wanted).max() < 1e-5


def test_clipped_model_output_is_an_option_of_ddim():
    """Take the numbers of diffusers from the solver that the error names."""
    pipe = pipeline(diffusers.DDIMPipeline, diffusers.DDIMScheduler())
    wanted = drawn(pipe, use_clipped_model_output=True)
    config = pipe.scheduler.config
    pipe.scheduler = SolverScheduler.from_config(config, solver="ddim")
    with pytest.raises(ValueError, match=r"must be None or False: got True; .*ddim:clipped_noise=true"):
        drawn(pipe, use_clipped_model_output=True)
    pipe.scheduler = SolverScheduler.from_config(config, solver="ddim:clipped_noise=true")
    assert abs(drawn(pipe) - wanted).max() < 1e-5


def test_keywords_of_pipelines_are_taken():
    """Pass all keywords of text and unconditional pipelines at once."""
    scheduler = ERSDEScheduler()
    scheduler.set_timesteps(4)
    x = normals(2, 1, 8, 8)
    call = {"model_output": 0.3 * x, "timestep": scheduler.timesteps[0], "sample": x}
    more = {"generator": torch.Generator().manual_seed(0), "eta": 0.0, "use_clipped_model_output": None}
    [moved] = scheduler.step(**call, **more, return_dict=False, variance_noise=normals(2, 1, 8, 8))
    assert apart(moved, x) > 0
