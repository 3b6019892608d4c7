"""Command `train-heads`."""

import json
import shutil

import numpy as np
import pytest
import torch
from commands import refusal, run

import gms_fast
from gms_fast import io
from gms_fast.models import MomentHeads, MomentUNet
from gms_fast.storage import checkpoint
from gms_fast.training import loop

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

SHORT = ("--device", "cpu", "--steps", 2, "--batch-size", 4)
COLOURS = {"sample_size": 8, "in_channels": 3, "out_channels": 3, "norm_num_groups": 4}


@pytest.fixture(scope="module")
def unet(tmp_path_factory):
    """Saved `MomentUNet` without heads."""
    torch.manual_seed(0)
    size = {"image_size": 8, "in_channels": 1, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}
    path = tmp_path_factory.mktemp("networks") / "unet"
    io.save(MomentUNet(**size, attention_resolutions=(), head=None), path)
    return path


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """Saved diffusers pipeline of RGB images."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2}
    network = diffusers.UNet2DModel(**COLOURS, **blocks, block_out_channels=(8, 8), layers_per_block=1)
    path = tmp_path_factory.mktemp("networks") / "ddpm"
    diffusers.DDPMPipeline(network, diffusers.DDPMScheduler(prediction_type="v_prediction")).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def dit(tmp_path_factory):
    """Transformer for classes and its scheduler, saved as a part of a pipeline."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    options = {"num_attention_heads": 2, "attention_head_dim": 4, "num_layers": 1, "num_embeds_ada_norm": 10}
    network = diffusers.DiTTransformer2DModel(**{**COLOURS, "out_channels": 6, "norm_num_groups": 2}, **options)
    path = tmp_path_factory.mktemp("networks") / "dit"
    network.save_pretrained(path / "transformer")
    diffusers.DDIMScheduler().save_pretrained(path / "scheduler")
    return path


@pytest.fixture(scope="module")
def colours(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).uniform(-1, 1, (12, 3, 8, 8)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "y.npy"
    np.save(path, np.arange(12) % 10)
    return path


def weights(path):
    return io.load(path).heads.state_dict()


def assert_identical(got, want):
    assert got.keys() == want.keys()
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


# --- results ---


def test_heads_of_a_saved_unet_draw(tmp_path, capsys, unet, pictures):
    out, before = tmp_path / "run", {file.name: file.read_bytes() for file in unet.iterdir()}
    assert run("train-heads", "--network", unet, "--data", pictures, "--out", out, *SHORT) == 0
    said = f"saved {out / 'model'}; draw from it with: gms-fast sample --model {out / 'model'}\n"
    assert capsys.readouterr().out == said
    assert {path.name for path in out.iterdir()} == {"heads", "model"}
    assert {path.name for path in (out / "model").iterdir()} == {"moment_heads.safetensors"}
    assert {file.name: file.read_bytes() for file in unet.iterdir()} == before
    model = io.load(out / "model")
    assert isinstance(model, MomentHeads)
    assert (model.features, model.head, model.moments, model.normalised) == ("out", "complex", "central", True)
    assert (model.record["steps"], model.record["batch_size"], model.record["precision"]) == (2, 4, "float32")
    images = tmp_path / "x.npz"
    assert run("sample", "--model", out / "model", "--n", 3, "--steps", 3, "--device", "cpu", "--out", images) == 0
    drawn = np.load(images)["images"]
    assert drawn.shape == (3, 1, 8, 8)
    assert np.isfinite(drawn).all()


def test_heads_of_a_pipeline_of_diffusers_draw(tmp_path, pipeline, colours):
    out = tmp_path / "run"
    options = ("--head", "simple", "--mixed-precision", "bf16", "--flips")
    assert run("train-heads", "--network", pipeline, "--data", colours, "--out", out, *SHORT, *options) == 0
    model = io.load(out / "model")
    assert (model.features, model.prediction, model.head) == ("conv_norm_out", "v", "simple")
    assert (model.record["precision"], model.record["flips"]) == ("bfloat16", True)
    images = tmp_path / "x.npz"
    assert run("sample", "--model", out / "model", "--n", 2, "--steps", 2, "--device", "cpu", "--out", images) == 0
    assert np.load(images)["images"].shape == (2, 3, 8, 8)


def test_heads_of_a_network_with_classes_are_trained_on_labels(tmp_path, capsys, dit, colours, classes):
    out = tmp_path / "run"
    command = ("train-heads", "--network", dit, "--data", colours, "--out", out, *SHORT)
    assert "--labels must be given for a network with classes" in refusal(capsys, *command)
    assert "this one needs class_labels" in refusal(capsys, *command)
    assert not out.exists()
    assert run(*command, "--labels", classes) == 0
    model = io.load(out / "model")
    assert model.prediction == "noise"
    assert tuple(model.needed) == ("class_labels",)
    x = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        one, other = (model(x, torch.full((2,), 500.0), class_labels=torch.tensor(y)) for y in ([1, 2], [3, 4]))
    assert one.e2.shape == one.e3.shape == x.shape
    assert not torch.equal(one.e1, other.e1)


def test_images_of_classes_take_turns(tmp_path, capsys, dit, colours, classes):
    out, image = tmp_path / "run", tmp_path / "x.npz"
    assert run("train-heads", "--network", dit, "--data", colours, "--out", out, "--labels", classes, *SHORT) == 0
    assert f"gms-fast sample --model {out / 'model'} --labels 0,1" in capsys.readouterr().out
    command = ("sample", "--model", out / "model", "--n", 5, "--steps", 2, "--device", "cpu", "--out", image)
    assert "--labels must be given for a network with classes" in refusal(capsys, *command)
    assert run(*command, "--labels", "1,2", "--batch-size", 2) == 0
    drawn = torch.from_numpy(np.load(image)["images"])
    model, labels = io.load(out / "model"), torch.tensor([1, 2, 1, 2, 1])
    wanted = gms_fast.sample(model, 2, n=5, condition={"class_labels": labels}).clamp(-1, 1)
    torch.testing.assert_close(drawn, wanted)
    capsys.readouterr()
    assert "only then: this one needs no condition" in refusal(
        capsys, "sample", "--model", "digits", "--labels", "1", "--out", tmp_path / "y.png"
    )


# --- interruption and resuming ---


def test_interrupted_run_says_how_to_go_on_and_does(tmp_path, capsys, unet, pictures, monkeypatch):
    step, command = loop._Step.__call__, ("train-heads", "--network", unet, "--data", pictures)

    def interrupted(self, state, signals):
        if state.step == 1:
            raise KeyboardInterrupt
        return step(self, state, signals)

    monkeypatch.setitem(loop.train_moment_heads.__kwdefaults__, "checkpoint_every", 1)
    cut = (*command, "--out", tmp_path / "cut", *SHORT)
    with monkeypatch.context() as patch:
        patch.setattr(loop._Step, "__call__", interrupted)
        assert run(*cut) == 130
    assert capsys.readouterr().err == "gms-fast: interrupted; the same command with --resume continues from there\n"
    assert "add --resume to continue it or --force to start again" in refusal(capsys, *cut)
    assert checkpoint.read(tmp_path / "cut" / "heads" / "checkpoint.pt")["step"] == 1
    assert run(*cut, "--resume") == 0
    assert run(*command, "--out", tmp_path / "whole", *SHORT) == 0
    assert_identical(weights(tmp_path / "cut" / "model"), weights(tmp_path / "whole" / "model"))
    capsys.readouterr()
    said = refusal(capsys, *cut, "--seed", 2, "--resume")
    assert "another configuration; choose another folder: seed: 0 there, 2 asked for" in said


def test_force_deletes_its_own_files_only(tmp_path, unet, pictures):
    out = tmp_path / "run"
    (out / "heads").mkdir(parents=True)
    (out / "heads" / "notes.txt").write_text("precious")
    command = ("train-heads", "--network", unet, "--data", pictures, "--out", out, *SHORT, "--force")
    assert run(*command) == 0
    first = weights(out / "model")
    assert run(*command, "--seed", 1) == 0
    assert (out / "heads" / "notes.txt").read_text() == "precious"
    assert any(not torch.equal(first[name], value) for name, value in weights(out / "model").items())


# --- bad input ---


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--lr", "0"), "lr must be positive"),
        (("--data", "gone.npy"), "gone.npy does not exist"),
        (("--network", "gone"), "nothing exists at gone"),
        (("--labels", "CLASSES"), "--labels must be given for a network with classes, and only then: this one needs"),
        (("--labels", "gone.npy"), "labels file gone.npy does not exist"),
        (("--features", "middle"), "features must be the name of a module of MomentUNet"),
        (("--features", "time_embed"), "features must be"),
        (("--prediction", "v"), "prediction must be None except for diffusers networks"),
        (("--schedule", "spiral"), "schedule must be one of"),
        (("--data-std", "0"), "data_std must be"),
        (("--mixed-precision", "fp8"), "argument --mixed-precision: invalid choice"),
        (("--device", "cuda:99"), "--device cuda:99 is not available"),
    ],
)
def test_bad_input_is_refused_in_one_line(tmp_path, capsys, unet, pictures, classes, options, named):
    np.save(tmp_path / "y.npy", np.zeros(16, int))
    given = [tmp_path / "y.npy" if word == "CLASSES" else word for word in options]
    command = ("train-heads", "--network", unet, "--data", pictures, "--out", tmp_path / "run", *SHORT, *given)
    assert named in refusal(capsys, *command)
    assert not (tmp_path / "run").exists()


def test_labels_of_another_number_or_kind_are_refused(tmp_path, capsys, dit, colours, classes):
    command = ("train-heads", "--network", dit, "--data", colours, "--out", tmp_path / "run", *SHORT, "--labels")
    for labels, named in (
        (np.arange(5), "--labels must be one for each of 12 images: got 5"),
        (np.zeros((12, 2), int), "labels must be integers (N,)"),
        (np.zeros(12), "labels must be integers (N,)"),
    ):
        np.save(tmp_path / "y.npy", labels)
        assert named in refusal(capsys, *command, tmp_path / "y.npy")
    assert not (tmp_path / "run").exists()


def test_data_of_another_shape_are_refused(tmp_path, capsys, unet, colours):
    out = tmp_path / "run"
    said = refusal(capsys, "train-heads", "--network", unet, "--data", colours, "--out", out, *SHORT)
    assert "data must be (N, 1, 8, 8) for this model: got (12, 3, 8, 8)" in said
    assert not list(out.rglob("*.*"))


def test_network_with_heads_of_its_own_folder_is_refused(tmp_path, capsys, unet, pictures):
    command = ("train-heads", "--data", pictures, *SHORT)
    assert run(*command, "--network", unet, "--out", tmp_path / "run") == 0
    capsys.readouterr()
    said = refusal(capsys, *command, "--network", tmp_path / "run" / "model", "--out", tmp_path / "again")
    assert "--network must be a network without heads" in said


def test_folder_of_an_unknown_class_is_refused(tmp_path, capsys, pipeline, colours):
    shutil.copytree(pipeline, tmp_path / "odd")
    config = tmp_path / "odd" / "unet" / "config.json"
    for name in ("NoSuchModel", "__version__", "DiffusionPipeline"):  # the last would run code of the folder
        config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": name}))
        command = ("train-heads", "--network", tmp_path / "odd", "--data", colours, "--out", tmp_path / "run", *SHORT)
        said = refusal(capsys, *command)
        assert "config.json must name a network or a scheduler from diffusers" in said
        assert name in said
    assert not (tmp_path / "run").exists()


def test_heads_whose_network_moved_say_so(tmp_path, capsys, unet, pictures):
    shutil.copytree(unet, tmp_path / "here")
    command = ("train-heads", "--network", tmp_path / "here", "--data", pictures, "--out", tmp_path / "run", *SHORT)
    assert run(*command) == 0
    (tmp_path / "here").rename(tmp_path / "there")
    capsys.readouterr()
    model = tmp_path / "run" / "model"
    said = refusal(capsys, "sample", "--model", model, "--out", tmp_path / "x.npz")
    assert f"the network of the moment heads in {model} is missing: nothing exists at {tmp_path / 'here'}" in said
    assert "MomentHeads.from_pretrained" in said
    found = MomentHeads.from_pretrained(model, io.network(tmp_path / "there"))
    assert found.record["steps"] == 2


def test_heads_on_another_network_are_refused(tmp_path, capsys, unet, pictures):
    path = tmp_path / "network"
    shutil.copytree(unet, path)
    command = ("train-heads", "--network", path, "--data", pictures, "--out", tmp_path / "run", *SHORT)
    assert run(*command) == 0
    other = io.load(unet)
    with torch.no_grad():
        other.out[2].bias.add_(1)
    io.save(other, path)
    capsys.readouterr()
    said = refusal(capsys, "sample", "--model", tmp_path / "run" / "model", "--out", tmp_path / "x.npz")
    assert "network must be the one that the heads of" in said
    assert "another configuration" in refusal(capsys, *command, "--resume")


def test_embedded_networks_are_found_by_their_name(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (
        run("train-heads", "--network", "digits", "--data", "digits", "--out", "run", "--steps", 1, "--device", "cpu")
        == 0
    )
    assert io.load("run/model").source["path"] == "digits"
