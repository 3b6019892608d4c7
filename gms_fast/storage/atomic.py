"""Files and folders that appear whole or not at all: the one writer of this package.

A writer fills a scratch file or folder beside its target, brings it to the disk, and gives it the target's name in one
step of the file system, so that a kill at any moment leaves the old content or the new. Scratch that a kill leaves is
removed by the next write to the same target, or by `sweep` for many targets at once. It is told from that of a writer
at work by a lock that dies with its process. Modes follow the umask, and a link at the target stays one.
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

_EXCHANGE, _AT_FDCWD = 2, -100  # of Linux's renameat2
_UNSUPPORTED = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EPERM}
_SYNCED = 8  # files at a time
_LONGEST = 200  # bytes of a name that may grow by a few more
_PREVIOUS = ".previous"
_TOKEN = r"\.[0-9a-f]{8}\.partial"
_TAKEN = {errno.ENOTEMPTY, errno.EEXIST}  # by a folder that another process has put there meanwhile


@contextmanager
def writing(path: str | Path, *, parents: bool = False, swept: bool = True) -> Iterator[BinaryIO]:
    """A file to write bytes to, which takes the place of `path` when the block ends without an error.

    parents  make the folders on the way. A run does not: one that vanished while it ran is an error
    swept    remove what killed writers of `path` left, for which its folder is listed; False where `sweep` does it
    Raises OSError naming `path`; what was there stays then.
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
                    file.close()  # what is buffered is not to be written, and its errors are no news
                    if file.failed is None or not isinstance(error, Exception):
                        raise
                    raise file.failed from error  # of which a library may have made another
                buffer.flush()
                os.fsync(handle)
                if not locks.there_are():
                    buffer.close()  # Windows gives no open file another name
                os.replace(scratch, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(scratch)
            raise
        _sync(path.parent)


@contextmanager
def writing_folder(path: str | Path, *, parents: bool = True, swept: bool = True) -> Iterator[Path]:
    """An empty folder, which takes the place of `path` when the block ends without an error; to be filled by `writing`,
    or faster by `write_inside`.

    Where the file system can exchange two names there is no moment without either. Elsewhere the old folder bears
    another name for a moment, under which `present` finds it, and the next write sets it right. Of processes that write
    one folder at the same time each succeeds, and the last stays.

    parents, swept  as `writing` takes them. Raises OSError naming `path`
    """
    path = _target(path)
    if path.is_dir() and Path.cwd().is_relative_to(path):
        raise ValueError(f"path must not be the working directory, nor hold it, which would be gone: got {path}")
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
            shutil.rmtree(scratch, ignore_errors=True)  # where it took the place of `path`, it has the old content
            if handle is not None:
                os.close(handle)
        _sync(path.parent)


def write_bytes(path: str | Path, data: bytes | memoryview) -> None:
    """Write a file as a whole."""
    with writing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a file of text as a whole."""
    write_bytes(path, text.encode())


def write_inside(folder: Path, files: Iterable[tuple[str, "ReadableBuffer"]]) -> None:
    """Write new files, by name, into a folder that `writing_folder` gives. Raises OSError.

    Nobody looks there yet, so that none needs scratch. They are brought to the disk together: a file system does that
    for many at a time in little more than it takes for one.
    """
    paths = [_new_inside(folder / name, data) for name, data in files]
    with ThreadPoolExecutor(_SYNCED) as threads:
        list(threads.map(_sync_file, paths))


def write_rows(path: str | Path, rows: Iterable[Iterable[object]]) -> None:
    """Write a file of comma-separated values as a whole."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def append_line(path: str | Path, line: str) -> None:
    """Add a line to a file of lines, or leave it as it was. Raises OSError naming `path`."""
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
    """`path`, or the folder that it was until a write to it was killed halfway."""
    path, previous = Path(path), _previous(_target(path))
    return path if path.exists() or not previous.is_dir() else previous


def remove(path: str | Path, *, swept: bool = True) -> None:
    """Delete a file, and, `swept`, what killed writers of it left; nothing may be there."""
    path = _target(path)
    path.unlink(missing_ok=True)
    if swept and path.parent.is_dir():
        _sweep(path)


def remove_folder(path: str | Path) -> None:
    """Delete a folder and all in it, of which nobody sees a half; nothing may be there. A kill leaves scratch."""
    path = _target(path)
    scratch = _scratch(path)
    with suppress(FileNotFoundError), locks.naming(path):
        os.rename(path, scratch)
    shutil.rmtree(scratch, ignore_errors=True)  # a sweep may be quicker


def sweep(folder: Path, dead: Callable[[str], bool]) -> None:
    """Remove from a folder the scratch that killed writers left of those targets that are `dead`, by their names.

    It is asked of each after its scratch was seen: a claim that is made before a write, and given up after it, tells of
    a writer at work on another machine, whose locks may not be seen here.
    """
    found = re.compile(rf"\.(.+){_TOKEN}")
    for name in os.listdir(folder):
        if (match := found.fullmatch(name)) and dead(match[1]):
            _discard(folder / name)


def clear(folder: Path, files: Iterable[str]) -> None:
    """Delete files of a folder, and the folders in it that are empty then; what else lies there stays."""
    for path in (folder / file for file in files):
        remove(path)
        inner = path.parent
        if inner != folder and inner.is_dir() and not inner.is_symlink() and not any(inner.iterdir()):
            inner.rmdir()


def occupied(folder: Path) -> bool:
    """Tell a folder that holds something from one that is empty, but for what killed writers left."""
    return bool(visible(folder))


def visible(folder: Path) -> list[str]:
    """Names in a folder, without what killed writers left."""
    hidden = re.compile(rf"\..+({_TOKEN}|{re.escape(_PREVIOUS)})|{re.escape(locks.FILE)}")
    return [name for name in os.listdir(folder) if not hidden.fullmatch(name)]


class _Scratch(io.FileIO):
    """A file that remembers the error of the system, which the library that writes to it may pass on as its own."""

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
    """The path itself, behind links."""
    return Path(os.path.realpath(path))


def _scratch(path: Path) -> Path:
    return path.with_name(f"{_hidden(path)}.{secrets.token_hex(4)}.partial")


def _hidden(path: Path) -> str:
    """The name that scratch begins with: that of the target, or a digest where names may not be much longer."""
    long = len(os.fsencode(path.name)) > _LONGEST
    return f".{hashlib.sha256(os.fsencode(path.name)).hexdigest() if long else path.name}"


def _new_file(path: Path) -> tuple[Path, int]:
    """A scratch file, locked; another writer may have taken it for left behind before it was."""
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
        except FileNotFoundError:  # another writer took it for left behind; where its folder is gone, mkdir says so
            continue
        if locks.hold(handle, scratch):
            return scratch, handle
        os.close(handle)


def _sweep(path: Path) -> None:
    """Remove scratch for `path` whose writer is dead."""
    ours = re.compile(re.escape(_hidden(path)) + _TOKEN)
    for scratch in (path.with_name(name) for name in os.listdir(path.parent) if ours.fullmatch(name)):
        _discard(scratch)


def _discard(scratch: Path) -> None:
    """Remove scratch, unless its writer lives."""
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
    with path.open("r+b") as file:  # Windows brings no file to the disk that is open for reading alone
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    """Bring the names in a folder to the disk, where the system can."""
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
    """Give `fresh` the name `path`; a folder that had it is then called `fresh`, and is to be deleted."""
    while not _placed(fresh, path):
        pass  # another process has put a folder there, or removed one, between two of the calls


def _placed(fresh: Path, path: Path) -> bool:
    try:
        if not path.exists():
            os.rename(fresh, path)
        elif not _exchange(fresh, path):
            previous = _previous(path)
            shutil.rmtree(previous, ignore_errors=True)  # of another process, that has put `path` there since
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
    """Undo, or end, what a kill left of `_put`."""
    previous = _previous(path)
    if previous.is_dir() and not path.exists():
        try:
            os.rename(previous, path)
        except OSError as error:  # the writer whose `_put` this is was not killed
            if error.errno not in (*_TAKEN, errno.ENOENT):
                raise
    elif previous.is_dir():
        shutil.rmtree(previous, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step. False where system or file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    if ctypes.get_errno() in _UNSUPPORTED:
        return False
    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
