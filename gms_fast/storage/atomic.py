"""Atomic writes: files and folders appear whole or not at all.

A writer fills a scratch file or folder beside its target and flushes it to the disk. Then it renames the scratch to the
target in one step of the file system. A kill at any moment leaves either the old content or the new.

Scratch that a kill leaves is removed by the next write to the same target, or by `sweep` for many targets at once. A
live writer holds a lock on its scratch, and the lock dies with its process. Modes follow the umask. If the target is a
link, the link stays and the file behind it is replaced.

Everything in this package that writes a file uses this module.
"""

import csv
import ctypes
import errno
import hashlib
import io
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from gms_fast.storage import locks

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_EXCHANGE, _AT_FDCWD = 2, -100  # arguments of renameat2 (Linux)
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
_SYNCED = 8  # files flushed in parallel
_LONGEST = 200  # bytes of a target's name; scratch names are longer by a suffix
_PREVIOUS = ".previous"
_TOKEN = r"\.[0-9a-f]{8}\.partial"
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}  # another process has put a folder there meanwhile


@contextmanager
def writing(path: str | Path, *, parents: bool = False, swept: bool = True) -> Iterator[BinaryIO]:
    """Open a scratch file for bytes that replaces `path` when the block ends without an error.

    Args:
        path: The target.
        parents: Make missing parent folders. Runs leave this off: a folder that vanishes meanwhile is an error.
        swept: Remove scratch of killed writers of `path`, which lists its folder. Pass False if `sweep` does it.

    Raises OSError that names `path`; the old content then stays.
    """
    path = _target(path)
    with locks.naming(path):
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        if swept:
            _sweep(path)
        scratch, handle = _new_file(path)
        file = _Scratch(handle)
        try:
            with io.BufferedWriter(file, 1 << 20) as buffer:
                try:
                    yield buffer
                except BaseException as error:
                    file.close()  # discards the buffer; further write errors do not matter
                    if file.failed is None or not isinstance(error, Exception):
                        raise
                    raise file.failed from error  # the library may have replaced it by an error of its own
                buffer.flush()
                os.fsync(handle)
                if not locks.there_are():
                    buffer.close()  # Windows cannot rename an open file
                os.replace(scratch, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise
        _sync(path.parent)


@contextmanager
def writing_folder(path: str | Path, *, parents: bool = True, swept: bool = True) -> Iterator[Path]:
    """Open an empty scratch folder that replaces `path` when the block ends without an error.

    Fill it by `writing`, or faster by `write_inside`.

    If the file system can exchange two names, one of the folders has the name `path` at every moment. Otherwise the old
    folder bears another name for a moment. `present` finds it there, and the next write repairs it. If several
    processes write one folder at the same time, each succeeds and the last one stays.

    Args:
        path: The target.
        parents: As in `writing`, but on by default.
        swept: As in `writing`.

    Raises OSError that names `path`, and ValueError if `path` is or holds the working directory.
    """
    path = _target(path)
    if path.is_dir() and Path.cwd().is_relative_to(path):
        raise ValueError(f"path must not be or hold the working directory, which the write would replace: got {path}")
    with locks.naming(path):
        if parents:
            path.parent.mkdir(parents=True, exist_ok=True)
        _recover(path)
        if swept:
            _sweep(path)
        scratch, handle = _new_folder(path)
        try:
            yield scratch
            _sync(scratch)
            _put(scratch, path)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)  # after an exchange this is the old content
            if handle is not None:
                os.close(handle)
        _sync(path.parent)


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Write a file atomically."""
    with writing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file atomically."""
    write_bytes(path, text.encode())


def write_inside(folder: Path, files: Iterable[tuple[str, "ReadableBuffer"]]) -> None:
    """Write new files, given as (name, bytes), into a scratch folder of `writing_folder`.

    No other process reads that folder yet, so the files need no scratch of their own. They are flushed to the disk in
    parallel: a file system flushes many in little more time than one. Raises OSError.
    """
    paths = [_new_inside(folder / name, data) for name, data in files]
    with ThreadPoolExecutor(_SYNCED) as threads:
        list(threads.map(_sync_file, paths))


def write_rows(path: str | Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a file of comma-separated values atomically."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def append_line(path: str | Path, line: str) -> None:
    """Append a line to a file, or leave the file unchanged if that fails.

    Raises OSError that names `path`.
    """
    path = Path(path)
    with locks.naming(path):
        handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        size = os.fstat(handle).st_size
        try:
            left = memoryview(line.encode() + b"\n")
            while left:
                left = left[os.write(handle, left) :]
            os.fsync(handle)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(handle, size)
            raise
        finally:
            os.close(handle)


def present(path: str | Path) -> Path:
    """Return `path`, or the backup of that folder if a killed write left only the backup."""
    path, previous = Path(path), _previous(_target(path))
    return path if path.exists() or not previous.is_dir() else previous


def remove(path: str | Path, *, swept: bool = True) -> None:
    """Delete a file if it exists and, if `swept`, the scratch of its killed writers."""
    path = _target(path)
    path.unlink(missing_ok=True)
    if swept and path.parent.is_dir():
        _sweep(path)


def remove_folder(path: str | Path) -> None:
    """Delete a folder with its content, if it exists; no reader sees it half deleted.

    A kill during the deletion leaves scratch.
    """
    path = _target(path)
    scratch = _scratch(path)
    with suppress(FileNotFoundError), locks.naming(path):
        os.rename(path, scratch)
    shutil.rmtree(scratch, ignore_errors=True)  # another process's sweep may delete it first


def sweep(folder: Path, dead: Callable[[str], bool]) -> None:
    """Remove killed writers' scratch from a folder, for those targets whose name is `dead`.

    `dead` is called after the scratch was seen. This order matters for writers on other machines, whose locks may be
    invisible here: they claim the target before they write and give up the claim afterwards.
    """
    found = re.compile(rf"\.(.+){_TOKEN}")
    for name in os.listdir(folder):
        if (match := found.fullmatch(name)) and dead(match[1]):
            _discard(folder / name)


def clear(folder: Path, files: Iterable[str]) -> None:
    """Delete files of a folder and the subfolders that become empty; keep everything else."""
    for path in (folder / file for file in files):
        remove(path)
        inner = path.parent
        if inner != folder and inner.is_dir() and not inner.is_symlink() and not any(inner.iterdir()):
            inner.rmdir()


def occupied(folder: Path) -> bool:
    """Return True if a folder holds anything but the remains of killed writers."""
    return bool(visible(folder))


def visible(folder: Path) -> list[str]:
    """List the names in a folder without the remains of killed writers."""
    hidden = re.compile(rf"\..+({_TOKEN}|{re.escape(_PREVIOUS)})|{re.escape(locks.FILE)}")
    return [name for name in os.listdir(folder) if not hidden.fullmatch(name)]


class _Scratch(io.FileIO):
    """Scratch file that remembers an OSError which the calling library may replace by its own."""

    failed: OSError | None = None

    def __init__(self, handle: int) -> None:
        super().__init__(handle, "w")

    def write(self, data: "ReadableBuffer") -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.failed = error
            raise


def _target(path: str | Path) -> Path:
    """Resolve links."""
    return Path(os.path.realpath(path))


def _scratch(path: Path) -> Path:
    return path.with_name(f"{_hidden(path)}.{secrets.token_hex(4)}.partial")


def _hidden(path: Path) -> str:
    """Return the prefix of scratch names: the target's name, or its digest if that is too long."""
    long = len(os.fsencode(path.name)) > _LONGEST
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest() if long else path.name}"


def _new_file(path: Path) -> tuple[Path, int]:
    """Create and lock a scratch file.

    Another writer may see the file before it is locked and delete it as abandoned; then a new one is made.
    """
    while True:
        scratch = _scratch(path)
        handle = os.open(scratch, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if locks.hold(handle, scratch):
            return scratch, handle
        os.close(handle)


def _new_folder(path: Path) -> tuple[Path, int | None]:
    while True:
        scratch = _scratch(path)
        os.mkdir(scratch)
        if not locks.there_are():
            return scratch, None
        try:
            handle = os.open(scratch, os.O_RDONLY)
        except FileNotFoundError:  # another writer deleted it as abandoned; if the parent is gone, mkdir raises
            continue
        if locks.hold(handle, scratch):
            return scratch, handle
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove scratch of `path` whose writer is dead."""
    ours = re.compile(re.escape(_hidden(path)) + _TOKEN)
    for scratch in (path.with_name(name) for name in os.listdir(path.parent) if ours.fullmatch(name)):
        _discard(scratch)


def _discard(scratch: Path) -> None:
    """Remove scratch unless its writer is alive."""
    with locks.abandoned(scratch) as free:
        if free and scratch.is_dir():
            shutil.rmtree(scratch, ignore_errors=True)
        elif free:
            scratch.unlink(missing_ok=True)


def _new_inside(path: Path, data: "ReadableBuffer") -> Path:
    with path.open("xb") as file:
        file.write(data)
    return path


def _sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows cannot flush a file that is open for reading only
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Flush the entries of a folder to the disk, if the system can."""
    if os.name == "nt":
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSUPPORTED:
            raise
    finally:
        os.close(handle)


def _put(fresh: Path, path: Path) -> None:
    """Rename `fresh` to `path`; a folder that was there gets the name `fresh`, to be deleted."""
    while not _placed(fresh, path):
        pass  # another process created or removed a folder between two of the calls


def _placed(fresh: Path, path: Path) -> bool:
    try:
        if not path.exists():
            os.rename(fresh, path)
        elif not _exchange(fresh, path):
            previous = _previous(path)
            shutil.rmtree(previous, ignore_errors=True)  # left by another process that has since written `path`
            os.rename(path, previous)
            os.rename(fresh, path)
            with suppress(FileNotFoundError):
                os.rename(previous, fresh)
    except OSError as error:
        if error.errno in _TAKEN or (error.errno == errno.ENOENT and fresh.exists()):
            return False
        raise
    return True


def _previous(path: Path) -> Path:
    return path.with_name(f"{_hidden(path)}{_PREVIOUS}")


def _recover(path: Path) -> None:
    """Undo or complete a `_put` that was killed halfway."""
    previous = _previous(path)
    if previous.is_dir() and not path.exists():
        try:
            os.rename(previous, path)
        except OSError as error:  # the writer of this backup is alive and has finished
            if error.errno not in (*_TAKEN, errno.ENOENT):
                raise
    elif previous.is_dir():
        shutil.rmtree(previous, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two names in one step; return False if the system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in _UNSUPPORTED:
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
