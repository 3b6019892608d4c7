"""Commands that train: common options, and ranks of torchrun that act as one command."""

import numpy as np
import pytest
import torch
import two_ranks
from commands import refusal, run
from tiny_networks import outputs

from gms_fast import cli, io
from gms_fast.storage.locks import locked_folder

pytestmark = pytest.mark.usefixtures("one_thread")

LEFT = "; the same command with --resume continues from there"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    np.save(folder / "x.npy", np.random.default_rng(0).uniform(-1, 1, (16, 8, 8)).astype(np.float32))
    return folder


@pytest.fixture(scope="module")
def played(folder):
    """Output and exit codes of two ranks of `train`, by scene: (status, stdout, stderr) of each."""
    with locked_folder(folder / "held"):
        scenes = ("trained", "trained_again", "trained_where_somebody_is", "trained_until_a_signal")
        return two_ranks.played(scenes, folder)


def alone(folder, out, *options):
    assert run("train", "--data", folder / "x.npy", "--out", out, *two_ranks.COMMAND, *options) == 0
    return io.load(out / "model")


@pytest.fixture(scope="module")
def whole(folder):
    return alone(folder, folder / "whole")


def assert_near(got, want):
    """Compare results; ten steps leave hundreds of roundings in each."""
    for found, wanted in zip(outputs(got), outputs(want), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-5)


@pytest.mark.slow(20)
def test_ranks_make_one_model_and_say_so_once(folder, played, whole):
    saved = folder / "run" / "model"
    said = f"saved {saved}; draw from it with: gms-fast sample --model {saved}\n"
    assert played["trained"] == [[0, said, ""], [0, "", ""]]
    assert {path.name for path in (folder / "run").iterdir()} == {"noise", "heads", "model"}
    assert_near(io.load(saved), whole)


def test_ranks_are_refused_in_a_line_each(folder, played):
    said = f"error: --out {folder / 'run'} is not empty: add --resume to continue it or --force to start again\n"
    assert played["trained_again"] == [[2, "", f"gms-fast: {said}"], [2, "", f"gms-fast: rank 1: {said}"]]


def test_ranks_do_not_enter_where_somebody_trains(folder, played):
    for status, out, err in played["trained_where_somebody_is"]:
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert f"{folder / 'held'} is in use by process" in err


def test_signal_to_a_rank_is_told_by_the_first_and_leaves_a_checkpoint(folder, played, whole):
    assert played["trained_until_a_signal"] == [[130, "", f"gms-fast: interrupted{LEFT}\n"], [143, "", ""]]
    assert_near(alone(folder, folder / "cut", "--resume", "--micro-batch", 3), whole)


@pytest.mark.parametrize("options", [("--micro-batch", 2), ("--micro-batch", 2, "--resume")])
def test_rows_at_a_time_change_the_rounding_alone(tmp_path, folder, whole, options):
    assert_near(alone(folder, tmp_path / "run", *options), whole)  # --resume accepts a new folder too


def test_rows_at_a_time_are_at_least_one(tmp_path, capsys, folder):
    command = ("train", "--data", folder / "x.npy", "--out", tmp_path / "run", *two_ranks.COMMAND, "--micro-batch", 0)
    assert "argument --micro-batch: must be an integer of at least 1: got '0'" in refusal(capsys, *command)


def test_gpu_that_is_too_small_is_told_by_option_and_way_on(tmp_path, capsys, folder, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr("gms_fast.training.loop.noise_loss", lambda _: full)
    said = refusal(capsys, "train", "--data", folder / "x.npy", "--out", tmp_path / "run", *two_ranks.COMMAND)
    assert f"micro_batch must be less than 7: 7 rows at a time are more than cpu has memory for{LEFT}" in said


def test_restarts_do_not_delete_what_they_go_on_from(tmp_path, capsys, folder, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    command = ("train", "--data", folder / "x.npy", "--out", tmp_path / "run", *two_ranks.COMMAND)
    assert "--force must not be given with torchrun's --max-restarts" in refusal(capsys, *command, "--force")
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert run(*command, "--force") == 0


@pytest.mark.parametrize(("name", "found"), [(None, "cuda:2"), ("cuda", "cuda:2"), ("cuda:1", "cuda:1")])
def test_each_rank_has_the_gpu_of_its_number(monkeypatch, name, found):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: None)
    assert str(cli.options.device(name)) == found
