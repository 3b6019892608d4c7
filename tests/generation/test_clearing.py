"""Deletion of a run: all of it, and nothing else."""

import os
import signal
import time

import pytest
from generated import NAMES, Net, appears, forked, made

from bench.faults.kills import content
from gms_fast.generation import clear

pytestmark = pytest.mark.usefixtures("one_thread")
FORMS = ("npz", "png")


@pytest.mark.parametrize("form", FORMS)
def test_run_is_deleted_and_what_is_not_of_it_stays(tmp_path, form):
    made(tmp_path, form=form)
    for name in ("thesis.tex", "000000000-000000003.npz", f"{NAMES[0]}.txt"):
        (tmp_path / name).write_text("mine")
    clear(tmp_path)
    assert sorted(content(tmp_path)) == ["000000000-000000003.npz", f"{NAMES[0]}.txt", "thesis.tex"]
    assert sorted(os.listdir(tmp_path)) == sorted(content(tmp_path))


@pytest.mark.parametrize("form", FORMS)
def test_another_run_may_take_its_place(tmp_path, form):
    made(tmp_path / "a", form=form)
    clear(tmp_path / "a")
    assert os.listdir(tmp_path / "a") == []
    for name in "ab":
        made(tmp_path / name, form="npz", seed=3)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_broken_shards_are_deleted_too(tmp_path):
    made(tmp_path, form="png")
    (tmp_path / NAMES[0] / "000000003.png").write_bytes(b"")
    (tmp_path / NAMES[1] / "made.json").unlink()
    clear(tmp_path)
    assert os.listdir(tmp_path) == []


def test_folder_without_a_run_stays_as_it_is(tmp_path):
    (tmp_path / f"{NAMES[0]}.npz").write_text("mine")
    clear(tmp_path)
    clear(tmp_path / "gone")
    assert content(tmp_path) == {f"{NAMES[0]}.npz": b"mine"}
    assert not (tmp_path / "gone").exists()


def test_damaged_settings_are_named_and_nothing_is_deleted(tmp_path):
    made(tmp_path)
    (tmp_path / "run.json").write_text("{")
    before = content(tmp_path)
    with pytest.raises(ValueError, match=r"run\.json does not contain the settings of a run"):
        clear(tmp_path)
    assert content(tmp_path) == before


def test_run_in_which_another_process_draws_is_not_deleted(tmp_path):
    out = tmp_path / "out"

    def wait(rows):
        (tmp_path / "draws").touch()
        time.sleep(600)

    child = forked(lambda: made(out, Net(seen=wait)))
    try:
        appears(tmp_path / "draws")
        before = content(out)
        with pytest.raises(BlockingIOError, match=f"out: {out} is in use by a process that is drawing {NAMES[0]}"):
            clear(out)
        assert content(out) == before
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    clear(out)
    assert os.listdir(out) == []


def test_deletion_that_is_killed_can_be_done_again(tmp_path, monkeypatch):
    made(tmp_path)
    removed = os.unlink

    def twice(path, *rest, **options):
        if len([name for name in os.listdir(tmp_path) if name.endswith(".npz")]) < 2:
            raise KeyboardInterrupt
        removed(path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.os.unlink", twice)
        with pytest.raises(KeyboardInterrupt):
            clear(tmp_path)
    assert (tmp_path / "run.json").exists()
    assert len(content(tmp_path)) == 2
    clear(tmp_path)
    assert os.listdir(tmp_path) == []


def test_claim_of_another_machine_is_watched_for_a_while_before_it_counts_for_nothing(tmp_path, monkeypatch):
    made(tmp_path)
    (tmp_path / "claims").mkdir()
    (tmp_path / "claims" / NAMES[0]).write_text('{"host": "elsewhere", "pid": 1}')
    now = [1000.0]

    def sleep(seconds):
        now[0] += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("gms_fast.generation.clearing.time.sleep", sleep)
    clear(tmp_path)
    assert os.listdir(tmp_path) == []
    assert now[0] > 1060
