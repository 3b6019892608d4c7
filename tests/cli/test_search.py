"""Command `search`."""

import re

import numpy as np
import pytest
from commands import refusal, run

import gms_fast
from gms_fast import io, solvers

pytestmark = pytest.mark.usefixtures("one_thread")


FEW = ("--steps", 3, "--iterations", 2, "--batch-size", 4, "--device", "cpu")


def test_search_learns_a_table_that_sample_takes(tmp_path, capsys, model, pictures):
    out = tmp_path / "found"
    command = ("search", "--model", model, "--data", pictures, "--out", out, *FEW)
    assert run(*command) == 0
    said = capsys.readouterr().out
    assert re.search(r"score \S+ at first, \S+ after \d of 2 iterations", said)
    assert {p.name for p in out.iterdir()} == {"table.safetensors", "checkpoint.pt", "curve.csv"}
    drawing = said.splitlines()[1].partition("gms-fast ")[2].split()
    assert run(*drawing, "--n", 2, "--out", tmp_path / "x.npz") == 0
    capsys.readouterr()
    table = solvers.GGDMTable.load(out / "table.safetensors")
    want = gms_fast.sample(io.load(model), 3, solver=solvers.GGDM(table), n=2).clamp(-1, 1)
    np.testing.assert_allclose(np.load(tmp_path / "x.npz")["images"], want.numpy(), rtol=0, atol=1e-5)
    assert "add --resume" in refusal(capsys, *command)
    assert run(*command, "--resume") == 0
    capsys.readouterr()
    assert "batch_size: 4 there, 5 asked for" in refusal(capsys, *command, "--batch-size", 5, "--resume")
    (out / "mine").write_text("precious")
    assert run(*command, "--batch-size", 5, "--force") == 0
    assert (out / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--data", "gone.npy"), "gone.npy does not exist"),
        (("--features", "mnist5k"), "images must be (N, 1, 28, 28)"),
        (("--features", "cifar"), "features must be one of mnist5k, digits"),
        (("--spacing", "fast"), "spacing must be"),
        (("--batch-size", 1), "batch_size must be an integer of at least 2"),
        (("--lr", 0), "lr must be positive"),
    ],
)
def test_search_refuses_bad_input_in_one_line(tmp_path, capsys, model, pictures, options, named):
    out = tmp_path / "found"
    assert named in refusal(capsys, "search", "--model", model, "--data", pictures, "--out", out, *FEW, *options)
    assert not out.exists()
