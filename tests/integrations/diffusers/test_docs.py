"""The page of the schedulers: its code runs as it stands, and it lists them all."""

import re

import pytest
from places import ROOT

diffusers = pytest.importorskip("diffusers")
import gms_fast  # noqa: E402
from gms_fast.integrations.diffusers import walks  # noqa: E402

PAGE = (ROOT / "docs" / "diffusers.md").read_text()
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_code_runs_in_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
        exec(block, scope)
    assert len(scope["pictures"]) == 4
    assert isinstance(scope["pipe"].scheduler, gms_fast.GMSScheduler)
    assert len(scope["jumping"](num_inference_steps=3).images) == 1


def test_every_scheduler_is_listed():
    known = [name for name in gms_fast.__all__ if name.endswith("Scheduler")]
    assert len(known) == 7
    assert all(f"| `{name}` |" in PAGE for name in known)
    assert "solver" in walks.GRIDS
