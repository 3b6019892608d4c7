"""Claims on parts of work, as files in a folder: a courtesy by which processes keep out of each other's way.

The work must come to the same whoever does it and how often, so that a claim need not be safe: where two hold one part,
time is lost and nothing else. A claim is a file that only one process can make. Its owner touches it every `BEAT`
seconds; whoever sees it stay the same for `EXPIRES` seconds, by a clock of its own, takes it for that of a dead
process. So no two clocks are ever compared, and a machine whose clock is wrong does no harm. On one machine it is known
at once: a lock on the file dies with its process.
"""

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


class Look(NamedTuple):
    """The claim of another process: its file, when that was touched, and whether its owner is known to be dead."""

    inode: int
    touched: int
    dead: bool


class _Sight(NamedTuple):
    """A claim as it was last seen: since when it is there and since when it is untouched, by our clock."""

    look: Look
    first: float
    since: float


class Claims:
    """The claims of this process in a folder, and what it has seen of those of others; to be closed by `with`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._mine: dict[str, int] = {}  # name: handle
        self._seen: dict[str, _Sight] = {}
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)

    def clock(self) -> float:
        """Seconds, by which claims of others expire."""
        return time.monotonic()

    def __enter__(self) -> "Claims":
        self.folder.mkdir(exist_ok=True)
        self._heart.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._heart.join()
        for name in list(self._mine):
            with suppress(OSError):
                self.drop(name)
        with suppress(OSError):  # another process has claims in it, or it is gone
            self.folder.rmdir()

    def names(self) -> set[str]:
        """All claims that there are."""
        try:
            return set(os.listdir(self.folder))
        except FileNotFoundError:  # a process that ended has removed it, empty
            return set()

    def held(self, name: str) -> bool:
        """Tell a part on which somebody has a claim, dead or alive."""
        return (self.folder / name).exists()

    def take(self, name: str, *, slow: float | None = None) -> bool:
        """Claim a part, and tell whether it is ours now: nobody has a claim on it but a dead process.

        slow  seconds after which a process that is alive counts as dead too. Raises OSError naming the file.
        """
        if name in self._mine:
            return False
        if self._make(name):
            return True
        if not self._expired(name, slow):
            return False
        self._remove(name)
        return self._make(name)  # unless another was quicker

    def ours(self, name: str) -> bool:
        """Tell a claim of this process that no other has taken over."""
        return name in self._mine and locks.leads_to(self._mine[name], self.folder / name)

    def is_here(self, name: str) -> bool:
        """Tell a claim of a process on this machine, of which it is known whether it lives."""
        return _host(self.folder / name) == socket.gethostname()

    def drop(self, name: str) -> None:
        """Give a claim up; one that another process has taken over stays."""
        handle = self._mine.pop(name)
        with os.fdopen(handle) as file:
            ours = locks.leads_to(handle, self.folder / name)
            if not locks.there_are():
                file.close()  # Windows removes no open file; elsewhere its lock is held until it is gone
            if ours:
                self._remove(name)

    def sweep(self, done: set[str]) -> None:
        """Remove claims on parts that are done, which dead processes have left."""
        for name in done & self.names() - self._mine.keys():
            self._remove(name)

    def _expired(self, name: str, slow: float | None) -> bool:
        """Tell the claim of a dead process, or of one that has been as slow as that."""
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
        """Make the file of a claim; False where there is one."""
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
        """A claim that gets its name when it is written and locked, so that no kill leaves one that says nothing.

        None where the system has no files without a name, or something else is in the way. Raises FileExistsError.
        """
        try:
            handle = self._opened(self.folder, os.O_TMPFILE)
        except (AttributeError, OSError):
            return None
        try:
            _fill(handle, file)
            os.link(f"/proc/self/fd/{handle}", file, src_dir_fd=handle, follow_symlinks=True)  # the first has it follow
        except BaseException as error:
            os.close(handle)
            if isinstance(error, FileExistsError) or not isinstance(error, OSError):
                raise
            return None
        return handle

    def _named(self, file: Path) -> int:
        """A claim whose name is there before it says anything; a process that is killed in between leaves it so."""
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
        """A new file in the folder, which a process that ended may have removed."""
        while True:
            with suppress(FileNotFoundError):
                return os.open(path, os.O_RDWR | flags, 0o666)
            self.folder.mkdir(exist_ok=True)

    def _look(self, name: str) -> Look | None:
        """Look at the claim of another process; None where it is gone."""
        file = self.folder / name
        try:
            found = os.stat(file)
        except FileNotFoundError:
            return None
        dead = False
        if _host(file) == socket.gethostname():  # one that says so has its lock; before, a look would keep it from it
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
                raise  # Windows removes no file that a process has open, which then lives

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            for name, handle in self._mine.copy().items():
                with suppress(Exception):  # a beat that fails costs time, and a heart that stops all claims
                    self._touch(name, handle)

    def _touch(self, name: str, handle: int) -> None:
        if os.utime in os.supports_fd:
            os.utime(handle)
        elif self.ours(name):
            os.utime(self.folder / name)


def _fill(handle: int, file: Path) -> None:
    """Lock a claim and write into it."""
    locks.hold(handle, file)
    with locks.naming(file):
        os.write(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())


def _host(file: Path) -> str | None:
    """The machine whose claim it is."""
    try:
        with file.open("rb") as opened:
            return str(json.loads(opened.read(_LONGEST))["host"])
    except (OSError, ValueError, TypeError, LookupError):
        return None
