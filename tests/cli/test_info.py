"""Command `info`."""

import re

import pytest
import torch
from commands import run

from gms_fast import io

pytestmark = pytest.mark.usefixtures("one_thread")


def test_info_tells_what_is_installed(capsys):
    assert run("info") == 0
    lines = dict(re.split(r":\s+", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == torch.__version__
    assert "torch" in lines["backends"]
    assert "gms" in lines["solvers"].split(", ")
    assert lines["with a file"].split(", ") == [
        "dpm-solver-v3:statistics=FILE (gms-fast statistics)",
        "teleport:statistics=FILE (gms-fast statistics --gaussian)",
        "ggdm:table=FILE (gms-fast search)",
    ]
    assert lines["schedules"] == "cosine, edm, flow, linear, vp, vp-cosine"
    assert lines["models"] == (", ".join(io.embedded()) or "none")
