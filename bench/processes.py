"""Process groups: a command with all that it starts, so that all of it can be ended."""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

GRACE = 5.0  # seconds from the request to stop to the kill, and from that to giving up


def start(command: Sequence[str], folder: Path, environment: Mapping[str, str], output: object) -> subprocess.Popen:
    """Start a command as the leader of a group, in the session of whoever started this and may have to end it all."""
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    return subprocess.Popen(command, cwd=folder, env=environment, process_group=0, **streams)


def stop(process: subprocess.Popen) -> bool:
    """Ask a group to end, on which pytest writes its report, and kill it. False if some of it survives."""
    try:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
            process.wait(GRACE)
    except subprocess.TimeoutExpired:
        pass
    finally:
        ended = kill(process)
    return ended


def kill(process: subprocess.Popen) -> bool:
    """Kill a group at once. False if some of it survives, as a process that hangs in the driver may."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    end = time.monotonic() + GRACE
    while process.poll() is None or running(process.pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def running(group: int) -> bool:
    """Whether any process of the group runs. One that has ended stays in it until its parent asks: that is none."""
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, of = file.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state != "Z":
                return True
    return False
