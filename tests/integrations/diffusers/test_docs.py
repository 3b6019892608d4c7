"""The page of the schedulers: its code runs as it stands, and it lists every scheduler."""

import inspect
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


@pytest.mark.parametrize("name", [name for name in gms_fast.__all__ if name.endswith("Scheduler")])
def test_docstring_describes_every_keyword(name):
    kind = getattr(gms_fast, name)
    arguments = kind.__doc__.partition("Args:\n")[2].partition("\n\n")[0]
    described = re.findall(r"^ +(\w+): ", arguments, re.MULTILINE)
    assert sorted(described) == sorted(set(described))
    assert set(inspect.signature(kind).parameters) <= set(described)


def test_every_scheduler_is_listed():
    known = [name for name in gms_fast.__all__ if name.endswith("Scheduler")]
    assert len(known) == 7
    assert all(f"| `{name}` |" in PAGE for name in known)
    assert "solver" in walks.GRIDS
