"""Locks that die with their process: one run at a time writes to a folder or a file.

They use `flock`. File systems shared by several machines may or may not share these locks. A system without `flock`
(Windows) locks nothing.
"""

import errno
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:
    fcntl = None  # type: ignore[assignment]  # a module, or None on Windows

FILE = ".lock"
_GONE = {errno.ENOENT, getattr(errno, "ESTALE", errno.ENOENT)}  # ESTALE: removed by another NFS client
_LONGEST = 1 << 10  # bytes read of a lock file


def locked_folder(path: str | Path) -> AbstractContextManager[None]:
    """Make the folder `path` and lock it for this process.

    Raises BlockingIOError that names the process holding it, its host and since when. The lock of a dead process does
    not count.
    """
    return _locked(Path(path), Path(path, FILE))


def locked_file(path: str | Path) -> AbstractContextManager[None]:
    """Lock the file `path`, which need not exist, as `locked_folder` locks a folder."""
    target = Path(os.path.realpath(path))  # the writer follows links too
    return _locked(Path(path), target.with_name(f".{target.name}{FILE}"))


@contextmanager
def _locked(path: Path, file: Path) -> Iterator[None]:
    """Hold `path` by a lock file that names its owner and is removed when the block ends."""
    with naming(path):
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(file, path)
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(file)
        os.close(handle)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Make OSErrors name `path`, not the scratch or lock file beside it."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from None


def _acquire(file: Path, path: Path) -> int:
    while True:
        try:
            handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # another user's lock file, which counts only if its process is alive
            with abandoned(file) as free:
                if not free:
                    raise
                os.unlink(file)
            continue
        try:
            if hold(handle, file):
                os.ftruncate(handle, 0)
                os.write(handle, _said().encode())
                return handle
            if leads_to(handle, file):
                raise BlockingIOError(f"{path} is in use by {_holder(handle)}: wait until it ends, or choose another")
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the holder ended and removed the file in between


def _said() -> str:
    since = time.strftime("%Y-%m-%d %H:%M:%S %z")
    return json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": since}) + "\n"


def _holder(handle: int) -> str:
    try:
        said = json.loads(os.pread(handle, _LONGEST, 0))
        return f"process {said['pid']} on {said['host']} since {said['since']}"
    except (ValueError, TypeError, LookupError):
        return "another process"


def there_are() -> bool:
    """Return True if this system has locks."""
    return fcntl is not None


def hold(handle: int, path: Path) -> bool:
    """Lock an open file until it is closed.

    Returns False if another process holds it, or if `path` no longer leads to it.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return leads_to(handle, path)


def leads_to(handle: int, path: Path) -> bool:
    """Return True if `path` leads to the open file, False for another file or none."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError as error:
        if error.errno not in _GONE:
            raise
        return False


@contextmanager
def abandoned(path: Path) -> Iterator[bool]:
    """Yield True if nobody holds a file or folder, and hold it in the block.

    Yields False if it is in use, or if that cannot be found out.
    """
    if fcntl is None:
        yield False
        return
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        yield False
        return
    try:
        yield _free(handle)
    finally:
        os.close(handle)


def _free(handle: int) -> bool:
    """Lock an open file for reading; return False if another process holds it.

    On file systems shared by machines, a file that is open for reading can take no stronger lock.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
