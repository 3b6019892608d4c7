"""Process groups: a command and all processes that it starts, which can be ended together."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GRACE = 4.0  # seconds between SIGINT, killing all but the leader, killing all, and giving up


def start(command: Sequence[str], folder: Path, environment: Mapping[str, str], output: object) -> subprocess.Popen:
    """Start a command as the leader of a process group in the caller's session."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, process_group=0, **streams)


def stop(process: subprocess.Popen) -> bool:
    """End a group after its leader has written a report, as pytest does.

    Returns False if a process survives.
    """
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            if not _ends(process):  # it waits for others in the group that ignore the signal
                _kill(set(members(process.pid)) - {process.pid})
                _ends(process)
    finally:
        ended = kill(process)
    return ended


def kill(process: subprocess.Popen) -> bool:
    """Kill a group at once.

    Returns False if a process survives, which may happen if it hangs in the driver.
    """
    end = time.monotonic() + GRACE
    while running := members(process.pid):
        if time.monotonic() > end:
            return False
        _kill(running)
        time.sleep(0.01)
    return _ends(process)


def _ends(process: subprocess.Popen) -> bool:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return False
    return True


def _kill(ids: Iterable[int]) -> None:
    for pid in ids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def members(group: int) -> list[int]:
    """Return the processes of a group without zombies."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of = file.read_text().rpartition(")")[2].split()[:3]
            found += [int(file.parent.name)] if int(of) == group and state != "Z" else []
    return found
