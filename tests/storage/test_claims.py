"""Claims on parts of work: each has one owner until the owner ends or is silent too long."""

import errno
import json
import os
import signal
import socket
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from generated import appears, forked, statuses

from bench.faults import tracing
from gms_fast.storage import claims, locks
from gms_fast.storage.claims import BEAT, EXPIRES, Claims

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")


@pytest.fixture
def clock(monkeypatch):
    """Replace the clock of claims by one that the test sets."""
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def foreign(folder, name, mtime=None, host="elsewhere"):
    """Make a claim as left by a machine whose locks are invisible here."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(json.dumps({"host": host, "pid": os.getpid()}))
    if mtime is not None:
        os.utime(folder / name, (mtime, mtime))
    return folder / name


def holder(folder, name, host=None):
    """Start a process that holds a claim and does not end."""

    def hold():
        if host is not None:
            socket.gethostname = lambda: host
        with Claims(folder) as mine:
            assert mine.take(name)
            (folder / "ready").touch()
            time.sleep(600)

    child = forked(hold)
    appears(folder / "ready")
    (folder / "ready").unlink()
    return child


def kill(child):
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def test_part_is_taken_once_and_free_when_it_is_dropped(tmp_path):
    with Claims(tmp_path / "c") as one, Claims(tmp_path / "c") as other:
        assert one.take("x")
        assert not one.take("x")
        assert not other.take("x")
        assert other.take("y")
        one.drop("x")
        assert other.take("x")
        assert json.loads((tmp_path / "c" / "x").read_text()) == {"host": socket.gethostname(), "pid": os.getpid()}


def test_folder_is_gone_with_the_last_of_its_claims(tmp_path):
    with Claims(tmp_path / "c") as one:
        one.take("x")
        with Claims(tmp_path / "c") as other:
            other.take("y")
        assert os.listdir(tmp_path / "c") == ["x"]
    assert os.listdir(tmp_path) == []


def test_folder_that_another_process_removed_between_two_claims_is_made_again(tmp_path):
    with Claims(tmp_path / "c") as one:
        with Claims(tmp_path / "c"):
            pass
        assert os.listdir(tmp_path) == []
        assert one.take("x")
        assert os.listdir(tmp_path / "c") == ["x"]


def test_folder_of_the_run_that_vanished_is_named(tmp_path):
    (tmp_path / "out").mkdir()
    with Claims(tmp_path / "out" / "c") as one:
        (tmp_path / "out" / "c").rmdir()
        (tmp_path / "out").rmdir()
        with pytest.raises(FileNotFoundError, match="out/c"):
            one.take("x")


@pytest.mark.parametrize("processes", [2, 5])
def test_of_processes_that_race_one_has_each_part(tmp_path, processes):
    """Race for parts; all processes stay alive to the end, because claims of dead ones are free."""
    names = [f"{i:03d}" for i in range(200)]

    def race(rank):
        with Claims(tmp_path / "c") as mine:
            (tmp_path / f"begun {rank}").touch()
            appears(*(tmp_path / f"begun {other}" for other in range(processes)))
            got = [name for _ in range(3) for name in names if mine.take(name)]
            (tmp_path / f"got {rank}.part").write_text(json.dumps(got))
            (tmp_path / f"got {rank}.part").rename(tmp_path / f"got {rank}")
            appears(*(tmp_path / f"got {other}" for other in range(processes)))

    children = [forked(lambda rank=rank: race(rank)) for rank in range(processes)]
    assert statuses(children) == [0] * processes
    got = [json.loads((tmp_path / f"got {rank}").read_text()) for rank in range(processes)]
    assert sorted(name for of_one in got for name in of_one) == names
    assert not (tmp_path / "c").exists()


def test_claim_of_a_process_that_was_killed_is_free_at_once_here(tmp_path):
    child = holder(tmp_path, "x")
    with Claims(tmp_path) as mine:
        try:
            assert not mine.take("x")
        finally:
            kill(child)
        assert mine.take("x")


def test_claim_that_is_being_made_is_not_kept_from_its_lock_by_who_looks(tmp_path, monkeypatch):
    """Test that looking at a claim never takes the lock from its owner.

    Trying a lock means holding it for a moment, in which the owner could not get it.
    """
    tried, held = [], locks.hold
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)  # a file system without unnamed files
    with Claims(tmp_path) as one, Claims(tmp_path) as other:

        def hold(handle, path):
            with monkeypatch.context() as patch:
                patch.setattr(locks, "abandoned", lambda path: tried.append(path) or nullcontext(True))
                assert not other.take("x")
            return held(handle, path)

        monkeypatch.setattr(locks, "hold", hold)
        assert one.take("x")
        assert tried == []
        assert not other.take("x")


@pytest.mark.parametrize("mtime", [None, 0, 4e9], ids=["now", "1970", "future"])
def test_claim_of_another_machine_ends_by_the_clock_of_who_looks(tmp_path, clock, mtime):
    file = foreign(tmp_path / "c", "x", mtime)
    with Claims(tmp_path / "c") as mine:
        assert not mine.take("x")
        clock[0] += EXPIRES
        assert not mine.take("x")
        clock[0] += 1
        assert mine.take("x")
        assert json.loads(file.read_text())["host"] == socket.gethostname()


def test_claim_that_beats_does_not_end_whatever_its_machine_takes_for_the_time(tmp_path, clock):
    file = foreign(tmp_path / "c", "x", 0)
    with Claims(tmp_path / "c") as mine:
        for beat in (10, 5, 4e9, 3):  # a clock may be set back
            assert not mine.take("x")
            clock[0] += EXPIRES - 1
            os.utime(file, (beat, beat))
        assert not mine.take("x")
        clock[0] += EXPIRES + 1
        assert mine.take("x")


def test_claim_of_a_slow_process_is_taken_though_it_beats_where_that_is_asked_for(tmp_path, clock):
    file = foreign(tmp_path / "c", "x")
    with Claims(tmp_path / "c") as mine:
        assert not mine.take("x", slow=20)
        for second in range(4):
            clock[0] += 6
            os.utime(file, (second, second))
            assert not mine.take("x")
            assert mine.take("x", slow=20) == (second == 3)
            if second < 3:
                assert not mine.take("x", slow=40)


def test_locks_of_another_machine_say_nothing(tmp_path, clock):
    """Test a file system that shares no locks, where foreign claims look abandoned."""
    foreign(tmp_path / "c", "x")
    with Claims(tmp_path / "c") as mine:
        assert not mine.take("x")


@pytest.mark.parametrize("text", ["", "{}", "[]", "nonsense", '{"host": 7}', "\x00" * 9000])
def test_claim_that_says_nothing_ends_as_that_of_another_machine(tmp_path, clock, text):
    (tmp_path / "x").write_text(text)
    with Claims(tmp_path) as mine:
        assert not mine.take("x")
        clock[0] += EXPIRES + 1
        assert mine.take("x")


def test_claim_that_was_taken_over_stays_when_its_first_owner_drops_it(tmp_path, clock):
    with Claims(tmp_path / "c") as first, Claims(tmp_path / "c") as second, Claims(tmp_path / "c") as third:
        assert first.take("x")
        assert not second.take("x")
        clock[0] += EXPIRES + 1
        assert second.take("x")
        first.drop("x")
        assert not third.take("x")
        assert os.listdir(tmp_path / "c") == ["x"]
    assert not (tmp_path / "c").exists()


def test_claims_beat_until_they_end(tmp_path, monkeypatch):
    assert EXPIRES > 3 * BEAT, "a beat that is late must not cost a claim"
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with Claims(tmp_path) as mine:
        mine.take("x")
        os.utime(tmp_path / "x", (0, 0))
        end = time.monotonic() + 30
        while (tmp_path / "x").stat().st_mtime == 0:
            assert time.monotonic() < end, "it does not beat"
            time.sleep(0.01)
    assert not mine._heart.is_alive()


def test_claims_on_what_is_done_are_swept_but_for_those_of_here(tmp_path):
    foreign(tmp_path / "c", "x")
    foreign(tmp_path / "c", "y")
    with Claims(tmp_path / "c") as mine:
        mine.take("z")
        mine.sweep({"x", "z", "other"})
        assert sorted(os.listdir(tmp_path / "c")) == ["y", "z"]


def test_claims_end_where_their_folder_is_gone(tmp_path):
    with Claims(tmp_path / "c") as mine:
        mine.take("x")
        (tmp_path / "c" / "x").unlink()
        (tmp_path / "c").rmdir()
        mine.sweep({"x"})
    with Claims(tmp_path / "c") as mine:
        mine.take("x")
        os.rename(tmp_path / "c", tmp_path / "d")
        mine.drop("x")
    assert os.listdir(tmp_path / "d") == ["x"]


def test_full_disk_is_named_and_leaves_no_claim(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    with Claims(tmp_path) as mine:
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(OSError, match=f"No space left on device: '{tmp_path}/x'"):
                mine.take("x")
        assert os.listdir(tmp_path) == []
        assert mine.take("x")


def test_claims_that_an_error_ends_are_gone(tmp_path):
    with suppress(KeyboardInterrupt), Claims(tmp_path / "c") as mine:
        mine.take("x")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_claim_of_another_host_that_this_machine_sees_locked_beats_it_not(tmp_path, clock):
    """Test the claim of a container, which has another host name on this machine.

    Its death is noticed only by its silence.
    """
    child = holder(tmp_path, "x", host="container")
    kill(child)
    with Claims(tmp_path) as mine:
        assert not mine.take("x")
        clock[0] += EXPIRES + 1
        assert mine.take("x")


def test_no_kill_leaves_a_claim_that_says_nothing(tmp_path, clock):
    """Kill a process after each of its system calls while it makes a claim."""
    if not tracing.available() or not hasattr(os, "O_TMPFILE"):
        pytest.skip("processes cannot be traced here")

    def take():
        Claims(tmp_path / "c").take("x")

    calls = 0
    while tracing.killed(take, calls):
        with Claims(tmp_path / "c") as mine:
            assert mine.take("x"), f"after {calls} calls there is a claim that says nothing"
            assert os.listdir(tmp_path / "c") == ["x"]
        calls += 1
    assert calls > 5


def test_claims_where_no_file_is_without_a_name(tmp_path, monkeypatch):
    monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    test_part_is_taken_once_and_free_when_it_is_dropped(tmp_path)


def test_claim_that_another_machine_removed_is_no_longer_ours(tmp_path, monkeypatch):
    """Test a claim whose handle is stale on NFS."""
    fstat = os.fstat

    def stale(handle):
        if handle in mine._mine.values() or handle in gone:
            raise OSError(errno.ESTALE, "Stale file handle")
        return fstat(handle)

    with Claims(tmp_path / "c") as mine:
        assert mine.take("x")
        gone = [*mine._mine.values()]
        monkeypatch.setattr(os, "fstat", stale)
        assert not mine.ours("x")
        mine.drop("x")
        assert os.listdir(tmp_path / "c") == ["x"]  # another process has it by now


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="open files are known by /proc")
def test_claims_of_a_system_that_removes_no_open_file_and_touches_none_by_handle(tmp_path, monkeypatch, clock):
    """Imitate Windows, which cannot remove open files or touch files by handle."""
    unlink, utime, beats = os.unlink, os.utime, []

    def refusing(path, **options):
        found = os.stat(path)
        for handle in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(f"/proc/self/fd/{handle}"), found):
                    raise PermissionError(13, "Permission denied", str(path))
        unlink(path, **options)

    def by_path(path, *rest):
        beats.append(path)
        if isinstance(path, int):
            raise TypeError("path should be a path")
        utime(path, *rest)

    for owner, name, value in ((locks, "fcntl", None), (os, "unlink", refusing), (os, "utime", by_path)):
        monkeypatch.setattr(owner, name, value)
    monkeypatch.setattr(os, "supports_fd", set())
    with Claims(tmp_path / "c") as one, Claims(tmp_path / "c") as other:
        assert one.take("x")
        assert not other.take("x")
        one._touch("x", one._mine["x"])
        assert beats == [tmp_path / "c" / "x"]
        clock[0] += EXPIRES + 1
        assert not other.take("x")  # a live owner keeps it
        other.sweep({"x"})
        one.drop("x")
        assert other.take("x")
        one._mine["gone"] = other._mine["x"]
        one._touch("gone", one._mine.pop("gone"))
        assert len(beats) == 1  # claims of others are never touched
    assert not (tmp_path / "c").exists()


def test_heart_goes_on_after_any_error(tmp_path, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    beats = []

    def fail(name, handle):
        beats.append(name)
        raise [OSError(5, "Input/output error"), TypeError("no handle"), NotImplementedError][len(beats) % 3]

    with Claims(tmp_path / "c") as mine:
        monkeypatch.setattr(mine, "_touch", fail)
        mine.take("x")
        end = time.monotonic() + 30
        while len(beats) < 9:
            assert time.monotonic() < end, "it has stopped"
            time.sleep(0.01)


def test_folder_that_others_remove_meanwhile_is_made(tmp_path, monkeypatch):
    """Path.mkdir fails where the folder is gone again when it looks at what is in the way."""
    calls, mkdir = [], Path.mkdir

    def raced(self, *options):
        calls.append(self)
        if len(calls) == 1:
            raise FileExistsError(errno.EEXIST, "File exists", str(self))
        mkdir(self, *options)

    monkeypatch.setattr(Path, "mkdir", raced)
    claims.make(tmp_path / "c")
    claims.make(tmp_path / "c")
    assert (tmp_path / "c").is_dir()
    assert len(calls) == 2
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        claims.make(tmp_path / "file")
