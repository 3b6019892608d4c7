"""docs/generation.md: its commands are parsed, and its code runs on few images."""

import re
import shlex

import pytest
from places import ROOT

from gms_fast import data
from gms_fast.cli import generate, main

PAGE = (ROOT / "docs" / "generation.md").read_text()
COMMANDS = re.findall(r"^(?:gms-fast|torchrun .* -m gms_fast --) (generate .*)$", PAGE, re.MULTILINE)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_are_parsed(command, monkeypatch):
    seen = []
    monkeypatch.setattr(generate, "run", lambda args: seen.append(args) or 0)
    assert main(shlex.split(command)) == 0
    assert seen[0].n >= 20_000


def test_outputs_have_no_name_of_an_embedded_data_set():
    folders = re.findall(r"--(?:out|samples) (\S+)", PAGE)
    assert "runs/digits" in folders
    assert not {*folders} & {*data.names()}


def test_code_runs(tmp_path, monkeypatch, one_thread):
    """On digits of 8x8, which take a tenth of the time."""
    monkeypatch.chdir(tmp_path)
    [code] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for word, other in {'"mnist"': '"digits"', "50_000": "12"}.items():
        assert word in code
        code = code.replace(word, other)
    exec(code, said := {})
    assert said["images"].shape == (12, 1, 8, 8)
    assert "12" in str(said["report"])
