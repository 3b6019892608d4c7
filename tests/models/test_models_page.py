"""docs/models.md: its lines run in order, on small networks."""

import re

import pytest
import torch
from places import ROOT

import gms_fast

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "models.md").read_text(), re.DOTALL)
SIZE = {"sample_size": 8, "in_channels": 1, "out_channels": 1}


def networks():
    """Names that the page takes as given."""
    blocks = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    scheduler = diffusers.DDPMScheduler()
    network = diffusers.UNet2DModel(**SIZE, **blocks, layers_per_block=1)
    small = {"image_size": 8, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    return {
        "my_network": lambda x, t: x / 10,
        "pipeline": diffusers.DDPMPipeline(network, scheduler),
        "scheduler": scheduler,
        "class_model": gms_fast.models.MomentUNet(**small, num_classes=10, schedule=gms_fast.schedules.VPLinear()),
    }


@pytest.mark.filterwarnings("ignore:gms_fast.graphed runs the loop step by step", "ignore:clip")
def test_lines_of_the_page_run():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        scope = networks()
        for block in BLOCKS:
            scope.pop("x", None)
            exec(block, scope)
            assert scope["x"].shape == (4, 1, 8, 8)
            assert scope["x"].isfinite().all()
    assert len(BLOCKS) > 4
