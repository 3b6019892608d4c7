"""Command line in general: help, and errors in one line."""

import subprocess
import sys

import pytest
from commands import refusal

from gms_fast.cli import edits, main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["sample", "--help"],
        ["train", "--help"],
        ["statistics", "--help"],
        ["search", "--help"],
        ["info", "--help"],
        ["evaluate", "--help"],
        ["edit", "--help"],
        *(["edit", kind, "--help"] for kind in edits.KINDS),
    ],
)
def test_help_is_printed(capsys, argv):
    with pytest.raises(SystemExit) as exit_:
        main(argv)
    assert exit_.value.code == 0
    assert "usage: gms-fast" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        ([], "command"),
        (["paint"], "'paint'"),
        (["sample", "--steps", "0"], "--steps: must be an integer of at least 1: got '0'"),
        (["sample", "--n", "many"], "--n: must be an integer of at least 1: got 'many'"),
        (["sample", "--seed", "-1"], "--seed"),
        (["sample", "--colour"], "--colour"),
        (["sample", "--solver", "gms:fit=best", "--out", "none.png"], "fit must be"),
        (["edit"], "kind"),
        (["edit", "paint"], "'paint'"),
        (["edit", "vary", "--seed", "-1", "x.png"], "--seed"),
        (["train", "--out", "x"], "--data"),
        (["train", "--data", "x", "--out", "y", "--resume", "--force"], "--force"),
        (["train", "--data", "x", "--out", "y", "--channel-mult", "1,x"], "--channel-mult: must be an integer"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(capsys, argv, named):
    assert named in refusal(capsys, *argv)


def test_python_m_runs_the_command():
    done = subprocess.run([sys.executable, "-m", "gms_fast", "sample", "--n", "0"], capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.decode().startswith("gms-fast: error: argument --n")
