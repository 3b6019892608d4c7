"""Model and images for commands."""

import numpy as np
import pytest
import torch

from gms_fast import io
from gms_fast.models.unet import MomentUNet


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """Saved network with small but non-zero moments."""
    torch.manual_seed(0)
    network = MomentUNet(
        image_size=8, in_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=()
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        network.out2[3].bias.fill_(1.0)
    path = tmp_path_factory.mktemp("models") / "tiny"
    io.save(network, path)
    return str(path)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).uniform(-1, 1, (16, 8, 8)).astype(np.float32))
    return path
