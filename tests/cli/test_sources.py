"""Options that take a name or a path: one rule, and nothing is guessed."""

import argparse
from pathlib import Path

import numpy as np
import pytest
from commands import refusal, run

import gms_fast
from gms_fast import data
from gms_fast.cli import sources
from gms_fast.quality import extractors

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a run of `generate` in a folder called digits, without images."""
    monkeypatch.chdir(tmp_path)
    command = ("generate", "--model", "digits", "--n", 70, "--steps", 2, "--features", "digits", "--form", "none")
    assert run(*command, "--out", "digits") == 0
    assert run(*command, "--out", "digits") == 0  # resumed: what a command writes is not what it reads
    return tmp_path


@pytest.mark.parametrize(
    ("command", "option"),
    [
        (("evaluate", "--samples", "digits", "--reference", "x.npy", "--features", "pixels"), "--samples"),
        (("evaluate", "--samples", "x.npy", "--reference", "digits", "--features", "pixels"), "--reference"),
        (("evaluate", "--model", "mnist", "--data", "digits", "--out", "runs"), "--data"),
        (("evaluate", "--model", "digits@bfloat16", "--out", "runs"), "--model"),
        (("statistics", "--gaussian", "--data", "digits", "--out", "x.safetensors"), "--data"),
        (("train", "--data", "digits", "--out", "runs"), "--data"),
        (("train", "--data", "x.npy", "--labels", "digits", "--out", "runs"), "--labels"),
        (("train-heads", "--network", "digits", "--data", "x.npy", "--out", "runs"), "--network"),
        (("sample", "--model", "digits", "--out", "x.png"), "--model"),
        (("search", "--model", "digits", "--data", "x.npy", "--out", "runs"), "--model"),
    ],
)
def test_a_name_that_is_also_a_folder_is_refused(here, capsys, command, option):
    capsys.readouterr()
    said = refusal(capsys, *command)
    assert f"error: {option} digits" in said
    assert "and also a folder here: write ./digits for the folder, or rename it" in said


def test_a_path_is_written_with_a_slash(here, capsys, pictures):
    command = ("evaluate", "--samples", "./digits", "--features", "digits")  # the folder; a network is no folder
    assert run(*command, "--reference", pictures) == 2  # 16 images are too few for its features
    assert "must have more than 64 rows" in capsys.readouterr().err
    Path("digits").rename("other")
    assert run("evaluate", "--samples", "./other", "--features", "digits", "--reference", "digits") == 0
    said = capsys.readouterr().out
    assert "samples: 70 of other/measured.safetensors" in said
    assert "reference: 1,797 of digits" in said


@pytest.mark.parametrize(
    "pair",
    [
        ("./digits", "digits/"),
        ("./digits", "digits/measured.safetensors"),
        ("linked", "./digits"),
        ("mnist5k", "mnist5k"),
    ],
)
def test_samples_are_not_their_own_reference(here, capsys, pair):
    Path("linked").symlink_to("digits")
    capsys.readouterr()
    command = ("evaluate", "--features", "pixels", "--samples", pair[0], "--reference", pair[1])
    assert "--samples and --reference must be different images: got " in refusal(capsys, *command)


def test_files_and_import_paths_are_no_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("pixels").touch()
    Path("gone.npy").touch()
    given = argparse.Namespace(features=sources.Features("pixels"), out=None)
    with pytest.raises(ValueError, match="--features pixels is an embedded feature network and also a file here"):
        sources.settle(given)
    given = argparse.Namespace(features=sources.Features("./pixels"), data=sources.Data("gone.npy"))
    sources.settle(given)
    assert [type(given.features), given.data] == [str, "gone.npy"]


def test_a_path_object_is_never_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("digits").mkdir()
    np.savez("digits/0.npz", images=np.zeros((3, 1, 4, 4), np.uint8), index=np.arange(3))
    assert data.load(Path("digits")).shape == data.load("./digits").shape == (3, 1, 4, 4)
    assert data.stream(Path("digits")).count == 3
    assert data.load("digits").shape == (1797, 1, 8, 8)
    with pytest.raises(ValueError, match="features must be pixels"):
        extractors.load(Path("digits"))
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        gms_fast.load(Path("digits"))
