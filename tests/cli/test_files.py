"""Files of every command: concurrent runs, full disks, unwritable folders, and resuming."""

import os
import resource
import stat
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors import safe_open

from bench.faults import kills
from gms_fast import io
from gms_fast.cli import main, options, statistics
from gms_fast.measure import work
from gms_fast.models import MomentUNet
from gms_fast.statistics import load_gaussian
from gms_fast.storage import locks

FOLDERS = ("train", "train-heads", "search", "evaluate", "edit into a folder")  # commands that write to a folder
PREPARED = ["guides", "tiny", "x.npy"]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """Working folder of commands, with a model and data."""
    kills._prepare(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("name", kills.COMMANDS)
def test_second_run_on_an_output_is_refused_naming_the_first(here, capsys, name):
    command, out = kills.COMMANDS[name], here / kills.COMMANDS[name].out
    held = locks.locked_folder if name in FOLDERS else locks.locked_file
    with held(out):
        for more in ((), (command.again,)):
            assert main([*command.arguments, *more]) == 2
            assert f"is in use by process {os.getpid()} on " in capsys.readouterr().err
    assert [path for path in here.iterdir() if path.is_file() and path.suffix != ".npy"] == []


@pytest.mark.parametrize("name", kills.COMMANDS)
def test_output_that_is_there_is_neither_changed_nor_gone_on_with_unasked(here, capsys, name):
    command, out = kills.COMMANDS[name], here / kills.COMMANDS[name].out
    if name in FOLDERS:
        out.mkdir()
        (out / ("a-0.png" if "edit" in name else "precious")).write_text("mine")
    else:
        out.write_text("mine")
    before = kills.content(out)
    assert main([*command.arguments]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert kills.content(out) == before
    assert names(here) == sorted([*PREPARED, command.out])


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is forbidden to root")
@pytest.mark.parametrize("name", kills.COMMANDS)
def test_folder_that_cannot_be_written_to_is_named(here, capsys, name):
    mode = here.stat().st_mode
    here.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        assert main([*kills.COMMANDS[name].arguments]) == 2
    finally:
        here.chmod(mode)
    said = capsys.readouterr().err
    assert len(said.splitlines()) == 1
    assert str(here) in said or kills.COMMANDS[name].out in said


def test_full_disk_is_one_line_and_the_file_of_before(here):
    """A limit to the size of files stands for the disk."""
    io.save(kills.tiny(), here / "m")
    before = kills.content(here / "m")
    limited = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, resource.RLIM_INFINITY))\n"
    code = f"{limited}import sys; from gms_fast.cli import main; sys.exit(main(sys.argv[1:]))"
    command = ("train", "--data", "x.npy", "--out", "run", "--steps", "1", "--head-steps", "1", "--channel-mult", "1")
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"gms-fast: error: File too large: {here}/run/noise/checkpoint.pt; the same command")
    assert names(here / "run" / "noise") == []
    code = f"{limited}from bench.faults import kills; kills.io.save(kills.tiny(1), 'm')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert f"File too large: '{here}/m" in done.stderr
    assert kills.content(here / "m") == before
    assert names(here) == sorted([*PREPARED, "m", "run"])
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


# --- statistics ---

EMPIRICAL, GAUSSIAN = (kills.COMMANDS[name].arguments for name in ("statistics", "statistics --gaussian"))


OF_DATA = ("statistics", "--gaussian", "--data", "x.npy", "--out", "x.safetensors")


@pytest.mark.parametrize("command", [EMPIRICAL, GAUSSIAN, OF_DATA])
def test_statistics_that_are_finished_are_done_again_at_once(here, capsys, monkeypatch, command):
    assert main([*command]) == 0
    first, said = (here / "x.safetensors").read_bytes(), capsys.readouterr().out
    assert main([*command]) == 2
    assert "already exists; delete it or choose another file" in capsys.readouterr().err
    monkeypatch.setattr(MomentUNet, "forward", lambda *_: pytest.fail("it was measured again"))
    assert main([*command, "--resume"]) == 0
    assert capsys.readouterr().out == said
    assert (here / "x.safetensors").read_bytes() == first


@pytest.mark.parametrize("command", [EMPIRICAL, GAUSSIAN])
@pytest.mark.parametrize("other", [("--seed", "1"), ("--half",), ("--samples", "5")])
def test_statistics_of_another_measurement_are_not_taken_for_done(here, capsys, command, other):
    assert main([*command]) == 0
    assert main([*command, *other, "--resume"]) == 2
    assert "already exists and is of another measurement" in capsys.readouterr().err
    assert main([*command, *other, "--force"]) == 0


@pytest.mark.parametrize("command", [EMPIRICAL, GAUSSIAN, OF_DATA])
def test_statistics_that_are_to_be_replaced_stay_until_they_are(here, capsys, monkeypatch, command):
    assert main([*command]) == 0
    first = (here / "x.safetensors").read_bytes()

    def full(*_, **__):
        raise OSError(28, "No space left on device", "x.safetensors")

    with monkeypatch.context() as patch:
        patch.setattr(kills.tensors, "write", full)
        assert main([*command, "--seed", "1", "--force"]) == 2
    assert (here / "x.safetensors").read_bytes() == first
    assert main([*command, "--seed", "1", "--force"]) == 0


def test_statistics_that_were_to_be_replaced_go_on(here, capsys, monkeypatch):
    assert main([*GAUSSIAN]) == 0
    with monkeypatch.context() as patch:
        patch.setattr(MomentUNet, "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert main([*GAUSSIAN, "--seed", "1", "--force"]) == 130
    assert main([*GAUSSIAN, "--seed", "1", "--resume"]) == 0
    resumed = (here / "x.safetensors").read_bytes()
    assert main([*GAUSSIAN, "--seed", "1", "--force"]) == 0
    assert (here / "x.safetensors").read_bytes() == resumed
    assert names(here) == [*PREPARED, "x.safetensors"]


@pytest.mark.parametrize("name", ["train", "train-heads", "search", "statistics"])
def test_advice_to_resume_is_not_given_with_a_refusal(here, capsys, name):
    command = kills.COMMANDS[name].arguments
    assert main([*command]) == 0
    capsys.readouterr()
    for more in (("--seed", "1", "--resume"), ()):
        assert main([*command, *more]) == 2
        assert "the same command with" not in capsys.readouterr().err


@pytest.mark.parametrize(("name", "steps"), [("train", 16), ("train-heads", 9)])
def test_training_replaces_no_stage_that_another_run_holds(here, capsys, name, steps):
    command, out = kills.COMMANDS[name].arguments, here / kills.COMMANDS[name].out
    assert main([*command]) == 0
    with locks.locked_folder(out / "heads"):
        assert main([*command, "--force"]) == 2
    assert "heads is in use by process" in capsys.readouterr().err
    assert kills._steps(out) == steps
    assert main([*command, "--force"]) == 0


def test_evaluate_replaces_records_that_are_damaged(here, capsys):
    command = kills.COMMANDS["evaluate"].arguments
    (here / "quality").mkdir()
    (here / "quality" / "records.jsonl").write_text("damage\n")
    assert main([*command, "--steps", "1", "--force"]) == 0


def test_samples_drawn_for_statistics_are_not_drawn_again(here, capsys, monkeypatch):
    forward, calls = MomentUNet.forward, []
    batch = statistics.STEPS + 1  # network calls

    def counted(*args):
        calls.append(1)
        if len(calls) == 2 * batch + 1:
            raise KeyboardInterrupt
        return forward(*args)

    monkeypatch.setattr(MomentUNet, "forward", counted)
    assert main([*GAUSSIAN]) == 130
    assert capsys.readouterr().err == f"gms-fast: interrupted{options.LEFT}\n"
    with safe_open(work.partial(here / "x.safetensors"), "pt") as file:
        assert file.get_slice("samples").get_shape() == [4, 1, 4, 4]
    assert main([*GAUSSIAN, "--resume"]) == 0
    assert len(calls) == 3 * batch + 1
    cut = (here / "x.safetensors").read_bytes()
    assert main([*GAUSSIAN, "--force"]) == 0
    assert (here / "x.safetensors").read_bytes() == cut
    assert names(here) == [*PREPARED, "x.safetensors"]


def test_statistics_of_another_batch_size_go_on_from_the_same_samples(here):
    assert main([*GAUSSIAN]) == 0
    whole = load_gaussian("x.safetensors")
    assert main([*GAUSSIAN, "--batch-size", "4", "--force"]) == 0
    torch.testing.assert_close(load_gaussian("x.safetensors").mean, whole.mean, rtol=0, atol=1e-6)


@pytest.mark.parametrize(("name", "steps"), [("train", 16), ("train-heads", 9)])
def test_training_ended_by_a_signal_loses_no_step(here, capsys, monkeypatch, name, steps):
    from gms_fast.training import loop

    step, taken = loop._Step.__call__, []

    def signalled(*args):
        taken.append(1)
        if len(taken) == 3:
            os.kill(os.getpid(), kills.signal.SIGTERM)
        return step(*args)

    monkeypatch.setattr(loop._Step, "__call__", signalled)
    command = kills.COMMANDS[name].arguments
    assert main([*command]) == 143
    assert capsys.readouterr().err == "gms-fast: terminated; the same command with --resume continues from there\n"
    assert kills._steps(here / kills.COMMANDS[name].out) == 3
    assert main([*command, "--resume"]) == 0
    assert len(taken) == steps


def test_data_that_cannot_be_read_leave_nothing(here, capsys):
    np.save("bad.npy", np.full((3, 4, 4), np.nan, np.float32))
    before = names(here)
    for command in (c for c in kills.COMMANDS.values() if "--data" in c.arguments):
        words = ["bad.npy" if word == "x.npy" else word for word in command.arguments]
        assert main(words) == 2
        assert "bad.npy" in capsys.readouterr().err
        assert names(here) == before
