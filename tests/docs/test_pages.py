"""The guides: every block of Python runs, and every command is understood."""

import re
import shlex
import textwrap

import pytest
from places import ROOT

from gms_fast import cli

DOCS = ROOT / "docs"
TEXTS = {page.name: page.read_text() for page in [*DOCS.glob("*.md"), ROOT / "CONTRIBUTING.md", ROOT / "README.md"]}
BLOCK = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
ELSEWHERE = {  # pages whose code needs networks, files or hosts made first: the tests that run it
    "README.md": "tests/architecture/test_readme.py",
    "diffusers.md": "tests/integrations/diffusers/test_docs.py",
    "editing.md": "tests/bench/test_editing_page.py",
    "extend.md": "tests/architecture/test_contributing.py",
    "generation.md": "tests/generation/test_page.py",
    "heads.md": "tests/models/test_heads_page.py",
    "hosts.md": "tests/models/hosts/test_page.py",
    "k_diffusion.md": "tests/integrations/test_k_diffusion.py",
    "models.md": "tests/models/test_models_page.py",
    "training.md": "tests/training/test_page.py",
}


def blocks(name, *languages):
    """The blocks of a page in one of these languages."""
    return [textwrap.dedent(code) for _, language, code in BLOCK.findall(TEXTS[name]) if language in languages]


HERE = [name for name in TEXTS if blocks(name, "python") and name not in ELSEWHERE]


@pytest.mark.parametrize("name", HERE)
def test_code_runs_in_order(name, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    scope: dict = {}
    for block in blocks(name, "python"):
        exec(compile(block, name, "exec"), scope)


@pytest.mark.parametrize(("name", "test"), ELSEWHERE.items())
def test_other_pages_are_run_elsewhere(name, test):
    assert blocks(name, "python")
    assert name in (ROOT / test).read_text()
    assert "exec(" in (ROOT / test).read_text()


def commands(name):
    """Lines of a page's shell blocks that call gms-fast, as lists of arguments."""
    for block in blocks(name, "", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            start = next((i + 1 for i, word in enumerate(words) if word in ("gms-fast", "gms_fast")), None)
            if start is not None and words[0] != "pip" and len(words) > start:
                yield [word for word in words[start:] if word != ".."]


@pytest.mark.parametrize("name", [name for name in TEXTS if any(commands(name))])
def test_commands_are_understood(name, monkeypatch):
    asked = []
    for module in cli.COMMANDS.values():
        monkeypatch.setattr(module, "run", lambda args: asked.append(args) or 0)
    shown = [line for line in commands(name) if line[0] != "COMMAND"]
    for line in shown:
        assert cli.main(line) == 0, line
    assert len(asked) == len(shown)
