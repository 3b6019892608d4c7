"""Command `train`."""

import numpy as np
import pytest
import torch
from commands import refusal, run

import gms_fast
from gms_fast import io
from gms_fast.cli import train
from gms_fast.models.unet import MomentUNet
from gms_fast.storage import checkpoint
from gms_fast.training import loop

pytestmark = pytest.mark.usefixtures("one_thread")


SMALL = ("--model-channels", 32, "--channel-mult", 1, "--attention", "", "--head", "simple", "--batch-size", 4)
SHORT = (*SMALL, "--device", "cpu", "--steps", 2, "--head-steps", 2)


def test_train_writes_a_model_that_load_takes(tmp_path, capsys, pictures):
    out = tmp_path / "run"
    assert run("train", "--data", pictures, "--out", out, *SHORT, "--schedule", "cosine") == 0
    assert f"saved {out / 'model'}" in capsys.readouterr().out
    model = io.load(out / "model")
    assert model.sample_shape == (1, 8, 8)
    assert (model.moments, model.config["head"], model.schedule.config["name"]) == ("central", "simple", "VPCosine")
    assert {p.name for p in out.iterdir()} == {"noise", "heads", "model"}


def test_train_interrupted_says_how_to_go_on_and_does(tmp_path, capsys, pictures, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    command = ("train", "--data", pictures, "--out", tmp_path / "cut", *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "moment_loss", interrupted)
        assert run(*command) == 130
    assert "interrupted; the same command with --resume continues" in capsys.readouterr().err
    assert "--resume" in refusal(capsys, *command)
    assert run(*command, "--resume") == 0
    assert run("train", "--data", pictures, "--out", tmp_path / "whole", *SHORT) == 0
    cut, whole = (io.load(tmp_path / name / "model").state_dict() for name in ("cut", "whole"))
    assert [n for n in whole if not torch.equal(cut[n], whole[n])] == []


def test_train_force_deletes_its_own_files_only(tmp_path, capsys, pictures):
    out = tmp_path / "run"
    (out / "noise").mkdir(parents=True)
    (out / "noise" / "notes.txt").write_text("precious")
    assert "is not empty" in refusal(capsys, "train", "--data", pictures, "--out", out, *SHORT)
    assert run("train", "--data", pictures, "--out", out, *SHORT, "--force") == 0
    assert run("train", "--data", pictures, "--out", out, *SHORT, "--seed", 1, "--force") == 0
    assert (out / "noise" / "notes.txt").read_text() == "precious"
    capsys.readouterr()
    said = refusal(capsys, "train", "--data", pictures, "--out", out, *SHORT, "--seed", 2, "--resume")
    assert "another configuration; choose another folder: seed: 1 there, 2 asked for" in said


def test_train_refuses_before_the_first_step_a_place_where_the_model_cannot_go(tmp_path, capsys, pictures):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "notes.txt").write_text("precious")
    said = refusal(capsys, "train", "--data", pictures, "--out", tmp_path, *SHORT, "--force")
    assert "is not a saved model: it holds notes.txt" in said
    assert not (tmp_path / "noise").exists()


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--lr", "0"), "lr must be positive"),
        (("--ema", "1"), "ema must lie in [0, 1)"),
        (("--data", "gone.npy"), "gone.npy does not exist"),
        (("--model-channels", "33"), "model_channels must be a multiple of 32: got 33"),
        (("--channel-mult", "1,1,1,1,1"), "divisible by 16 for 5 levels: got 8"),
        (("--channel-mult", ""), "--channel-mult must have at least one number"),
        (("--device", "cuda:99"), "--device cuda:99 is not available"),
    ],
)
def test_train_refuses_bad_input_in_one_line(tmp_path, capsys, pictures, options, named):
    out = tmp_path / "run"
    assert named in refusal(capsys, "train", "--data", pictures, "--out", out, *SHORT, *options)
    assert not out.exists()


def test_train_refuses_images_that_are_not_square_and_a_file_for_a_folder(tmp_path, capsys, pictures):
    np.save(tmp_path / "wide.npy", np.zeros((4, 8, 16), np.float32))
    said = refusal(capsys, "train", "--data", tmp_path / "wide.npy", "--out", tmp_path / "run", *SHORT)
    assert "must hold square images: got 8 x 16" in said
    assert "is a file, but must be a folder" in refusal(capsys, "train", "--data", pictures, "--out", pictures, *SHORT)


def test_train_defaults_are_the_recipe_of_the_embedded_model(tmp_path, monkeypatch):
    seen = {}

    def stop(model, images, **settings):
        seen.update(settings, config=model.config, schedule=model.schedule.config, weight=model.out[0].weight)
        raise KeyboardInterrupt

    monkeypatch.setattr("gms_fast.training.train_noise_network", stop)
    monkeypatch.setattr("gms_fast.data.load", lambda _: torch.zeros(4, 1, 28, 28))
    assert run("train", "--data", "mnist5k", "--out", tmp_path / "run", "--precision", "bfloat16") == 130
    torch.manual_seed(0)
    want = MomentUNet(
        image_size=28,
        in_channels=1,
        model_channels=32,
        channel_mult=(1, 2, 3),
        num_res_blocks=1,
        attention_resolutions=(4,),
        head="complex",
        moments="central",
        normalised=True,
    )
    assert seen["config"] == want.config
    assert seen["schedule"] == want.schedule.config
    settings = {n: seen[n] for n in ("steps", "batch_size", "lr", "decay", "ema", "flips", "precision", "seed", "out")}
    assert settings == {
        "steps": 12000,
        "batch_size": 64,
        "lr": 1e-3,
        "decay": "cosine",
        "ema": 0.999,
        "flips": False,
        "precision": "bfloat16",
        "seed": 0,
        "out": tmp_path / "run" / train.STAGES[0],
    }


@pytest.fixture
def classes(tmp_path):
    np.save(tmp_path / "y.npy", np.arange(16) % 3)
    return tmp_path / "y.npy"


def test_train_with_labels_makes_a_network_with_classes(tmp_path, capsys, pictures, classes):
    out, command = tmp_path / "run", ("train", "--data", pictures, *SHORT, "--labels", classes)
    assert run(*command, "--out", out) == 0
    assert f"gms-fast sample --model {out / 'model'} --labels 0,1" in capsys.readouterr().out
    model = io.load(out / "model")
    assert (model.no_class, model.needed) == (3, ("y",))
    known = [checkpoint.read(out / stage / "checkpoint.pt")["configuration"] for stage in train.STAGES]
    assert [each["label_dropout"] for each in known] == [0.1, 0.1]
    drawn = ("sample", "--model", out / "model", "--device", "cpu", "--steps", 2, "--n", 4, "--out", tmp_path / "x.npz")
    assert "--labels must be given for a network with classes" in refusal(capsys, *drawn)
    assert run(*drawn, "--labels", "1,3") == 0
    with np.load(tmp_path / "x.npz") as arrays:
        wanted = gms_fast.sample(model, 2, n=4, condition={"y": torch.tensor([1, 3, 1, 3])}).clamp(-1, 1)
        np.testing.assert_allclose(arrays["images"], wanted.numpy(), rtol=0, atol=1e-5)
    capsys.readouterr()
    assert "y must lie in 0 .. 2, or be 3 for no class: got 4 .. 4" in refusal(
        capsys, *drawn, "--force", "--labels", "4"
    )
    folder = ("generate", "--model", out / "model", "--device", "cpu", "--steps", 2, "--n", 5, "--out", tmp_path / "g")
    assert run(*folder, "--labels", "0,2") == 0


def test_train_refuses_labels_that_do_not_fit(tmp_path, capsys, pictures, classes):
    command = ("train", "--data", pictures, "--out", tmp_path / "run", *SHORT)
    assert "--label-dropout must not be given without --labels" in refusal(capsys, *command, "--label-dropout", 0.1)
    said = refusal(capsys, *command, "--labels", classes, "--label-dropout", 1)
    assert "label_dropout must lie in [0, 1): got 1.0" in said
    np.save(classes, np.arange(4))
    assert "--labels must be one for each of 16 images: got 4" in refusal(capsys, *command, "--labels", classes)
    assert not (tmp_path / "run").exists()
