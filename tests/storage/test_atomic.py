"""Atomic writing of files and folders."""

import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from written import LEFT, names, tiny

from gms_fast import io
from gms_fast.storage import atomic, locks, tensors

# --- files ---


def test_a_file_takes_its_name_when_it_is_whole(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    with atomic.writing(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == {"x"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_leaves_what_was_there(tmp_path, error):
    path = tmp_path / "x"
    path.write_text("old")

    def write():
        with atomic.writing(path) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == {"x"}


def test_an_error_of_the_system_names_the_file_and_wins_over_what_a_library_made_of_it(tmp_path, monkeypatch):
    full = OSError(28, "No space left on device")

    class Full(atomic._Scratch):
        failed = full

        def write(self, data):
            raise full

    def library():
        with atomic.writing(tmp_path / "x") as file:
            raise RuntimeError(f"unexpected pos 64 vs 0 in {file}")

    monkeypatch.setattr(atomic, "_Scratch", Full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/x'"):
        library()
    with pytest.raises(OSError, match=r"No space left on device: '.*/x'"):
        atomic.write_text(tmp_path / "x", "data")
    assert names(tmp_path) == set()


def test_a_folder_on_the_way_is_made_on_request_alone(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"away/x"):
        atomic.write_text(tmp_path / "away" / "x", "")
    tensors.write(tmp_path / "away" / "x", {}, {}, parents=True)
    assert names(tmp_path / "away") == {"x"}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_modes_follow_the_umask(tmp_path, mask):
    before = os.umask(mask)
    try:
        atomic.write_text(tmp_path / "x", "")
        io.save(tiny(), tmp_path / "model")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x").stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "model").stat().st_mode) == 0o777 & ~mask
    for path in (tmp_path / "model").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_links_stay_links(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    for name in ("x", "model"):
        (tmp_path / "here" / name).symlink_to(tmp_path / "there" / name)
    for _ in range(2):
        atomic.write_text(tmp_path / "here" / "x", "new")
        io.save(tiny(), tmp_path / "here" / "model")
    for name in ("x", "model"):
        assert (tmp_path / "here" / name).is_symlink()
        assert (tmp_path / "there" / name).exists()
    assert names(tmp_path / "here") == names(tmp_path / "there") == {"x", "model"}


def test_the_next_write_removes_what_a_killed_one_left(tmp_path):
    for name in (LEFT, ".y.0123abcd.partial", ".x.partial", ".x.y.0123abcd.partial"):
        (tmp_path / name).write_text("half")
    atomic.write_text(tmp_path / "x", "new")
    assert names(tmp_path) == {"x", ".y.0123abcd.partial", ".x.partial", ".x.y.0123abcd.partial"}


def test_the_next_write_spares_what_another_writes(tmp_path):
    with atomic.writing(tmp_path / "x") as file:
        file.write(b"first")
        atomic.write_text(tmp_path / "x", "second")
    assert (tmp_path / "x").read_text() == "first"
    assert names(tmp_path) == {"x"}


def test_threads_that_write_one_file_leave_one_of_theirs(tmp_path):
    texts = [str(i) * 100_000 for i in range(8)]

    def write(text):
        for _ in range(10):
            atomic.write_text(tmp_path / "x", text)

    with ThreadPoolExecutor(len(texts)) as threads:
        done = [threads.submit(write, text) for text in texts]
        while not all(job.done() for job in done):
            assert not (tmp_path / "x").exists() or (tmp_path / "x").read_text() in texts
    assert [job.result() for job in done] == [None] * len(texts)
    assert (tmp_path / "x").read_text() in texts
    assert names(tmp_path) == {"x"}


def test_scratch_is_not_swept_between_its_making_and_its_lock(tmp_path, monkeypatch):
    """A scratch file that another writer deletes as abandoned is made again."""
    hold, swept = locks.hold, []

    def late(handle, path):
        if not swept:
            swept.append(path)
            atomic.remove(tmp_path / "x")
        return hold(handle, path)

    monkeypatch.setattr(locks, "hold", late)
    atomic.write_text(tmp_path / "x", "new")
    assert swept
    assert (tmp_path / "x").read_text() == "new"
    io.save(tiny(), tmp_path / "model")
    assert names(tmp_path) == {"x", "model"}


def test_what_is_swept_is_held_meanwhile(tmp_path):
    (tmp_path / LEFT).touch()
    with locks.abandoned(tmp_path / LEFT) as free:
        assert free
        handle = os.open(tmp_path / LEFT, os.O_RDWR)
        assert not locks.hold(handle, tmp_path / LEFT)
        os.close(handle)


def test_names_may_be_as_long_as_the_system_takes_them(tmp_path):
    for name in ("x" * 255, "ü" * 127):
        atomic.write_text(tmp_path / name, "new")
        (tmp_path / f"{atomic._hidden(tmp_path / name)}.0123abcd.partial").touch()
        atomic.write_text(tmp_path / name, "newer")
    assert names(tmp_path) == {"x" * 255, "ü" * 127}


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError("model returned NaN")])
def test_an_error_of_the_block_is_not_that_of_the_disk(tmp_path, monkeypatch, error):
    monkeypatch.setattr(atomic._Scratch, "write", lambda *_: pytest.fail("what is buffered was written"))

    def write():
        with atomic.writing(tmp_path / "x") as file:
            file.write(b"half")
            raise error

    with pytest.raises(type(error) if isinstance(error, ValueError) else error):
        write()


def test_removing_follows_links_and_spares_linked_folders(tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "run").mkdir()
    (tmp_path / "there" / "x").touch()
    (tmp_path / "run" / "noise").symlink_to(tmp_path / "there")
    (tmp_path / "l").symlink_to(tmp_path / "there" / "x")
    atomic.remove(tmp_path / "l")
    assert (tmp_path / "l").is_symlink()
    assert not (tmp_path / "there" / "x").exists()
    atomic.clear(tmp_path / "run", ["noise/x"])
    assert (tmp_path / "run" / "noise").is_symlink()


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path / "model")
    for path in (".", tmp_path / "model"):
        with pytest.raises(ValueError, match="path must not be or hold the working directory"):
            io.save(tiny(), path)
    assert names(tmp_path / "model") == set()
    io.save(tiny(), "inner")


def test_a_line_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    path, write = tmp_path / "x", os.write
    atomic.append_line(path, "one")

    def full(handle, data):
        if len(data) < 4:
            raise OSError(28, "No space left on device")
        return write(handle, data[:2])

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/x'"):
        atomic.append_line(path, "three")
    assert path.read_text() == "one\n"


# --- folders ---


@pytest.mark.parametrize("exchanged", [True, False])
def test_a_folder_is_replaced_as_a_whole(tmp_path, monkeypatch, exchanged):
    if not exchanged:
        monkeypatch.setattr(atomic, "_exchange", lambda *_: False)
    for head in (None, "simple"):
        io.save(tiny(head=head), tmp_path / "model")
        assert io.load(tmp_path / "model").config["head"] == head
    assert names(tmp_path) == {"model"}


def test_names_are_exchanged_where_the_system_can(tmp_path):
    if not sys.platform.startswith("linux"):
        pytest.skip("renameat2 is of Linux")
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    if not atomic._exchange(tmp_path / "one", tmp_path / "other"):
        pytest.skip("this file system cannot exchange names")
    assert (names(tmp_path / "one"), names(tmp_path / "other")) == ({"other"}, {"one"})


def test_a_save_that_was_killed_between_its_renames_loses_nothing(tmp_path):
    io.save(tiny(), tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".model.previous")
    assert io.load(tmp_path / "model").config["head"] is None
    assert names(tmp_path) == {".model.previous"}
    (tmp_path / ".model.previous" / "precious").touch()
    with pytest.raises(FileExistsError, match="is not a saved model"):
        io.save(tiny(), tmp_path / "model")
    (tmp_path / ".model.previous" / "precious").unlink()
    io.save(tiny(head="simple"), tmp_path / "model")
    assert io.load(tmp_path / "model").config["head"] == "simple"
    assert names(tmp_path) == {"model"}


def test_a_save_that_fails_after_a_kill_sets_the_old_model_right(tmp_path, monkeypatch):
    io.save(tiny(), tmp_path / "model")
    (tmp_path / "model").rename(tmp_path / ".model.previous")
    monkeypatch.setattr(tensors, "write", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        io.save(tiny(head="simple"), tmp_path / "model")
    assert names(tmp_path) == {"model"}
    assert io.load(tmp_path / "model").config["head"] is None


def test_a_folder_with_litter_alone_is_free(tmp_path):
    assert not atomic.occupied(tmp_path)
    (tmp_path / LEFT).touch()
    (tmp_path / locks.FILE).touch()
    assert not atomic.occupied(tmp_path)
    (tmp_path / "x.partial").touch()
    assert atomic.occupied(tmp_path)


# --- scratch of many targets ---


def test_sweep_takes_scratch_of_the_dead_alone(tmp_path):
    for name in (".x.0123abcd.partial", ".y.0123abcd.partial", ".x.partial"):
        (tmp_path / name).touch()
    (tmp_path / ".z.0123abcd.partial").mkdir()
    (tmp_path / ".z.0123abcd.partial" / "inner").touch()
    with atomic.writing(tmp_path / "x") as file, atomic.writing_folder(tmp_path / "z", swept=False):
        file.write(b"new")
        atomic.sweep(tmp_path, lambda name: name in ("x", "z"))
        assert len(names(tmp_path)) == 4
    assert names(tmp_path) == {"x", "z", ".y.0123abcd.partial", ".x.partial"}


def test_writes_to_a_folder_of_many_files_need_not_list_it(tmp_path, monkeypatch):
    (tmp_path / LEFT).touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "listdir", lambda *_: pytest.fail("it is listed"))
        for _ in range(2):
            with atomic.writing(tmp_path / "x", swept=False) as file:
                file.write(b"new")
            with atomic.writing_folder(tmp_path / "y", swept=False):
                pass
        atomic.remove(tmp_path / "x", swept=False)
    assert names(tmp_path) == {LEFT, "y"}


def test_files_inside_are_new_ones(tmp_path):
    atomic.write_inside(tmp_path, [("a", b"one")])
    with pytest.raises(FileExistsError, match="a"):
        atomic.write_inside(tmp_path, [("a", b"two")])
    assert (tmp_path / "a").read_bytes() == b"one"
