"""Processes that write or remove one folder at the same time, or are killed meanwhile."""

import os
import random
import sys

import pytest
from generated import appears, forked, statuses
from written import names

from bench.faults import tracing
from gms_fast.storage import atomic

forks = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")


def pair(path, text, **options):
    """Write a folder of two files with equal content."""
    with atomic.writing_folder(path, **options) as folder:
        atomic.write_inside(folder, [("a", text.encode()), ("b", text.encode())])


def said(path):
    return {(path / name).read_text() for name in names(path)}


@forks
@pytest.mark.parametrize("swept", [True, False])
@pytest.mark.parametrize("exchanged", [True, False])
@pytest.mark.parametrize("removed", [True, False])
def test_processes_that_write_one_folder_all_succeed(tmp_path, monkeypatch, exchanged, swept, removed):
    if not exchanged:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)

    def write(rank):
        draw = random.Random(rank)
        (tmp_path / f"begun {rank}").touch()
        appears(*(tmp_path / f"begun {other}" for other in range(4)))
        for _ in range(40):
            pair(tmp_path / "inner" / "x", str(rank), swept=swept)
            if removed and draw.random() < 0.5:
                atomic.remove_folder(tmp_path / "inner" / "x")
        pair(tmp_path / "inner" / "x", str(rank), swept=swept)

    (tmp_path / "inner").mkdir()
    assert statuses([forked(lambda rank=rank: write(rank)) for rank in range(4)]) == [0] * 4
    pair(tmp_path / "inner" / "x", "last")
    assert said(tmp_path / "inner" / "x") == {"last"}
    assert names(tmp_path / "inner") == {"x"}


def test_scratch_folder_that_is_swept_before_its_lock_is_made_again(tmp_path, monkeypatch):
    mkdir, made = os.mkdir, []

    def swept(path, *rest):
        mkdir(path, *rest)
        made.append(path)
        if len(made) == 1:
            os.rmdir(path)

    monkeypatch.setattr(os, "mkdir", swept)
    pair(tmp_path / "x", "new")
    assert len(made) == 2
    assert said(tmp_path / "x") == {"new"}


@pytest.mark.parametrize("exchanged", [True, False])
def test_folder_that_appears_or_goes_between_two_steps_is_no_error(tmp_path, monkeypatch, exchanged):
    rename, path, done = os.rename, tmp_path / "x", []

    def late(one, other):
        if not done and other == path:
            done.append("appears")
            pair(path, "other")
        elif exchanged is False and len(done) == 1 and one == path:
            done.append("goes")
            atomic.remove_folder(path)
        rename(one, other)

    if not exchanged:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    monkeypatch.setattr(os, "rename", late)
    pair(path, "new")
    assert done == (["appears"] if exchanged else ["appears", "goes"])
    assert said(path) == {"new"}
    assert names(tmp_path) == {"x"}


def test_folder_whose_parent_vanished_is_named(tmp_path):
    (tmp_path / "away").mkdir()

    def write():
        with atomic.writing_folder(tmp_path / "away" / "x", parents=False) as folder:
            folder.rmdir()
            (tmp_path / "away").rmdir()

    for _ in range(2):
        with pytest.raises(FileNotFoundError, match=r"away/x"):
            write()


@forks
def test_folder_is_removed_as_a_whole_wherever_a_kill_ends_it(tmp_path):
    if not tracing.available():
        pytest.skip("processes cannot be traced here")
    path, calls = tmp_path / "x", 0
    pair(path, "1")
    while tracing.killed(lambda: atomic.remove_folder(path), calls):
        assert not path.exists() or names(path) == {"a", "b"}
        atomic.sweep(tmp_path, lambda name: name == "x")
        assert names(tmp_path) <= {"x"}
        pair(path, "1")
        calls += 1
    assert calls > 4
    atomic.remove_folder(path)
    assert names(tmp_path) == set()
