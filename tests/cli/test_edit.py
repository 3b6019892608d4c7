"""Command `edit`: input, output, errors, and results that are kept after an early end."""

import re

import numpy as np
import pytest
import torch
from commands import interrupting, refusal, run
from PIL import Image

import gms_fast
from gms_fast import data, editing, images
from gms_fast.guidance import ClassifierFree

pytestmark = pytest.mark.usefixtures("one_thread")
SHORT = ("--model", "digits", "--steps", 2)


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Folder with guides a.png and b.png, and mask.png with a white left half."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guides").mkdir()
    for name, image in zip("ab", data.load("digits"), strict=False):
        images.save_image(image, f"guides/{name}.png")
    grey = np.zeros((8, 8), np.uint8)
    grey[:, :4] = 255
    Image.fromarray(grey).save("mask.png")
    return tmp_path


@pytest.fixture
def masks(monkeypatch):
    """Masks and numbers of passes that `inpaint` receives."""
    given, inpaint = [], editing.inpaint

    def watched(model, image, mask, *, resample, **same):
        given.append((mask, resample))
        return inpaint(model, image, mask, resample=resample, **same)

    monkeypatch.setattr(editing, "inpaint", watched)
    return given


@pytest.fixture
def paintings(monkeypatch):
    """Arguments that a stand-in for `editing.paint` receives."""
    given = []

    def paint(images, *, colours=6, brush=0.1):
        given.append((colours, brush))
        return images.sign()

    monkeypatch.setattr(editing, "paint", paint, raising=False)
    return given


def names(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def guides(*letters):
    return torch.stack([data.load_image(f"guides/{letter}.png", 1) for letter in letters])


# --- good runs ---


def test_strip_has_a_row_for_each_picture(here, capsys):
    assert run("edit", "stroke", "guides", *SHORT, "--n", 3, "--out", "x.png") == 0
    said = capsys.readouterr().out
    assert re.fullmatch(r"6 images in \d+\.\d\d s, 3 network calls, backend \w+: x\.png\n", said)
    drawn = editing.stroke(
        gms_fast.load("digits"), guides("a", "b").repeat_interleave(3, 0), strength=0.5, steps=2, seed=0
    )
    images.save_images(torch.cat([guides("a"), drawn[:3], guides("b"), drawn[3:]]), "wanted.png", columns=4)
    assert np.array_equal(pixels("x.png"), pixels("wanted.png"))


def test_folder_has_a_file_for_each_result_and_the_strip(here):
    assert run("edit", "stroke", "guides", *SHORT, "--out", "out") == 0
    assert names(here / "out") == ["a.png", "b.png", "strip.png"]
    assert run("edit", "vary", "guides/b.png", *SHORT, "--out", "more") == 0
    assert names(here / "more") == [*(f"b-{j}.png" for j in range(8)), "strip.png"]
    assert pixels("more/b-3.png").shape == (8, 8)
    assert run("edit", "stroke", "guides/b.png", *SHORT, "--n", 11, "--out", "many") == 0
    assert names(here / "many")[:3] == ["b-00.png", "b-01.png", "b-02.png"]


def test_results_do_not_depend_on_the_batch_size_but_on_the_seed(here):
    for more, out in ((("--batch-size", 2), "parts"), ((), "whole"), (("--seed", 1), "other")):
        assert run("edit", "stroke", "guides", *SHORT, "--n", 3, "--out", out, *more) == 0
    for name in names(here / "whole"):
        assert np.allclose(pixels(f"parts/{name}"), pixels(f"whole/{name}"), atol=1)
        assert not np.allclose(pixels(f"other/{name}"), pixels(f"whole/{name}"), atol=9)


def test_strengths_are_those_of_the_library(here):
    for strength in ("0.5", "t=500", "level=2.5"):
        assert run("edit", "stroke", "guides/a.png", *SHORT, "--strength", strength, "--out", "x.png", "--force") == 0
    assert run("edit", "stroke", "guides/a.png", *SHORT, "--strength", 0, "--out", "same") == 0
    assert np.array_equal(pixels("same/a.png"), pixels("guides/a.png"))


def test_stroke_repeats_and_paints(here, paintings):
    out = ("--out", "out", "--force")
    assert run("edit", "stroke", "guides/a.png", *SHORT, "--repeats", 2, *out) == 0
    wanted = editing.stroke(gms_fast.load("digits"), guides("a"), strength=0.5, steps=2, repeats=2)
    images.save_image(wanted[0], "wanted.png")
    assert np.array_equal(pixels("out/a.png"), pixels("wanted.png"))
    assert run("edit", "stroke", "guides/a.png", *SHORT, "--paint", "--colours", 3, *out) == 0
    assert paintings == [(3, 0.1)]
    assert pixels("out/strip.png").shape == (2 * 12, 2 * (3 * 10 + 2))


def test_inpaint_keeps_what_is_black_in_the_mask(here, masks):
    options = ("--mask", "mask.png", "--resample", 2, "--out", "out")
    assert run("edit", "inpaint", "guides/a.png", *SHORT, *options) == 0
    [(mask, resample)] = masks
    assert (mask.shape, mask.unique().tolist(), resample) == ((1, 8, 8), [0.0, 1.0], 2)
    assert np.array_equal(pixels("out/a.png")[:, 4:], pixels("guides/a.png")[:, 4:])
    assert not np.array_equal(pixels("out/a.png")[:, :4], pixels("guides/a.png")[:, :4])
    shown = pixels("out/strip.png")[4:20:2, 24:40:2]  # the second cell, enlarged twice
    assert np.array_equal(shown[:, 4:], pixels("guides/a.png")[:, 4:])
    assert (shown[:, :4] == 128).all()


def test_invert_says_how_near_it_comes_and_keeps_the_noise(here, capsys):
    assert run("edit", "invert", "guides", *SHORT, "--out", "out", "--noise", "x.npz", "--batch-size", 1) == 0
    found = re.search(r"rms (\S+) in \[-1, 1\], (\S+) of 255 grey levels\n", capsys.readouterr().out)
    back = torch.stack([data.load_image(f"out/{letter}.png", 1) for letter in "ab"])
    error = (back - guides("a", "b")).square().mean().sqrt().item()
    assert float(found[1]) == pytest.approx(error, rel=0.02)
    assert float(found[2]) == pytest.approx(error * 127.5, rel=0.02)
    with np.load("x.npz") as kept:
        assert kept["x_T"].shape == (2, 1, 8, 8)
        assert (kept["solver"], kept["steps"], kept["strength"]) == ("dpm-solver++", 2, "1")
        noise = torch.from_numpy(kept["x_T"])
    again = gms_fast.sample(gms_fast.load("digits"), 2, solver="dpm-solver++", n=2, x_T=noise).clamp(-1, 1)
    assert (again - back).abs().max() < 0.01


def test_invert_goes_no_farther_than_it_is_told(here, capsys):
    for strength, bound in ((0, 1e-6), (0.2, 0.2)):
        assert run("edit", "invert", "guides", *SHORT, "--strength", strength, "--out", "x.png", "--force") == 0
        assert float(re.search(r"rms (\S+) in", capsys.readouterr().out)[1]) < bound


def test_interpolate_takes_two_pictures(here, capsys):
    command = ("edit", "interpolate", *SHORT, "--n", 5, "--out", "out")
    assert run(*command, "guides") == 0
    assert names(here / "out") == [*(f"a-b-{j}.png" for j in range(5)), "strip.png"]
    way = editing.interpolate(gms_fast.load("digits"), *guides("a", "b"), n=5, steps=2)
    images.save_image(way[3], "wanted.png")
    assert np.array_equal(pixels("out/a-b-3.png"), pixels("wanted.png"))
    assert pixels("out/strip.png").shape == (2 * 12, 2 * (7 * 10 + 2))
    capsys.readouterr()
    assert "interpolate must be given two images: got 1" in refusal(capsys, *command, "guides/a.png")


def test_pictures_are_fitted_where_asked(here, capsys):
    Image.new("L", (20, 12)).save("wide.png")
    command = ("edit", "stroke", "wide.png", *SHORT, "--out", "x.png")
    said = refusal(capsys, *command)
    assert "image wide.png must have 8 x 8 pixels, like the model: got 20 x 12; add --resize" in said
    assert run(*command, "--resize") == 0


# --- bad input ---

SAMPLE = ("guides/a.png", *SHORT)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("stroke",), "IMAGE"),
        ((), "kind"),
        (("stroke", "gone.png", *SHORT), "No such file or directory: gone.png"),
        (("stroke", "bare", *SHORT), ": folder bare holds no images"),
        (("stroke", "guides/mask.txt", *SHORT), "image guides/mask.txt cannot be read"),
        (("stroke", "colour.png", *SHORT), "colour.png cannot be read: it must be greyscale, or of three equal"),
        (("stroke", "clear.png", *SHORT), "clear.png must be opaque: it is transparent somewhere, alpha 7 of 255"),
        (("stroke", *SAMPLE, "--out", "x.gif"), "--out must end in .png or .jpg or .jpeg: got x.gif (a name with"),
        (("stroke", *SAMPLE, "--out", "no/x.png"), "there is no folder no"),
        (("stroke", *SAMPLE, "--out", "no/x"), "there is no folder no"),
        (("stroke", *SAMPLE, "--out", "file"), "--out file is a file, but must be a folder"),
        (("stroke", *SAMPLE, "--out", "guides"), "--out must not replace an input image: got guides/a.png"),
        (("stroke", "guides/a.png", "other/a.png", *SHORT, "--out", "y"), "got a.png twice"),
        (("stroke", *SAMPLE, "--strength", "2"), "strength must lie in [0, 1]"),
        (("stroke", *SAMPLE, "--strength", "most"), "strength must be a number in [0, 1]"),
        (("stroke", *SAMPLE, "--strength", "t=5000"), "strength must be a whole time from"),
        (("stroke", *SAMPLE, "--solver", "magic"), "magic"),
        (("stroke", *SAMPLE, "--solver", "ggdm:table=mnist/5", "--steps", 5), "start in the middle"),
        (("stroke", *SAMPLE, "--model", "gone"), "nothing exists at gone"),
        (("stroke", *SAMPLE, "--device", "toaster"), "got 'toaster'"),
        (("stroke", *SAMPLE, "--repeats", 0), "--repeats: must be an integer of at least 1: got '0'"),
        (("stroke", *SAMPLE, "--brush", "0.2"), "--brush must be given together with --paint"),
        (("stroke", *SAMPLE, "--labels", "1"), "--labels must be given for a network with classes"),
        (("stroke", *SAMPLE, "--guidance", "nan"), "--guidance: must be a finite number: got 'nan'"),
        (("stroke", *SAMPLE, "--guidance", "2"), "--guidance and --unconditional must be given together"),
        (("stroke", *SAMPLE, "--guidance", "2", "--unconditional", "3"), "--guidance needs a network with classes"),
        (("inpaint", *SAMPLE), "--mask"),
        (("inpaint", *SAMPLE, "--mask", "gone.png"), "No such file or directory: gone.png"),
        (("inpaint", *SAMPLE, "--mask", "white.png"), "--mask must be black or grey somewhere"),
        (("inpaint", *SAMPLE, "--mask", "black.png"), "--mask must be white or grey somewhere"),
        (("inpaint", *SAMPLE, "--mask", "colour.png"), "colour.png cannot be read: it must be greyscale"),
        (("inpaint", *SAMPLE, "--mask", "mask.png", "--out", "mask.png"), "--out must not replace an input"),
        (("invert", *SAMPLE, "--noise", "x.npy"), "--noise must end in .npz: got x.npy"),
        (("invert", *SAMPLE, "--noise", "old.npz"), "--noise old.npz exists: choose another file or add --force"),
        (("invert", *SAMPLE, "--n", "2"), "--n"),
        (("invert", *SAMPLE, "--solver", "gms"), "solver must be invertible"),
        (("interpolate", "guides", *SHORT, "--n", "1"), "--n: must be an integer of at least 2: got '1'"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_the_model_is_called(here, capsys, monkeypatch, argv, named):
    (here / "other").mkdir()
    (here / "bare").mkdir()
    for name in ("guides/mask.txt", "file", "old.npz"):
        (here / name).write_text("no image")
    images.save_image(guides("a")[0], "other/a.png")
    Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3)).save("colour.png")
    Image.new("RGBA", (8, 8), (9, 9, 9, 7)).save("clear.png")
    for name, value in (("white", 255), ("black", 0)):
        Image.new("L", (8, 8), value).save(f"{name}.png")
    before = {name: (here / name).read_bytes() for name in names(here)}
    interrupting(monkeypatch, 0)
    assert named in refusal(capsys, "edit", *argv)
    assert {name: (here / name).read_bytes() for name in names(here)} == before
    assert not (here / "y").exists()


def test_output_that_is_there_is_kept_unless_told_otherwise(here, capsys):
    for out, file in (("x.png", "x.png"), ("out", "out/a.png"), ("out", "out/strip.png")):
        (here / file).parent.mkdir(exist_ok=True)
        (here / file).write_text("precious")
        command = ("edit", "stroke", "guides/a.png", *SHORT, "--out", out)
        assert "add --force" in refusal(capsys, *command)
        assert (here / file).read_text() == "precious"
        assert run(*command, "--force") == 0
        assert (here / file).read_bytes().startswith(b"\x89PNG")
        capsys.readouterr()
        (here / file).unlink()


def test_folder_keeps_what_is_not_of_the_command(here):
    (here / "out").mkdir()
    (here / "out" / "notes.txt").write_text("precious")
    for more in ((), ("--force",)):
        assert run("edit", "stroke", "guides/a.png", *SHORT, "--out", "out", *more) == 0
        assert (here / "out" / "notes.txt").read_text() == "precious"


# --- an early end ---


@pytest.mark.parametrize("calls", [5, 8])
def test_results_that_are_finished_are_kept(here, capsys, monkeypatch, calls):
    """Three network calls per batch of two; two batches of three."""
    command = ("edit", "stroke", "guides", *SHORT, "--n", 3, "--batch-size", 2, "--out")
    assert run(*command, "whole") == 0
    capsys.readouterr()
    done = calls // 3 * 2
    for out, more, kept in (("out", (), "out"), ("x.png", (), "x.png"), ("whole", ("--force",), "whole.part")):
        before = {name: (here / "whole" / name).read_bytes() for name in names(here / "whole")}
        with monkeypatch.context() as patch:
            interrupting(patch, calls)
            assert run(*command, out, *more) == 130
        said = capsys.readouterr().err.splitlines()[-1]
        whole = "the same command with --force draws them all"
        assert said == f"gms-fast: interrupted; {done} of 6 images, the first ones, are in {kept}: {whole}"
        assert {name: (here / "whole" / name).read_bytes() for name in names(here / "whole")} == before
    drawn = [f"{letter}-{j}.png" for letter in "ab" for j in range(3)][:done]
    for folder in ("out", "whole.part"):
        assert names(here / folder) == [*drawn, "strip.png"]
        assert all(np.array_equal(pixels(f"{folder}/{name}"), pixels(f"whole/{name}")) for name in drawn)
    assert np.array_equal(pixels("x.png"), pixels("out/strip.png"))
    assert run(*command, "whole", "--force") == 0
    assert names(here / "whole.part") == [*drawn, "strip.png"]


def test_nothing_is_left_where_nothing_is_finished(here, capsys, monkeypatch):
    before = names(here)
    for out in ("out", "x.png"):
        with monkeypatch.context() as patch:
            interrupting(patch, 2)
            assert run("edit", "stroke", "guides", *SHORT, "--out", out) == 130
        assert "gms-fast: interrupted; none of 2 images was finished\n" in capsys.readouterr().err
        assert names(here) == before
        assert not (here / out).exists()


def test_noise_of_finished_pictures_is_kept(here, capsys, monkeypatch):
    """Six network calls per image, three in each direction."""
    command = ("edit", "invert", "guides", *SHORT, "--batch-size", 1, "--noise", "x.npz", "--out", "x.png")
    for more, kept in (((), "x.npz"), (("--force",), "x.part.npz")):
        with monkeypatch.context() as patch:
            interrupting(patch, 8)
            assert run(*command, *more) == 130
        picture = kept.replace(".npz", ".png")
        said = f"; 1 of 2 images, the first one, is in {picture}, their x_T in {kept}: the same"
        assert said in capsys.readouterr().err
        with np.load(kept) as arrays:
            assert arrays["x_T"].shape == (1, 1, 8, 8)
    assert run(*command, "--force") == 0
    parts = ["x.npz", "x.part.npz", "x.part.png", "x.png"]
    assert names(here) == ["guides/a.png", "guides/b.png", "mask.png", *parts]


def test_a_batch_that_is_too_large_is_named(here, capsys, monkeypatch):
    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA")

    monkeypatch.setattr(editing, "stroke", full)
    said = refusal(capsys, "edit", "stroke", "guides/a.png", *SHORT, "--device", "cpu")
    assert "--batch-size 64 is more than cpu has memory for" in said
    assert names(here) == ["guides/a.png", "guides/b.png", "mask.png"]


# --- classes ---


@pytest.fixture
def conditions(monkeypatch):
    """Models and classes that edits receive, for a network with classes."""
    given, stroke, plain, model = [], editing.stroke, gms_fast.load("digits"), gms_fast.load("digits")
    model.needed = ("class_labels",)

    def drawn(model, rows, *, condition, **same):
        given.append((model, condition["class_labels"].tolist()))
        return stroke(plain, rows, **same)

    monkeypatch.setattr(editing, "stroke", drawn)
    monkeypatch.setattr(gms_fast, "load", lambda name: model)
    return given


def test_pictures_take_turns_through_classes(here, conditions):
    assert run("edit", "vary", "guides", *SHORT, "--n", 3, "--batch-size", 4, "--labels", "7,9", "--out", "x.png") == 0
    assert [labels for _, labels in conditions] == [[7, 7, 7, 9], [9, 9]]


def test_guidance_goes_around_the_model(here, conditions):
    options = ("--labels", 3, "--guidance", 2.5, "--unconditional", 10, "--out", "x.png")
    assert run("edit", "stroke", "guides/a.png", *SHORT, *options) == 0
    [(guided, labels)] = conditions
    assert isinstance(guided, ClassifierFree)
    assert (guided.scale, guided.unconditional["class_labels"].tolist(), labels) == (2.5, [10], [3])


def test_interpolation_is_of_one_class(here, conditions, capsys, monkeypatch):
    command = ("edit", "interpolate", "guides", *SHORT, "--out", "x.png", "--labels")
    assert "--labels must be one class for interpolate: got 2" in refusal(capsys, *command, "1,2")
    given = []

    def interpolate(model, first, second, *, n, condition, **same):
        given.append(condition["class_labels"].tolist())
        return first.expand(n, 1, 8, 8)

    monkeypatch.setattr(editing, "interpolate", interpolate)
    assert run(*command, "4") == 0
    assert given == [[4]]
