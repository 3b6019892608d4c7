"""Objects for tests of written files, and names of leftover files."""

import torch

from gms_fast.models import MomentUNet

LEFT = ".x.0123abcd.partial"  # left by a killed writer of `x`


def names(folder):
    return {path.name for path in folder.iterdir()}


def tiny(**changes):
    torch.manual_seed(0)
    size = {"image_size": 4, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    return MomentUNet(**{**size, "attention_resolutions": (), "head": None, **changes})
