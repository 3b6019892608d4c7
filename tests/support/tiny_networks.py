"""Small networks with heads, and their outputs."""

import torch

from gms_fast.models.unet import MomentUNet
from gms_fast.schedules import VPCosine

TINY = {"image_size": 8, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}


def tiny(**options):
    """Return a small network whose weights all matter: none is zero, as some are initially."""
    torch.manual_seed(0)
    model = MomentUNet(**{**TINY, "attention_resolutions": (1,), "schedule": VPCosine(T=50), **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def outputs(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model(torch.randn(2, *model.sample_shape, generator=generator), torch.tensor([3.0, 700.0]))
