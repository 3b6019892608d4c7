"""Files of `edit`: the user's files stay; files that cannot be written are errors."""

import numpy as np
import pytest
import torch
from commands import interrupting, refusal, run
from PIL import Image

from gms_fast import data, images
from gms_fast.cli import strips

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = ("--model", "digits", "--steps", 2)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Folder with the guides 0.png and 1.png."""
    monkeypatch.chdir(tmp_path)
    for i, image in enumerate(data.load("digits")[:2]):
        images.save_image(image, f"{i}.png")
    return tmp_path


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stays(before, folder):
    after = contents(folder)
    assert {name: after.get(name) for name in before} == before
    return sorted(after.keys() - before.keys())


# --- the user's files ---


def test_pictures_named_as_parts_stay(here):
    (here / "res.part").mkdir()
    for name in ("edited.part.png", "res.part/0.png", "res.part/1.png"):
        (here / name).write_bytes((here / "0.png").read_bytes())
    (here / "other.part.png").write_text("precious")
    before = contents(here)
    assert run("edit", "vary", "edited.part.png", *SHORT, "--n", 2, "--out", "edited.png") == 0
    assert run("edit", "stroke", "res.part", *SHORT, "--out", "res") == 0
    assert run("edit", "stroke", "0.png", *SHORT, "--out", "other.png") == 0
    new = ["edited.png", "other.png", "res/0.png", "res/1.png", "res/strip.png"]
    assert stays(before, here) == new


def test_what_is_kept_replaces_nothing(here, capsys, monkeypatch):
    (here / "res.part").mkdir()
    (here / "res").mkdir()
    for name in ("e.png", "e.part.png", "res.part/0.png", "res/0-0.png"):
        (here / name).write_bytes((here / "0.png").read_bytes())
    for name in ("n.npz", "n.part.npz", "n.part-2.npz"):
        (here / name).write_text("precious")
    before = contents(here)
    for words, parts in (
        (("vary", "e.part.png", "1.png", "--n", 1, "--out", "e.png"), ["e.part-2.png"]),
        (("vary", "res.part", "1.png", "--n", 2, "--out", "res"), ["res.part-2/0-0.png", "res.part-2/strip.png"]),
        (("invert", "0.png", "1.png", "--out", "new.png", "--noise", "n.npz"), ["n.part-3.npz", "new.png"]),
    ):
        with monkeypatch.context() as patch:
            interrupting(patch, 8 if "invert" in words else 4)
            assert run("edit", *words, *SHORT, "--batch-size", 1, "--force") == 130
        assert all(part.partition("/")[0] in capsys.readouterr().err for part in parts[:1])
        assert stays(before, here) == parts
        before = contents(here)


def test_noise_replaces_no_picture(here, capsys):
    (here / "0.npz").write_bytes((here / "0.png").read_bytes())
    before = contents(here)
    said = refusal(capsys, "edit", "invert", "0.npz", *SHORT, "--noise", "0.npz", "--force")
    assert "--noise must not replace an input image: got 0.npz" in said
    assert stays(before, here) == []


# --- write errors ---


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("invert", "0.png", "--noise", "n.npz"), "--noise n.npz is a folder, but must be a file"),
        (("invert", "0.png", "--noise", "/proc/x.npz"), "/proc/x.npz"),
        (("stroke", "0.png", "--out", "f1"), "--out: f1/0.png is a folder, but an image must be written there"),
        (("stroke", "0.png", "--out", "x.v2"), "got x.v2 (a name with a suffix means a file; create the folder first"),
    ],
)
def test_places_that_cannot_be_written_are_refused_before_anything_is_drawn(here, capsys, monkeypatch, words, named):
    for folder in ("n.npz", "f1/0.png"):
        (here / folder).mkdir(parents=True)
    before = contents(here)
    interrupting(monkeypatch, 0)
    assert named in refusal(capsys, "edit", *words, *SHORT, "--force")
    assert stays(before, here) == []


def test_noise_that_another_run_writes_is_refused(here, capsys):
    from gms_fast.storage import locks

    with locks.locked_file("n.npz"):
        assert "n.npz is in use by" in refusal(capsys, "edit", "invert", "0.png", *SHORT, "--noise", "n.npz")
    assert sorted(contents(here)) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("failing", "said"),
    [
        ("savez", "none of 2 images is written"),
        ("save_image", "x_T is in n.npz and 1 of 2 images, the first one, is in out"),
        ("save_images", "x_T is in n.npz and all 2 images are in out"),
    ],
)
def test_what_is_written_before_the_disk_is_full_is_named(here, capsys, monkeypatch, failing, said):
    place = np if failing == "savez" else images
    write, left = getattr(place, failing), [1] if failing == "save_image" else []

    def full(*args, **more):
        if not left:
            raise OSError(28, "No space left on device", "out")
        left.pop()
        write(*args, **more)

    monkeypatch.setattr(place, failing, full)
    line = refusal(capsys, "edit", "invert", "0.png", "1.png", *SHORT, "--out", "out", "--noise", "n.npz")
    assert line.startswith("gms-fast: error: No space left on device: ")
    assert line.endswith(f"; {said}: the same command with --force draws them all\n")
    assert ("n.npz" in contents(here)) == (failing != "savez")


# --- names ---


@pytest.mark.parametrize("name", ["X.PNG", "x.Jpg"])
def test_endings_in_capitals_are_endings(here, capsys, name):
    assert run("edit", "stroke", "0.png", *SHORT, "--out", name) == 0
    assert capsys.readouterr().out.startswith("1 image in ")
    with Image.open(here / name) as picture:
        assert picture.format == ("PNG" if name == "X.PNG" else "JPEG")


def test_folder_with_a_dot_that_is_there_is_a_folder(here):
    (here / "x.v2").mkdir()
    target = strips.target(here / "x.v2", ["0"], 1)
    strips.check(target, [], overwrite=False)
    written = []
    strips.write(target, torch.zeros(1, 1, 8, 8), 1, [], [], written)
    assert written == target.files
    free = target.freed()
    assert free.out == here / "x.v2.part"
    assert free.out.is_dir()
