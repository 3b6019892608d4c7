"""Pages for developers: examples run, named files exist, and the path of a seed is as said."""

import re
import traceback
from pathlib import Path

import pytest
from places import ROOT

import gms_fast
from gms_fast import prediction
from gms_fast.ops import native

PACKAGE = Path(gms_fast.__file__).resolve().parent
ARCHITECTURE, EXTEND = ((ROOT / "docs" / name).read_text() for name in ("architecture.md", "extend.md"))
TEXT = (ROOT / "CONTRIBUTING.md").read_text() + ARCHITECTURE + EXTEND
EXAMPLES = dict(re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```", EXTEND, re.DOTALL))
WAY = re.findall(
    r"^\| (`[^|]*) \| `([^|]*)` \|$", ARCHITECTURE.partition("## From a seed")[2].partition("## Rules")[0], re.MULTILINE
)


def test_there_is_an_example_of_each_kind():
    assert EXAMPLES.keys() == {"solver", "schedule", "prediction", "op"}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example_runs(name, monkeypatch, one_thread):
    monkeypatch.setattr(prediction, "TO_DATA", dict(prediction.TO_DATA))
    monkeypatch.setattr(prediction, "TO_NOISE", dict(prediction.TO_NOISE))
    said: dict = {}
    exec(compile(EXAMPLES[name], f"docs/extend.md, {name}", "exec"), said)
    assert name == "op" or said["x"].isfinite().all()


def test_the_way_of_a_seed_has_six_files_that_hand_it_on():
    assert len(WAY) == 6
    for files, handed in WAY:
        for file in re.findall(r"`([^`]*)`", files):
            assert handed in (ROOT / file).read_text(), file


@pytest.mark.skipif(not native.available, reason="there is no compiled module to arrive at")
def test_a_call_of_sample_arrives_at_the_compiled_module_by_these_files(monkeypatch):
    seen = []

    class Watched:
        def __getattr__(self, name):
            if name == "new_gms_step":
                seen.append(traceback.extract_stack())
            return getattr(compiled, name)

    compiled = native.compiled
    monkeypatch.setattr(native, "compiled", Watched())
    gms_fast.sample(gms_fast.load("digits"), 2, n=1)
    assert len(seen) == 2
    for stack in seen:
        files = {Path(frame.filename).resolve() for frame in stack}
        inside = {str(file.relative_to(PACKAGE.parent)) for file in files if file.is_relative_to(PACKAGE)}
        assert inside == {file.strip("`") for file, _ in WAY[:4]}


def test_files_that_are_named_are_there():
    named = set(re.findall(r"`((?:gms_fast|csrc|kernels|tests|bench|docs)/[\w/.]*)`", TEXT))
    assert len(named) > 20
    assert not [name for name in named if not (ROOT / name).exists()]
