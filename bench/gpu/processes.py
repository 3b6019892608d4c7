"""Process groups: a command with all that it starts, so that all of it can be ended."""

import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GRACE = 4.0  # seconds between steps: the request to end, the kill of all but the leader, the kill of all, giving up


def start(command: Sequence[str], folder: Path, environment: Mapping[str, str], output: object) -> subprocess.Popen:
    """Start a command as the leader of a group, in the session of whoever started this and may have to end it all."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, process_group=0, **streams)


def stop(process: subprocess.Popen) -> bool:
    """End a group, but let its leader write a report first, as pytest does. False if some of it survives."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            if not _ends(process):  # it waits for others in the group, which do not hear
                _kill(set(members(process.pid)) - {process.pid})
                _ends(process)
    finally:
        ended = kill(process)
    return ended


def kill(process: subprocess.Popen) -> bool:
    """Kill a group at once. False if some of it survives, as a process that hangs in the driver may."""
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
    """Processes of a group, without those that have ended and wait for their parent to ask how."""
    found = []
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of = file.read_text().rpartition(")")[2].split()[:3]
            found += [int(file.parent.name)] if int(of) == group and state != "Z" else []
    return found
