"""Groups of ranks that run one command as under torchrun, but forked at once."""

import faulthandler
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from torch.distributed import TCPStore

from bench.faults import frequent
from gms_fast import interrupts

GRACE = 5.0  # seconds that ranks have to end when one of them has failed; torchrun gives 30
LONGEST = 60.0  # seconds that a group may take to end
ROOT = Path(__file__).parents[2]


class End(NamedTuple):
    """End of a rank.

    Args:
        status: Exit status.
        words: Its output on stderr.
        hung: True if it had to be killed after `GRACE`.
    """

    status: int
    words: str
    hung: bool


class Group:
    """Ranks that run a command in a folder.

    Args:
        arguments: Arguments of the command.
        folder: Working directory.
        count: Number of ranks.
        largest: Largest size of a file in bytes; None: no limit.
    """

    def __init__(self, arguments: Sequence[str], folder: str, count: int, largest: int | None = None) -> None:
        self._store, port = _store()
        self._words: list[IO[str]] = [tempfile.TemporaryFile("w+") for _ in range(count)]  # noqa: SIM115 - until `end`
        said = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count),
                "TORCHELASTIC_USE_AGENT_STORE": "True"}  # fmt: skip
        signal.pthread_sigmask(signal.SIG_BLOCK, interrupts.SIGNALS)  # until the command has its handlers
        self.children = [os.fork() or _rank(arguments, folder, {**said, "RANK": str(k), "LOCAL_RANK": str(k)},
                                            self._words[k].fileno(), largest) for k in range(count)]  # fmt: skip
        signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts.SIGNALS)
        self._ended: dict[int, int] = {}

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds` for a rank to end; return True if one has."""
        end = time.monotonic() + seconds
        while not self.poll() and time.monotonic() < end:
            time.sleep(0.001)
        return bool(self._ended)

    def begun(self, out: Path) -> bool:
        """Return True if one of the ranks holds a lock in a folder.

        Before that, torch lets them wait for each other without handling signals.
        """
        said = (json.loads(file.read_text() or "{}") for file in out.rglob(".lock"))
        return any(lock.get("pid") in self.children for lock in said)

    def poll(self) -> int:
        """Return the number of ranks that have ended."""
        for child in self.children:
            if child not in self._ended:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    self._ended[child] = os.waitstatus_to_exitcode(status)
        return len(self._ended)

    def send(self, number: int, ranks: Sequence[int]) -> None:
        """Send a signal to those of the given ranks that still run."""
        for rank in ranks:
            if self.children[rank] not in self._ended:
                os.kill(self.children[rank], number)

    def end(self) -> list[End]:
        """Wait for all ranks.

        If one has failed, the others get SIGTERM, as from torchrun, and SIGKILL after a while.
        """
        everyone, hung, last, told = range(len(self.children)), [], time.monotonic() + LONGEST, False
        while self.poll() < len(self.children):
            if not told and any(self._ended.values()):
                time.sleep(0.1)  # torchrun's polling interval
                self.poll()
                self.send(signal.SIGTERM, everyone)
                last, told = time.monotonic() + GRACE, True
            if time.monotonic() > last:
                hung = [child for child in self.children if child not in self._ended]
                self.send(signal.SIGUSR1, everyone)
                time.sleep(0.5)  # until they have printed their stacks
                self.send(signal.SIGKILL, everyone)
            time.sleep(0.002)
        os.kill(self._store, signal.SIGKILL)
        os.waitpid(self._store, 0)
        return [End(self._ended[child], _read(file), child in hung)
                for child, file in zip(self.children, self._words, strict=True)]  # fmt: skip


def _store() -> tuple[int, str]:
    """Fork a process with a store by which ranks find each other; return it and its port.

    It stands for torchrun's agent. It needs a process of its own, because its threads would not survive the forks here.
    """
    there, here = os.pipe()
    parent, child = os.getpid(), os.fork()
    if child == 0:
        store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        os.write(here, str(store.port).encode())
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(0)
    port = os.read(there, 99).decode()
    os.close(there)
    os.close(here)
    return child, port


def _read(file: IO[str]) -> str:
    """Read the output of a rank without the lines of torch's own log."""
    with file:
        file.seek(0)
        return "".join(line for line in file if not re.match(r"\[|frame #|<omitting|Exception raised from|\n", line))


def _rank(arguments: Sequence[str], folder: str, said: dict[str, str], words: int, largest: int | None) -> NoReturn:
    """Run the command as a rank; never return."""
    os.environ.update(said)
    faulthandler.register(signal.SIGUSR1, file=words)
    frequent.be(arguments, folder, words, largest)


class Torchrun:
    """Torchrun itself, running a command with a number of restarts."""

    def __init__(self, arguments: Sequence[str], folder: str, count: int, restarts: int) -> None:
        launch = ["--standalone", "--nproc-per-node", str(count), "--max-restarts", str(restarts)]
        command = [sys.executable, "-m", "torch.distributed.run", *launch, "-m", frequent.__name__, *arguments]
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
        self._words: IO[str] = tempfile.TemporaryFile("w+")  # noqa: SIM115 - until `end`
        streams = {"stdout": subprocess.DEVNULL, "stderr": self._words}
        self._agent = subprocess.Popen(command, cwd=folder, env=environment, **streams)

    def working(self, rank: int) -> int | None:
        """Return the process of a rank, or None while there is none."""
        with suppress(OSError):  # a process may end meanwhile
            for child in Path(f"/proc/{self._agent.pid}/task/{self._agent.pid}/children").read_text().split():
                if f"RANK={rank}".encode() in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    return int(child)
        return None

    def ended(self) -> bool:
        return self._agent.poll() is not None

    def end(self) -> tuple[int, str]:
        """Wait for the end; return status and output."""
        try:
            status = self._agent.wait(LONGEST)
        finally:
            self._agent.kill()
        with self._words as words:
            words.seek(0)
            return status, words.read()
