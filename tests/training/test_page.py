"""docs/training.md: its lines run in order, with few steps."""

import re

import pytest
import torch
from places import ROOT

import gms_fast

pytestmark = pytest.mark.usefixtures("one_thread")

BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.DOTALL)
STEPS = re.compile(r"steps=\d+_000")


def classes(path):
    """A saved network of four classes."""
    small = {"image_size": 8, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    model = gms_fast.models.MomentUNet(**small, num_classes=4, schedule=gms_fast.schedules.VPLinear())
    gms_fast.save(model, path)


def test_lines_of_the_page_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    classes("runs/classes/model")
    scope = {"torch": torch}
    for block in BLOCKS:
        exec(STEPS.sub("steps=2, progress=False", block), scope)
        assert scope["x"].shape == (4, 1, 8, 8)
        assert scope["x"].isfinite().all()
    assert sum(len(STEPS.findall(block)) for block in BLOCKS) == 2
    assert capsys.readouterr().out == "trained\n"
