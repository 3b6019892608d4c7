"""Claims on parts of work, as files in a folder, so that processes do not repeat each other.

The work must give the same result whoever does it and however often. A claim therefore need not be safe: if two
processes hold one part, time is lost and nothing else.

A claim is a file that only one process can make. Its owner touches it every `BEAT` seconds. Another process that sees
it unchanged for `EXPIRES` seconds, by its own clock, takes the owner for dead. So no two clocks are compared, and a
wrong clock does no harm. On one machine a dead owner is detected at once: a lock on the file dies with its process.
"""

import errno
import json
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from gms_fast.storage import locks

BEAT, EXPIRES = 10.0, 60.0  # seconds
_LONGEST = 1 << 10  # bytes read of a claim


def make(folder: Path) -> None:
    """Make a folder that other processes make and remove at the same time.

    `Path.mkdir(exist_ok=True)` fails if the folder is there at first and gone when it looks what is in the way.
    """
    while not folder.is_dir():
        with suppress(FileExistsError):
            folder.mkdir()
        if os.path.lexists(folder) and not folder.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(folder))


class Look(NamedTuple):
    """Snapshot of another process's claim.

    Args:
        inode: Identity of the file.
        touched: Time of its last touch in nanoseconds, by the file system.
        dead: Its owner is known to be dead.
    """

    inode: int
    touched: int
    dead: bool


class _Sight(NamedTuple):
    """Last seen state of a claim, in seconds of our clock.

    Args:
        look: The claim.
        first: When this file was first seen.
        since: When it was first seen with this touch time.
    """

    look: Look
    first: float
    since: float


class Claims:
    """Claims of this process in a folder, and the last seen claims of others; a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mine: dict[str, int] = {}  # name: handle
        self._seen: dict[str, _Sight] = {}
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)

    def clock(self) -> float:
        """Return the seconds by which claims of other processes expire."""
        return time.monotonic()

    def __enter__(self) -> "Claims":
        make(self.folder)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join()
        for name in list(self._mine):
            with suppress(OSError):
                self.drop(name)
        with suppress(OSError):  # not empty: claims of other processes; or already removed
            self.folder.rmdir()

    def names(self) -> set[str]:
        """Return the names of all claims in the folder."""
        try:
            return set(os.listdir(self.folder))
        except FileNotFoundError:  # the last process to end removed the empty folder
            return set()

    def held(self, name: str) -> bool:
        """Return True if any process, dead or alive, has a claim on a part."""
        return (self.folder / name).exists()

    def take(self, name: str, *, slow: float | None = None) -> bool:
        """Claim a part; return True if this process holds it now.

        Fails if another process holds the part, unless that process is dead.

        Args:
            name: The part.
            slow: Seconds after which a live owner counts as dead too; None: never.

        Raises OSError that names the file.
        """
        if name in self._mine:
            return False
        if self._make(name):
            return True
        if not self._expired(name, slow):
            return False
        self._remove(name)
        return self._make(name)  # False if another process was quicker

    def ours(self, name: str) -> bool:
        """Return True if this process has the claim and no other has taken it over."""
        return name in self._mine and locks.leads_to(self._mine[name], self.folder / name)

    def is_here(self, name: str) -> bool:
        """Return True if the claim's owner runs on this machine, which detects its death at once."""
        return _host(self.folder / name) == socket.gethostname()

    def drop(self, name: str) -> None:
        """Give up a claim; the file stays if another process has taken it over."""
        handle = self._mine.pop(name)
        with os.fdopen(handle) as file:
            ours = locks.leads_to(handle, self.folder / name)
            if not locks.there_are():
                file.close()  # Windows cannot remove an open file; elsewhere the lock is held until it is removed
            if ours:
                self._remove(name)

    def sweep(self, done: set[str]) -> None:
        """Remove claims of dead processes on parts that are done."""
        for name in done & self.names() - self._mine.keys():
            self._remove(name)

    def _expired(self, name: str, slow: float | None) -> bool:
        """Return True if a claim's owner is dead or held it over `slow` seconds."""
        look = self._look(name)
        if look is None or look.dead:
            return True
        now, last = self.clock(), self._seen.get(name)
        if last is None or last.look.inode != look.inode:
            last = _Sight(look, now, now)
        elif last.look.touched != look.touched:
            last = _Sight(look, last.first, now)
        self._seen[name] = last
        return now - last.since > EXPIRES or (slow is not None and now - last.first > slow)

    def _make(self, name: str) -> bool:
        """Create the file of a claim; return False if it exists."""
        file = self.folder / name
        try:
            handle = self._nameless(file)
            if handle is None:
                handle = self._named(file)
        except FileExistsError:
            return False
        self._mine[name] = handle
        self._seen.pop(name, None)
        return True

    def _nameless(self, file: Path) -> int | None:
        """Create a claim that is named only after it is written and locked; return its handle.

        So a kill never leaves an empty claim. Returns None if the system has no unnamed files, or if something else
        prevents it. Raises FileExistsError.
        """
        try:
            handle = self._opened(self.folder, os.O_TMPFILE)
        except (AttributeError, OSError):
            return None
        try:
            _fill(handle, file)
            # src_dir_fd selects linkat, which follows the link in /proc
            os.link(f"/proc/self/fd/{handle}", file, src_dir_fd=handle, follow_symlinks=True)
        except BaseException as error:
            os.close(handle)
            if isinstance(error, FileExistsError) or not isinstance(error, OSError):
                raise
            return None
        return handle

    def _named(self, file: Path) -> int:
        """Create a claim under its name, then write it; a kill in between leaves it empty."""
        handle = self._opened(file, os.O_CREAT | os.O_EXCL)
        try:
            _fill(handle, file)
        except BaseException:
            os.close(handle)
            with suppress(OSError):
                os.unlink(file)
            raise
        return handle

    def _opened(self, path: Path, flags: int) -> int:
        """Open a new file in the folder, and make the folder again if another process removed it."""
        while True:
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | flags, 0o666)
            make(self.folder)

    def _look(self, name: str) -> Look | None:
        """Inspect the claim of another process; return None if it is gone."""
        file = self.folder / name
        try:
            found = os.stat(file)
        except FileNotFoundError:
            return None
        dead = False
        if _host(file) == socket.gethostname():  # written, so locked; testing an unlocked one would block its owner
            with locks.abandoned(file) as free:
                dead = free
        return Look(found.st_ino, found.st_mtime_ns, dead)

    def _remove(self, name: str) -> None:
        try:
            os.unlink(self.folder / name)
        except FileNotFoundError:
            return
        except PermissionError:
            if locks.there_are():
                raise  # on Windows the error means that a live process has the file open

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            for name, handle in self._mine.copy().items():
                with suppress(Exception):  # one failed touch costs time; a dead thread would cost all claims
                    self._touch(name, handle)

    def _touch(self, name: str, handle: int) -> None:
        if os.utime in os.supports_fd:
            os.utime(handle)
        elif self.ours(name):
            os.utime(self.folder / name)


def _fill(handle: int, file: Path) -> None:
    """Lock a claim and write its owner's host and process id."""
    locks.hold(handle, file)
    with locks.naming(file):
        os.write(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())


def _host(file: Path) -> str | None:
    """Return the host name in a claim, or None if it cannot be read."""
    try:
        with file.open("rb") as opened:
            return str(json.loads(opened.read(_LONGEST))["host"])
    except (OSError, ValueError, TypeError, LookupError):
        return None
