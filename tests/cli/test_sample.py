"""The command line: what it writes, what it prints, and how it refuses."""

import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

import gms_fast
from gms_fast import images, io, solvers, statistics
from gms_fast.cli import main, train
from gms_fast.models.unet import MomentUNet
from gms_fast.training import loop

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A saved network with small but non-zero moments."""
    torch.manual_seed(0)
    network = MomentUNet(
        image_size=8, in_channels=1, model_channels=32, channel_mult=(1,), num_res_blocks=1, attention_resolutions=()
    )
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        network.out2[3].bias.fill_(1.0)
    io.save(network, tmp_path_factory.mktemp("models") / "tiny")
    return str(next(tmp_path_factory.getbasetemp().glob("models*/tiny")))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "x.npy"
    np.save(path, np.random.default_rng(0).uniform(-1, 1, (16, 8, 8)).astype(np.float32))
    return path


def run(*argv):
    return main([str(a) for a in argv])


def refusal(capsys, *argv):
    """The one line that a refused command prints on stderr."""
    assert run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("gms-fast: error: ")
    assert captured.err.count("\n") == 1
    return captured.err


# --- in general ---


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
        (["sample", "--solver", "gms:fit=best"], "fit must be"),
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


def test_info_tells_what_is_installed(capsys):
    assert run("info") == 0
    lines = dict(re.split(r":\s+", line, maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["torch"] == torch.__version__
    assert "torch" in lines["backends"]
    assert "gms" in lines["solvers"].split(", ")
    assert lines["schedules"] == "cosine, edm, flow, linear, vp, vp-cosine"
    assert lines["models"] == (", ".join(io.embedded()) or "none")


# --- images ---


def test_grid_lays_images_out_row_by_row():
    x = torch.stack([torch.full((1, 3, 4), value) for value in (-1.0, 0.0, 1.0, -5.0, 5.0)])
    picture = images.grid(x, columns=3, scale=1)
    assert picture.mode == "L"
    assert picture.size == (3 * 6 + 2, 2 * 5 + 2)
    pixels = np.asarray(picture)
    assert [pixels[2, 2], pixels[2, 8], pixels[2, 14], pixels[7, 2], pixels[7, 8]] == [0, 128, 255, 0, 255]
    assert pixels[0, 0] == pixels[7, 14] == 255


def test_grid_is_square_and_enlarged_by_default():
    assert images.grid(torch.zeros(4, 3, 8, 8)).size == (2 * 22, 2 * 22)
    assert images.grid(torch.zeros(4, 3, 8, 8)).mode == "RGB"
    assert images.grid(torch.zeros(1, 1, 128, 128)).size == (132, 132)
    small, large = (np.asarray(images.grid(torch.rand(1, 1, 8, 8).fill_(0.3), scale=s)) for s in (1, 2))
    assert np.array_equal(small.repeat(2, 0).repeat(2, 1), large)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (0, 1, 8, 8), (8, 8)])
def test_grid_refuses_what_cannot_be_shown(shape):
    with pytest.raises(ValueError, match=r"x must be \(N, 1, H, W\) or"):
        images.grid(torch.zeros(shape))
    with pytest.raises(ValueError, match="columns and scale must be at least 1: got 0 and 2"):
        images.grid(torch.zeros(1, 1, 8, 8), columns=0)


# --- sample ---


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


def interrupting(monkeypatch, calls):
    """A Ctrl-C at the network's call of that number, 0 the first."""
    left, forward = iter(range(calls)), MomentUNet.forward

    def called(*args):
        if next(left, None) is None:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(MomentUNet, "forward", called)


@pytest.mark.parametrize(("calls", "done"), [(4, 2), (11, 4)])
def test_sample_interrupted_keeps_the_batches_that_are_finished(tmp_path, capsys, monkeypatch, model, calls, done):
    """Four calls of the network a batch, two images in each but the last."""
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
    both = ("dpm-solver-v3", "dpm-solver-v3:statistics=digits,trust=-2")
    named, found = (drawn(tmp_path, "digits", *options, text)["images"] for text in both)
    assert np.array_equal(named, found)
    capsys.readouterr()
    assert "measured for something else: shape" in refusal(
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
    assert "has no option switch: ddim takes eta" in refusal(capsys, *refused, "--solver", "ddim:switch=2")


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
        (("--device", "cuda:99"), "--device cuda:99 is not there"),
        (("--device", "hpu"), "--device hpu is not there: torch "),
        (("--device", "meta"), "--device must be one whose tensors hold numbers: got 'meta'"),
        (("--model", "gone"), "nothing is at gone"),
        (("--solver", "magic"), "magic"),
        (("--solver", "ddim:statistics=mnist"), "has no option statistics: ddim takes eta"),
        (("--solver", "dpm-solver-v3"), "needs statistics=STATISTICS, a file of gms-fast statistics: there is no"),
        (("--solver", "ddim:fit=free"), "has no option fit: ddim takes eta"),
    ],
)
def test_sample_refuses_bad_input_in_one_line(tmp_path, capsys, monkeypatch, model, options, named):
    monkeypatch.chdir(tmp_path)
    assert named in refusal(capsys, "sample", "--model", model, *options)
    assert list(tmp_path.iterdir()) == []


# --- search ---

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


def test_sample_takes_a_table(tmp_path, capsys, model):
    refused = ("sample", "--model", model, "--out", tmp_path / "y.png")
    assert "there is no ggdm-10.safetensors with" in refusal(capsys, *refused, "--solver", "ggdm")
    assert "table must be a file or one of mnist/10, mnist/5" in refusal(capsys, *refused, "--solver", "ggdm:table=no")
    assert "steps: 5 there, 3 here" in refusal(capsys, *refused, "--solver", "ggdm:table=mnist/5", "--steps", 3)
    assert "network" in refusal(capsys, *refused, "--solver", "ggdm:table=mnist/5", "--steps", 5)


# --- train ---

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
    assert "interrupted; the same command with --resume goes on" in capsys.readouterr().err
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
        (("--device", "cuda:99"), "--device cuda:99 is not there"),
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
    assert "a folder is wanted" in refusal(capsys, "train", "--data", pictures, "--out", pictures, *SHORT)


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


# --- evaluate ---

QUICK = ("--model", "mixture-1d", "--steps", "2,3", "--n", 100, "--ranges", 2, "--workers", 1)


def test_evaluate_writes_records_tables_and_a_plot(tmp_path, capsys):
    out = tmp_path / "run"
    assert run("evaluate", *QUICK, "--solver", "gms:fit=exact", "--solver", "ddim", "--grid", "0.5", "--out", out) == 0
    assert f"12 cells: {out / 'tables.md'}" in capsys.readouterr().out
    assert len((out / "records.jsonl").read_text().splitlines()) == 2 * 2 + 2 * 2 * 2
    table = (out / "tables.md").read_text()
    assert "| `gms:fit=exact` | 0.5 |" in table
    assert "*real against real*" in table
    with Image.open(out / "wasserstein.png") as plot:
        assert plot.size[0] > 300


def test_evaluate_goes_on_or_starts_anew_as_told(tmp_path, capsys):
    command = ("evaluate", *QUICK, "--solver", "ddim", "--out", tmp_path / "run")
    assert run(*command) == 0
    records = (tmp_path / "run" / "records.jsonl").read_text()
    capsys.readouterr()
    assert "is not empty: add --resume" in refusal(capsys, *command)
    (tmp_path / "run" / "records.jsonl").write_text(records[: len(records) // 2])
    assert run(*command, "--resume") == 0
    assert len((tmp_path / "run" / "records.jsonl").read_text().splitlines()) == len(records.splitlines())
    capsys.readouterr()
    assert "n is 100 there and 200 here" in refusal(capsys, *command, "--n", 200, "--resume")
    assert run(*command, "--n", 200, "--force") == 0


def test_evaluate_force_deletes_its_own_files_only(tmp_path, capsys):
    out = tmp_path / "run"
    command = ("evaluate", *QUICK, "--solver", "ddim", "--out", out)
    assert run(*command) == 0
    (out / "samples").mkdir()
    for mine in (out / "holiday.png", out / "samples" / "thesis.txt"):
        mine.write_text("mine")
    capsys.readouterr()
    assert "holds no settings.json" in refusal(capsys, *command, "--force")  # it will not work among other files
    assert sorted(p.name for p in out.rglob("*") if p.is_file()) == ["holiday.png", "thesis.txt"]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--solver", "euler"), "solver must be a Solver or one of gms"),
        (("--solver", "gms:fit=best"), "fit must be one of"),
        (("--grid", "fast"), "spacing must be"),
        (("--grid", "-1"), "spacing must be"),
        (("--steps", "2000"), "steps must be at most 1000"),
        (("--steps", ""), "--steps must have at least one number"),
        (("--n", "20"), "n must be at least 50 samples for these measures: got 20"),
        (("--model", "digits", "--n", "60"), "n must be at least 65 samples"),
        (("--model", "mnist", "--data", "digits"), "data must be (1, 28, 28) for model mnist: got (1, 8, 8)"),
        (("--model", "nothing-there"), "nothing is at nothing-there"),
    ],
)
def test_evaluate_refuses_bad_input_in_one_line(tmp_path, capsys, options, named):
    assert named in refusal(capsys, "evaluate", *QUICK, "--out", tmp_path / "run", *options)
    assert not (tmp_path / "run").exists()


def test_evaluate_needs_data_for_a_model_of_ones_own(tmp_path, capsys, model):
    assert "data must be given for model" in refusal(
        capsys, "evaluate", *QUICK, "--model", model, "--out", tmp_path / "r"
    )
