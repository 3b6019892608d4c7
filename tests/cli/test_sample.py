"""Command `sample`: files, output, and errors."""

import re

import numpy as np
import pytest
from commands import interrupting, refusal, run
from PIL import Image

import gms_fast
from gms_fast import solvers, statistics

pytestmark = pytest.mark.usefixtures("one_thread")


def test_sample_writes_a_grid_and_says_what_it_did(tmp_path, capsys, model):
    out = tmp_path / "x.png"
    assert run("sample", "--model", model, "--steps", 3, "--n", 5, "--device", "cpu", "--out", out) == 0
    said = capsys.readouterr().out
    assert re.fullmatch(rf"5 images in \d+\.\d\d s, 4 network calls, backend \w+: {out}\n", said)
    with Image.open(out) as picture:
        assert picture.size == (2 * (3 * 10 + 2), 2 * (2 * 10 + 2))
    assert [p.name for p in tmp_path.iterdir()] == ["x.png"]


def drawn(tmp_path, model, *options):
    out = tmp_path / "x.npz"
    assert run("sample", "--model", model, "--steps", 3, "--n", 5, "--out", out, "--force", *options) == 0
    with np.load(out) as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_sample_writes_arrays(tmp_path, model):
    arrays = drawn(tmp_path, model, "--seed", 3)
    assert arrays["images"].shape == (5, 1, 8, 8)
    assert arrays["images"].dtype == np.float32
    assert abs(arrays["images"]).max() <= 1
    assert (arrays["seed"], arrays["steps"], arrays["solver"]) == (3, 3, "gms")


def test_sample_does_not_depend_on_the_batch_size_but_on_the_seed(tmp_path, capsys, model):
    whole = drawn(tmp_path, model)["images"]
    capsys.readouterr()
    parts = drawn(tmp_path, model, "--batch-size", 2)["images"]
    assert " 12 network calls" in capsys.readouterr().out
    np.testing.assert_allclose(parts, whole, atol=1e-4)
    assert not np.allclose(drawn(tmp_path, model, "--seed", 1)["images"], whole, atol=0.1)


@pytest.mark.parametrize(("calls", "done"), [(4, 2), (11, 4)])
def test_sample_interrupted_keeps_the_batches_that_are_finished(tmp_path, capsys, monkeypatch, model, calls, done):
    """Four network calls per batch, two images in each but the last."""
    whole, out = drawn(tmp_path, model, "--batch-size", 2, "--seed", 3)["images"], tmp_path / "cut.npz"
    command = ("sample", "--model", model, "--steps", 3, "--n", 5, "--batch-size", 2, "--seed", 3, "--out", out)
    capsys.readouterr()
    with monkeypatch.context() as patch:
        interrupting(patch, calls)
        assert run(*command) == 130
    said = capsys.readouterr()
    assert said.out == ""
    assert re.fullmatch(
        rf"gms-fast: interrupted; {done} of 5 images, the first ones of --seed 3, are in {out}: "
        "the same command with --force draws them all",
        said.err.splitlines()[-1],
    )
    with np.load(out) as arrays:
        assert np.array_equal(arrays["images"], whole[:done])
        assert (arrays["seed"], arrays["steps"], arrays["solver"]) == (3, 3, "gms")
    assert run(*command, "--force") == 0
    with np.load(out) as arrays:
        assert np.array_equal(arrays["images"], whole)
    assert {p.name for p in tmp_path.iterdir()} == {"x.npz", "cut.npz"}


def test_sample_interrupted_before_anything_is_finished_writes_nothing(tmp_path, capsys, monkeypatch, model):
    out = tmp_path / "x.png"
    for before in (b"", b"precious"):
        out.write_bytes(before) if before else None
        with monkeypatch.context() as patch:
            interrupting(patch, 3)
            command = ("sample", "--model", model, "--steps", 3, "--n", 5, "--batch-size", 2, "--out", out, "--force")
            assert run(*command) == 130
        assert "gms-fast: interrupted; none of 5 images was finished\n" in capsys.readouterr().err
        assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])


def test_sample_that_cannot_write_leaves_what_was_there(tmp_path, monkeypatch, model):
    out = tmp_path / "x.npz"
    out.write_bytes(b"precious")

    def full(file, **_):
        file.write(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", full)
        assert run("sample", "--model", model, "--steps", 3, "--n", 1, "--out", out, "--force") == 130
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("x.npz", b"precious")]


@pytest.mark.parametrize(
    "options",
    [("--solver", s) for s in ("ddim", "gms:fit=free", "gms:fit=gaussian,component=element", "ddpm", "er-sde:order=2")],
)
def test_sample_takes_solvers_and_their_options(tmp_path, model, options):
    assert np.isfinite(drawn(tmp_path, model, *options)["images"]).all()


def test_sample_takes_statistics_of_the_model(tmp_path, capsys):
    options = ("--steps", 5, "--n", 1, "--solver")
    both = ("dpm-solver-v3", "dpm-solver-v3:statistics=digits")
    named, found = (drawn(tmp_path, "digits", *options, text)["images"] for text in both)
    assert np.array_equal(named, found)
    capsys.readouterr()
    assert "measured for shape" in refusal(
        capsys, "sample", "--model", "digits", *options, "dpm-solver-v3:statistics=mnist", "--out", tmp_path / "y.png"
    )


def test_sample_teleports_and_draws_elements_together(tmp_path, capsys):
    known, model = statistics.load_gaussian("digits"), gms_fast.load("digits")
    for text, solver in (
        ("teleport:until=5 then gms", solvers.Teleport(known, 5.0, solvers.GMS())),
        ("teleport:skip=0.25 then er-sde", solvers.Teleport(known, skip=0.25, then=solvers.ERSDE())),
        ("gms:covariance=digits,switch=0", solvers.GMS(covariance=known, switch=0)),
        ("teleport:until=5 then gms:switch=2", solvers.Teleport(known, 5.0, solvers.GMS(covariance=known, switch=2))),
    ):
        got = drawn(tmp_path, "digits", "--steps", 4, "--n", 2, "--solver", text)["images"]
        want = gms_fast.sample(model, 4, solver=solver, n=2).clamp(-1, 1).numpy()
        np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    capsys.readouterr()
    refused = ("sample", "--model", "digits", "--out", tmp_path / "y.png")
    assert "statistics must be of samples of shape (1, 8, 8)" in refusal(
        capsys, *refused, "--solver", "teleport:until=5,statistics=mnist then ddim"
    )
    assert "until must lie between" in refusal(capsys, *refused, "--solver", "teleport:until=500 then gms")
    assert "has no option switch: ddim accepts eta" in refusal(capsys, *refused, "--solver", "ddim:switch=2")


def test_sample_never_overwrites_unless_told_to(tmp_path, capsys, model):
    out = tmp_path / "x.png"
    out.write_text("precious")
    assert "add --force" in refusal(capsys, "sample", "--model", model, "--out", out)
    assert out.read_text() == "precious"
    assert run("sample", "--model", model, "--steps", 1, "--n", 1, "--out", out, "--force") == 0
    assert out.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--out", "x.gif"), "--out must end in .png or .npz: got x.gif"),
        (("--out", "gone/x.png"), "there is no folder gone"),
        (("--device", "toaster"), "got 'toaster'"),
        (("--device", "cuda:99"), "--device cuda:99 is not available"),
        (("--device", "hpu"), "--device hpu is not available: torch "),
        (("--device", "meta"), "--device must not be meta, whose tensors hold no numbers: got 'meta'"),
        (("--model", "gone"), "nothing exists at gone"),
        (("--solver", "magic"), "magic"),
        (("--solver", "ddim:statistics=mnist"), "has no option statistics: ddim accepts eta"),
        (("--solver", "dpm-solver-v3"), "needs statistics=STATISTICS, a file written by gms-fast statistics: there"),
        (("--solver", "ddim:fit=free"), "has no option fit: ddim accepts eta"),
    ],
)
def test_sample_refuses_bad_input_in_one_line(tmp_path, capsys, monkeypatch, model, options, named):
    monkeypatch.chdir(tmp_path)
    assert named in refusal(capsys, "sample", "--model", model, *options)
    assert list(tmp_path.iterdir()) == []


def test_sample_takes_a_table(tmp_path, capsys, model):
    refused = ("sample", "--model", model, "--out", tmp_path / "y.png")
    assert "there is no ggdm-10.safetensors for the model" in refusal(capsys, *refused, "--solver", "ggdm")
    assert "table must be a file or one of mnist/10, mnist/5" in refusal(capsys, *refused, "--solver", "ggdm:table=no")
    assert "made for 5 steps, not 3" in refusal(capsys, *refused, "--solver", "ggdm:table=mnist/5", "--steps", 3)
    assert "network" in refusal(capsys, *refused, "--solver", "ggdm:table=mnist/5", "--steps", 5)
