"""docs/heads.md: its code runs in order, on tiny networks of diffusers."""

import re

import numpy as np
import pytest
import torch
from places import ROOT

from bench.docs import readme

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.usefixtures("one_thread")

PAGE = (ROOT / "docs" / "heads.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
SIZE = {"sample_size": 8, "in_channels": 1, "out_channels": 1}


def pipeline():
    blocks = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return diffusers.DDPMPipeline(
        diffusers.UNet2DModel(**SIZE, **blocks, layers_per_block=1), diffusers.DDPMScheduler()
    )


def transformer():
    heads = {"num_layers": 1, "num_attention_heads": 1, "attention_head_dim": 16, "num_embeds_ada_norm": 10}
    return diffusers.DiTTransformer2DModel(**SIZE, patch_size=2, **heads).eval()


def test_lines_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipeline().save_pretrained("my-pipeline")
        np.save("my-images.npy", np.random.default_rng(0).uniform(-1, 1, (20, 8, 8)).astype(np.float32))
        scope = {"class_network": transformer()}
        assert sum("steps=4_000" in block for block in BLOCKS) == 3
        for block in BLOCKS:
            scope.pop("x", None)
            exec(block.replace("steps=4_000", "steps=2, progress=False"), scope)
            assert scope["x"].shape == (4, 1, 8, 8)
            assert scope["x"].isfinite().all()
    assert (tmp_path / "my-heads").is_dir()


def test_page_shows_the_committed_figures():
    assert readme.page(PAGE, readme.PAGES[ROOT / "docs" / "heads.md"]) == PAGE
