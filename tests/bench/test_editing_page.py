"""docs/editing.md: its commands parse, its code runs, and its images exist."""

import re

import pytest
import torch
from places import ROOT

from bench.docs import editing
from gms_fast.cli import edit, edits, main

PAGE = editing.PAGE.read_text()


def test_every_kind_of_edit_has_a_command():
    assert [words[:2] for words in editing.commands()] == [["edit", kind] for kind in edits.KINDS]


@pytest.mark.parametrize("words", editing.commands(), ids=lambda words: words[1])
def test_commands_are_parsed_and_find_their_pictures(words, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(edit, "run", lambda args: seen.append(args) or 0)
    assert main(words) == 0
    editing.prepare(tmp_path)
    [args] = seen
    assert all((tmp_path / path).exists() for path in [*args.pictures, *filter(None, [args.mask])])
    assert args.out.name == f"{args.kind}.png"


def test_code_runs(tmp_path, monkeypatch, one_thread):
    """Run the code on 8x8 digits, which takes a tenth of the time."""
    monkeypatch.chdir(tmp_path)
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
    small = {'"mnist"': '"digits"', '"mnist5k"': '"digits"', "28": "8", "14": "4"}
    for word, other in small.items():
        assert word in code
        code = code.replace(word, other)
    said: dict = {}
    with pytest.warns(UserWarning, match="graphed runs the loop step by step"):
        exec(compile(code, "docs/editing.md", "exec"), said)
    assert said["way"].shape == (7, 1, 8, 8)
    assert torch.equal(said["made"][:, :, :4], said["images"][:, :, :4])
    assert (said["again"] - said["images"]).square().mean().sqrt() < 0.2


def test_pictures_are_there():
    shown = re.findall(r"!\[[^\]]*\]\(([^)]*)\)", PAGE)
    assert all((ROOT / "docs" / name).exists() for name in shown)
    assert {f"editing/{path.name}" for path in editing.PICTURES.glob("*.png")} == set(shown)
