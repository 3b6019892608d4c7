"""Heads on the module before the output, which is found for known kinds of networks."""

import pytest
import torch
from host_networks import SpacedDiffusion, UNetModel
from torch import nn

from gms_fast.models import MomentHeads, hosts, wrap
from gms_fast.schedules import Flow, VPLinear

pytestmark = pytest.mark.usefixtures("one_thread")


def features(network):
    return hosts.of_kind(None, network).host(network, network, VPLinear(), "noise").features


class Named(nn.Module):
    """A network with modules of these names, and the attributes that identify its kind."""

    def __init__(self, names, **attributes):
        super().__init__()
        self.inner = nn.ModuleDict({name: nn.Conv2d(1, 1, 1) for name in names})
        for name, value in attributes.items():
            setattr(self, name, value)


class DiT(nn.Module):
    def __init__(self):
        super().__init__()
        self.x_embedder = self.t_embedder = self.y_embedder = self.final_layer = nn.Identity()
        self.learn_sigma = True


class Unet(nn.Module):
    def __init__(self):
        super().__init__()
        self.final_conv = nn.Conv2d(3, 3, 1)


Unet.__module__ = "denoising_diffusion_pytorch.somewhere"
EDM = {"img_resolution": 8, "img_channels": 1, "label_dim": 0}


@pytest.mark.parametrize(
    ("network", "want"),
    [
        (UNetModel(), "out"),
        (DiT(), "final_layer"),
        (Unet(), "final_conv"),
        (Named(["4x4_aux_norm", "8x8_block", "8x8_aux_norm", "8x8_aux_conv"], **EDM), "inner.8x8_aux_norm"),
        (Named(["enc", "out_norm"], **EDM), "inner.out_norm"),
        (Named(["out_conv"], **EDM), "inner.out_conv"),
        (Named(["conv"], **EDM), None),
    ],
    ids=["guided-diffusion", "dit", "denoising-diffusion", "ncsn++", "adm of edm", "edm2", "another"],
)
def test_module_before_the_output_is_known(network, want):
    assert features(network) == want


@torch.no_grad()
def test_learned_variance_gives_way_to_the_heads():
    model = MomentHeads((UNetModel(channels=1).eval(), SpacedDiffusion()))
    assert (model.features, model.layout.of_moments, model.prediction) == ("out", True, "noise")
    assert model(torch.zeros(2, 1, 4, 4), torch.full((2,), 300.0)).e3 is not None


SIZE = {"sample_size": 8, "in_channels": 4}
TEXT = {"encoder_hidden_states": torch.randn(1, 5, 16)}
ATTENTION = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2}
NETWORKS = {  # class of diffusers: its arguments, conditions of one sample, module and layout of the activations
    "UNet2DConditionModel": (
        {
            **SIZE, "out_channels": 4, "block_out_channels": (32, 32), "layers_per_block": 1, "cross_attention_dim": 16,
            "attention_head_dim": 8, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        },
        TEXT, "conv_norm_out", ("map", 32, 1),
    ),
    "PixArtTransformer2DModel": (
        {**SIZE, **ATTENTION, "out_channels": 8, "patch_size": 2, "caption_channels": 16, "cross_attention_dim": 16},
        TEXT, "proj_out", ("tokens", 16, 2),
    ),
    "SD3Transformer2DModel": (
        {
            **SIZE, **ATTENTION, "out_channels": 4, "patch_size": 2, "joint_attention_dim": 16,
            "caption_projection_dim": 16, "pooled_projection_dim": 8, "pos_embed_max_size": 8,
        },
        {**TEXT, "pooled_projections": torch.randn(1, 8)}, "proj_out", ("tokens", 16, 2),
    ),
    "UNet1DModel": (
        {
            "sample_size": 32, "in_channels": 3, "out_channels": 3, "time_embedding_type": "positional",
            "use_timestep_embedding": True, "out_block_type": "OutConv1DBlock", "block_out_channels": (32, 64),
            "layers_per_block": 1, "down_block_types": ("DownResnetBlock1D", "DownResnetBlock1D"),
            "up_block_types": ("UpResnetBlock1D",), "mid_block_type": "MidResTemporalBlock1D", "act_fn": "swish",
        },
        {}, "out_block", ("map", 32, 1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_networks_of_diffusers_take_heads(name):
    diffusers = pytest.importorskip("diffusers")
    options, condition, found, layout = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = getattr(diffusers, name)(**options).eval()
        schedule = Flow(t_max=0.999) if "SD3" in name else VPLinear()
        model = MomentHeads(wrap(network, schedule=schedule), condition=condition)
    assert (model.features, model.layout[:3]) == (found, layout)
    x, t = torch.randn(2, *model.sample_shape), torch.tensor([3.0, 600.0])
    moments = model(x, t, **{key: value.expand(2, *value.shape[1:]) for key, value in condition.items()})
    assert all(moment.shape == x.shape and moment.isfinite().all() for moment in moments)


def test_frames_that_go_into_the_batch_are_refused():
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.UNet3DConditionModel(
        **SIZE, out_channels=4, block_out_channels=(32,), layers_per_block=1, cross_attention_dim=16, norm_num_groups=8,
        down_block_types=("DownBlock3D",), up_block_types=("UpBlock3D",), attention_head_dim=8,
    ).eval()  # fmt: skip
    with pytest.raises(ValueError, match=r"features must be activations .* of 'conv_norm_out' is \(32, 8, 8\)"):
        MomentHeads(wrap(network, schedule="linear"), sample_shape=(4, 3, 8, 8), condition=TEXT)
