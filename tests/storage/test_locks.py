"""Locks of runs: their holder, their error messages, and their end."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from written import LEFT, names, tiny

from gms_fast import io
from gms_fast.storage import atomic, locks

HOLD = """
import sys, time
sys.path.insert(0, sys.argv[2])
from gms_fast.storage import locks
with locks.locked_{kind}(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture(params=["file", "folder"])
def kind(request):
    return request.param


@pytest.fixture
def holder(tmp_path, kind):
    command = [sys.executable, "-c", HOLD.format(kind=kind), str(tmp_path / "x"), str(Path(io.__file__).parents[1])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def locked(kind, path):
    return {"file": locks.locked_file, "folder": locks.locked_folder}[kind](path)


def test_the_second_run_is_told_of_the_first(tmp_path, kind, holder):
    host, year = socket.gethostname(), time.strftime("%Y")
    with (
        pytest.raises(BlockingIOError, match=rf"x is in use by process {holder.pid} on {host} since {year}-"),
        locked(kind, tmp_path / "x"),
    ):
        pytest.fail("two hold one file")
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with locked(kind, tmp_path / "x"):
        said = json.loads((tmp_path / {"file": ".x.lock", "folder": "x/.lock"}[kind]).read_text())
        assert said["pid"] == os.getpid()
    assert names(tmp_path) == ({"x"} if kind == "folder" else set())


def test_a_lock_is_that_of_the_file_behind_a_link(tmp_path):
    (tmp_path / "l").symlink_to(tmp_path / "x")
    with (
        locks.locked_file(tmp_path / "x"),
        pytest.raises(BlockingIOError, match="l is in use"),
        locks.locked_file(tmp_path / "l"),
    ):
        pytest.fail("two hold one file")


def test_a_lock_that_cannot_be_written_to_counts_for_nothing_when_nobody_holds_it(tmp_path, monkeypatch):
    (tmp_path / ".x.lock").write_text("{}")
    opened = os.open

    def forbidden(path, flags, *rest):
        if flags & os.O_RDWR and os.path.exists(path):
            raise PermissionError(13, "Permission denied", str(path))
        return opened(path, flags, *rest)

    monkeypatch.setattr(os, "open", forbidden)
    with locks.locked_file(tmp_path / "x"):
        assert names(tmp_path) == {".x.lock"}


def test_a_lock_ends_with_its_block(tmp_path, kind):
    for _ in range(2):
        with pytest.raises(ValueError, match="some"), locked(kind, tmp_path / "x"):
            raise ValueError("some")


def test_one_of_many_threads_holds_a_lock(tmp_path, kind):
    held, worst = [], []

    def work():
        for _ in range(200):
            with suppress(BlockingIOError), locked(kind, tmp_path / "x"):
                held.append(1)
                worst.append(len(held))
                held.pop()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(worst) == {1}


def test_where_nothing_can_be_locked_nothing_is(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(locks, "fcntl", None)
    with locked(kind, tmp_path / "x"), locked(kind, tmp_path / "x"), locks.abandoned(tmp_path) as free:
        assert not free
    (tmp_path / LEFT).touch()
    atomic.write_text(tmp_path / "x" if kind == "file" else tmp_path / "x" / "y", "new")
    assert LEFT in names(tmp_path)
    for head in (None, "simple"):
        io.save(tiny(head=head), tmp_path / "model")
        assert io.load(tmp_path / "model").config["head"] == head
