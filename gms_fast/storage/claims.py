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


class _Sight(NamedTuple):
    """A claim of another process as it was last seen: since when it is there and since when it is unchanged."""

    inode: int
    beat: int
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

    def take(self, name: str, *, slow: float | None = None) -> bool:
        """Claim a part, and tell whether it is ours now: nobody has a claim on it but a dead process.

        slow  seconds after which a process that is alive counts as dead too. Raises OSError naming the file.
        """
        file = self.folder / name
        if name in self._mine:
            return False
        with suppress(FileExistsError):
            return self._make(file)
        if not self._expired(file, slow):
            return False
        with suppress(FileNotFoundError):
            os.unlink(file)
        with suppress(FileExistsError):
            return self._make(file)
        return False  # another was quicker

    def ours(self, name: str) -> bool:
        """Tell a claim of this process that no other has taken over."""
        return name in self._mine and locks.leads_to(self._mine[name], self.folder / name)

    def drop(self, name: str) -> None:
        """Give a claim up; one that another process has taken over stays."""
        handle, file = self._mine.pop(name), self.folder / name
        try:
            if locks.leads_to(handle, file):
                os.unlink(file)
        finally:
            os.close(handle)

    def sweep(self, done: set[str]) -> None:
        """Remove claims on parts that are done, which dead processes have left."""
        with suppress(OSError):
            for name in done.intersection(os.listdir(self.folder)) - self._mine.keys():
                os.unlink(self.folder / name)

    def _make(self, file: Path) -> bool:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            locks.hold(handle, file)
            os.write(handle, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}).encode())
        except BaseException:
            os.close(handle)
            with suppress(OSError):
                os.unlink(file)
            raise
        self._mine[file.name] = handle
        self._seen.pop(file.name, None)
        return True

    def _expired(self, file: Path, slow: float | None) -> bool:
        """Tell the claim of a dead process, or of one that has been as slow as that."""
        try:
            found = os.stat(file)
            with locks.abandoned(file) as free:
                if free and _host(file) == socket.gethostname():
                    return True
        except FileNotFoundError:
            return True
        now, last = time.monotonic(), self._seen.get(file.name)
        if last is None or last.inode != found.st_ino:
            last = _Sight(found.st_ino, found.st_mtime_ns, now, now)
        elif last.beat != found.st_mtime_ns:
            last = last._replace(beat=found.st_mtime_ns, since=now)
        self._seen[file.name] = last
        return now - last.since > EXPIRES or (slow is not None and now - last.first > slow)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT):
            for handle in list(self._mine.values()):
                with suppress(OSError):
                    os.utime(handle)


def _host(file: Path) -> str | None:
    """The machine whose claim it is."""
    try:
        with file.open("rb") as opened:
            return str(json.loads(opened.read(_LONGEST))["host"])
    except (OSError, ValueError, TypeError, LookupError):
        return None
