"""Command `generate`: files, output, resuming, and errors."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from commands import interrupting, refusal, run
from generated import Net, made
from PIL import Image

import gms_fast
from bench.faults import kills
from gms_fast import io, shards
from gms_fast.cli import drawing
from gms_fast.images import grey_levels

pytestmark = pytest.mark.usefixtures("one_thread")
NAMES = ["000000000-000000003.npz", "000000004-000000006.npz"]


@pytest.fixture
def command(model, tmp_path):
    """Seven images, two at a time, four in a shard: four network calls per two images."""
    small = ("--n", 7, "--batch-size", 2, "--shard-size", 4, "--steps", 3, "--seed", 3, "--device", "cpu")
    return ("generate", "--model", model, *small, "--out", tmp_path / "out")


def drawn(folder):
    return np.concatenate([images for images, _ in shards.each(folder)])


def test_command_writes_shards_and_says_what_it_did(tmp_path, capsys, model, command):
    out = tmp_path / "out"
    assert run(*command) == 0
    said = capsys.readouterr()
    assert re.fullmatch(rf"7 images: 7 drawn here in \d+\.\d s, 0 there before, backend \w+: {out}\n", said.out)
    assert sorted(os.listdir(out)) == [*NAMES, "run.json"]
    whole = gms_fast.sample(gms_fast.load(model), 3, n=8, seed=3, batch_size=2)[:7]
    assert (abs(drawn(out).astype(int) - grey_levels(whole).numpy()) <= 1).all()
    before = kills.content(out)
    assert run(*command) == 0
    assert " 0 drawn here in " in (text := capsys.readouterr().out)
    assert " 7 there before, " in text
    assert kills.content(out) == before


def test_pictures_are_the_pixels_of_the_arrays(tmp_path, command):
    assert run(*command) == 0
    assert run(*command[:-1], tmp_path / "pictures", "--form", "png") == 0
    files = sorted((tmp_path / "pictures").glob("*/*.png"))
    assert [file.stem for file in files] == [f"{i:09d}" for i in range(7)]
    for file, want in zip(files, drawn(tmp_path / "out"), strict=True):
        with Image.open(file) as picture:
            assert np.array_equal(np.asarray(picture), want[0])


def test_command_shares_the_work_of_jobs(tmp_path, capsys, command):
    assert run(*command) == 0
    for share, count in (("2/2", 3), ("1/2", 4)):
        assert run(*command[:-1], tmp_path / "shared", "--shard", share) == 0
        assert f"{count} drawn here" in capsys.readouterr().out.splitlines()[-1]
    assert kills.content(tmp_path / "shared") == kills.content(tmp_path / "out")


@pytest.mark.parametrize("calls", [3, 11, 15])
def test_interrupted_command_says_how_to_go_on_and_does(tmp_path, capsys, monkeypatch, command, calls):
    with monkeypatch.context() as patch:
        interrupting(patch, calls)
        assert run(*command) == 130
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "gms-fast: interrupted; the same command continues from there\n")
    assert sorted(os.listdir(tmp_path / "out")) == [*NAMES[: calls // 8], "run.json"]
    assert run(*command) == 0
    assert f" {4 * (calls // 8)} there before" in capsys.readouterr().out
    assert run(*command[:-1], tmp_path / "whole") == 0
    assert kills.content(tmp_path / "out") == kills.content(tmp_path / "whole")


def test_verified_run_is_equal_or_named(tmp_path, capsys, command):
    out = tmp_path / "out"
    assert run(*command) == 0
    capsys.readouterr()
    for options, count in (
        (("--verify", 1), "7 images"),
        (("--verify", 0.3), "[34] images"),
        (("--verify",), "[12] i.*"),
    ):
        assert run(*command, *options) == 0
        assert re.fullmatch(rf"{count} drawn again: equal to those in {out}\n", capsys.readouterr().out)
    (out / NAMES[0]).write_bytes(b"")
    assert f"shard {out / NAMES[0]} is broken" in refusal(capsys, *command, "--verify", 1)
    assert (out / NAMES[0]).read_bytes() == b""


def test_broken_shard_is_made_anew(tmp_path, capsys, command):
    assert run(*command) == 0
    before = kills.content(tmp_path / "out")
    (tmp_path / "out" / NAMES[1]).write_bytes(b"half")
    with pytest.warns(UserWarning, match="it will be drawn again"):
        assert run(*command) == 0
    assert kills.content(tmp_path / "out") == before


def test_model_that_changed_in_between_is_refused_until_told(tmp_path, capsys):
    """Change the weights in the same folder."""
    io.save(kills.tiny(), tmp_path / "m")
    command = ("generate", "--model", tmp_path / "m", "--n", 3, "--steps", 2, "--out", tmp_path / "out")
    assert run(*command) == 0
    before = kills.content(tmp_path / "out")
    io.save(kills.tiny(1), tmp_path / "m")
    capsys.readouterr()
    for more in ((), ("--verify",)):
        said = refusal(capsys, *command, *more)
        assert f"out: {tmp_path / 'out'} holds another run; choose another folder: model: " in said
    assert kills.content(tmp_path / "out") == before
    assert run(*command, "--force") == 0
    assert kills.content(tmp_path / "out").keys() == before.keys()
    assert kills.content(tmp_path / "out") != before


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--seed", 4), "seed: 3 there, 4 asked for"),
        (("--steps", 4), "times: "),
        (("--solver", "ddim"), "solver: 'gms"),
        (("--n", 8), "n: 7 there, 8 asked for"),
        (("--batch-size", 4), "batch_size: 2 there, 4 asked for"),
        (("--form", "png"), "form: 'npz' there, 'png' asked for"),
    ],
)
def test_another_run_is_refused_in_one_line(capsys, command, options, named):
    assert run(*command) == 0
    capsys.readouterr()
    said = refusal(capsys, *command, *options)
    assert named in said
    assert "goes on" not in said


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--shard", "3/2"), "shard must be K/N with K from 1 to N, such as 3/8: got '3/2'"),
        (("--shard", "1/9"), "shard must be K/N with N at most 2, the number of shards: got 1/9"),
        (("--shard-size", 3), "shard_size must be a multiple of batch_size = 2: got 3"),
        (("--n", 0), "--n: must be an integer of at least 1: got '0'"),
        (("--form", "gif"), "--form"),
        (("--verify", 2), "verify must be a fraction of the samples"),
        (("--verify", 0), "verify must be a fraction of the samples"),
        (("--verify", "nan"), "--verify"),
        (("--verify", "--force"), "not allowed with"),
        (("--labels", "1,2"), "--labels must be given for a network with classes, and only then"),
        (("--labels", "cat"), "--labels"),
        (("--model", "gone"), "nothing exists at gone"),
        (("--solver", "magic"), "magic"),
        (("--device", "toaster"), "got 'toaster'"),
    ],
    ids=str,
)
def test_bad_input_is_refused_in_one_line_and_writes_nothing(tmp_path, capsys, command, options, named):
    assert named in refusal(capsys, *command, *options)
    assert list(tmp_path.iterdir()) == []


def test_folder_and_count_must_be_said(capsys):
    assert "--n, --out" in refusal(capsys, "generate")


def test_verify_needs_a_run(tmp_path, capsys, command):
    assert f"out: {tmp_path / 'out'} holds no run.json: nothing was generated" in refusal(capsys, *command, "--verify")
    assert list(tmp_path.iterdir()) == []


def test_files_of_others_are_never_touched(tmp_path, capsys, command):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    for more in ((), ("--force",)):
        assert "is not empty and holds no run.json: choose another folder" in refusal(capsys, *command, *more)
    (out / "thesis.tex").rename(tmp_path / "thesis.tex")
    assert run(*command) == 0
    (tmp_path / "thesis.tex").rename(out / "thesis.tex")
    capsys.readouterr()
    assert "holds other files (thesis.tex): choose another folder, or move them" in refusal(capsys, *command)
    assert (out / "thesis.tex").read_text() == "mine"
    assert len(os.listdir(out)) == 4


def test_force_is_for_one_process(tmp_path, capsys, monkeypatch, command):
    assert run(*command) == 0
    before = kills.content(tmp_path / "out")
    monkeypatch.setenv("WORLD_SIZE", "2")
    capsys.readouterr()
    assert "(--force) must not be given under torchrun" in refusal(capsys, *command, "--force")
    assert kills.content(tmp_path / "out") == before


def test_first_rank_alone_speaks(tmp_path, capsys, monkeypatch, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in "10":
        monkeypatch.setenv("RANK", rank)
        assert run(*command) == 0
        assert bool(capsys.readouterr().out) == (rank == "0")


def test_images_take_turns_through_labels(tmp_path, capsys, monkeypatch):
    model = Net()
    model.needed, model.origin = ("brightness",), None
    monkeypatch.setattr(drawing, "model", lambda args: (model, "native"))
    options = ("--n", 21, "--batch-size", 4, "--shard-size", 8, "--steps", 2, "--solver", "ddpm")
    command = ("generate", *options, "--out", tmp_path / "out", "--labels")
    assert run(*command, "3,0,2") == 0
    labels = torch.tensor([3, 0, 2] * 7)
    made(tmp_path / "same", model, condition=lambda index: {"brightness": labels[index]})
    assert np.array_equal(drawn(tmp_path / "out"), drawn(tmp_path / "same"))
    assert run(*command, "3,0,2", "--shard", "1/2") == 0
    capsys.readouterr()
    for other in ("3,0", "3,0,2,0", "3,0,1"):
        assert "holds another run; choose another folder: condition: " in refusal(capsys, *command, other)
    assert "--labels must be given for a network with classes" in refusal(capsys, *command[:-1])


def test_full_disk_is_one_line_and_the_command_goes_on(tmp_path, command):
    """Limit the size of files below the settings, and below a shard."""
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({}, resource.RLIM_INFINITY))\n"
    code = f"{limited}import sys; from gms_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    out, command = tmp_path / "out", (*command, "--n", 32, "--shard-size", 16)
    for most, left in ((400, []), (1600, ["run.json"])):
        arguments = [sys.executable, "-c", code.format(most), *map(str, command)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        said = rf"gms-fast: error: File too large: {out}/\S+; the same command continues from there\n"
        assert (done.returncode, bool(re.fullmatch(said, done.stderr))) == (2, True), done.stderr
        assert os.listdir(out) == left
    assert run(*command) == 0
    assert run(*command, "--out", tmp_path / "whole") == 0
    assert kills.content(out) == kills.content(tmp_path / "whole")
