"""Kill tests of every writer and every command of the package.

`writer` kills one of `WRITERS` after each of its system calls. Each time its file must be the old or the new one, the
next write must succeed, and nothing else may be left then.

A case of `cases` ends a command at a random moment: by SIGKILL, SIGINT, SIGTERM, a full disk or a folder that vanishes.
It may end it again after it is resumed. The result of its last run must equal that of an uninterrupted run.
"""

import itertools
import json
import os
import random
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench.faults import frequent, tracing
from bench.faults.writers import WRITERS, tiny
from gms_fast import images, interrupts, io
from gms_fast.measure import work
from gms_fast.models import saved_heads
from gms_fast.quality import matrix
from gms_fast.storage import atomic, checkpoint, fingerprints, tensors
from gms_fast.training.state import CHECKPOINT

FULL, VANISHED, PART = "full disk", "vanished folder", r"\.part(-\d+)?(\.\w+)?$"  # names left by early ends
SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
ENDS = {"SIGKILL": -9, "SIGINT": 130, "SIGTERM": 143, FULL: 2, VANISHED: 2}  # and the expected exit status
LINES = {"SIGINT": "interrupted", "SIGTERM": "terminated", FULL: "error: .*File too large: ", VANISHED: "error: "}
GRACE = 20.0  # seconds that workers may outlive their command
LONGEST = 120.0  # seconds that a command may take to end
Content = dict[str, bytes]


# --- writers ---


def content(path: Path) -> Content:
    """Return the bytes of a file, or of all files in a folder, by name; empty if none exist."""
    if path.is_dir():
        return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    return {path.name: path.read_bytes()} if path.is_file() else {}


def writer(name: str) -> int:
    """Kill a writer after each of its system calls; return their number.

    Raises AssertionError for a fault.
    """
    torch.set_num_threads(1)  # threads do not outlive a fork
    exchange, write = atomic._exchange, WRITERS[name]
    if "exchanged" in name:
        atomic._exchange = lambda *_: False
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _writer(Path(folder, name.partition(",")[0]), write)
    finally:
        atomic._exchange = exchange


def check_writer(name: str) -> str | None:
    """Run `writer` and print the number of calls; return its fault, or None."""
    try:
        print(f"{name}: killed after each of {writer(name)} calls", flush=True)
    except AssertionError as error:
        return f"{name}: {error}"
    return None


def _writer(path: Path, write: Callable[[Path, int], None]) -> int:
    known = []
    for value in (0, 1):
        write(path, value)
        known.append(content(path))
    assert known[0] != known[1], "contents must differ for a test to tell them"
    names = set(os.listdir(path.parent))
    write(path, 0)
    calls = 0
    while tracing.killed(lambda: write(path, 1), calls):
        found = content(atomic.present(path))
        assert found in known, f"after {calls} calls {path.name} is neither old nor new"
        write(path, 1)
        assert content(path) == known[1], f"after {calls} calls the next write fails"
        assert set(os.listdir(path.parent)) == names, f"after {calls} calls {os.listdir(path.parent)} are left"
        write(path, 0)
        calls += 1
    return calls


# --- commands ---


class Command(NamedTuple):
    """A command and how its result is checked.

    Args:
        arguments: Arguments of `gms-fast`.
        out: File or folder that it writes.
        again: Option for a repeated run.
        result: Returns the part of the output that must be equal.
        done: Returns the amount of stored work, which must not decrease.
    """

    arguments: tuple[str, ...]
    out: str
    again: str = "--resume"
    result: Callable[[Path], object] = content
    done: Callable[[Path], int] = lambda _: 0


def _steps(out: Path) -> int:
    """Return the number of training steps that have a checkpoint."""
    files = [out / stage / CHECKPOINT for stage in ("noise", "heads")]
    return sum(checkpoint.read(file)["step"] for file in files if file.exists())


def _heads(out: Path) -> object:
    """Return the weights of heads and their metadata without the folder of their network."""
    weights, said = saved_heads.read(out / "model")
    return fingerprints.of_named(weights), {key: value for key, value in said.items() if key != "source"}


def _iterations(out: Path) -> int:
    from gms_fast.search import ddss

    file = out / ddss.CHECKPOINT
    return checkpoint.read(file, ddss.FORMAT, ddss.FIELDS)["iteration"] if file.exists() else 0


def _rows(out: Path) -> int:
    """Return the rows of unfinished statistics, or a larger number for finished ones."""
    file = work.partial(out)
    if out.exists():
        return 1 << 20
    return sum(map(len, tensors.load(file)[0].values())) if file.exists() else 0


def _records(out: Path) -> list[object]:
    records = matrix.read(out)
    return sorted(json.dumps({k: v for k, v in r.items() if "second" not in k and k != "origin"}) for r in records)


MODEL = ("--model", "tiny")
DRAWN = (*MODEL, "--batch-size", "2", "--steps", "3")
EDIT = ("edit", "vary", "guides", *DRAWN, "--n", "6")
COMMANDS = {
    "sample": Command(("sample", *DRAWN, "--n", "6", "--out", "x.npz"), "x.npz", "--force"),
    "edit": Command((*EDIT, "--out", "x.png"), "x.png", "--force"),
    "edit into a folder": Command((*EDIT, "--out", "edited"), "edited", "--force"),
    "train": Command(
        (
            *("train", "--data", "x.npy", "--out", "run", "--steps", "9", "--head-steps", "7", "--batch-size", "2"),
            *("--channel-mult", "1", "--attention", ""),
        ),
        "run",
        result=lambda out: content(out / "model"),
        done=_steps,
    ),
    "train-heads": Command(
        (
            *("train-heads", "--network", "tiny", "--data", "x.npy", "--out", "run-heads"),
            *("--steps", "9", "--batch-size", "2"),
        ),
        "run-heads",
        result=_heads,
        done=_steps,
    ),
    "statistics": Command(
        (
            *("statistics", *MODEL, "--data", "x.npy", "--samples", "4", "--nodes", "4"),
            *("--batch-size", "2", "--out", "x.safetensors"),
        ),
        "x.safetensors",
        done=_rows,
    ),
    "statistics --gaussian": Command(
        ("statistics", "--gaussian", *MODEL, "--samples", "6", "--batch-size", "2", "--out", "x.safetensors"),
        "x.safetensors",
        done=_rows,
    ),
    "search": Command(
        (
            *("search", *MODEL, "--data", "x.npy", "--out", "found", "--steps", "2", "--iterations", "6"),
            *("--batch-size", "4", "--features", "pixels"),
        ),
        "found",
        result=lambda out: {name: data for name, data in content(out).items() if name != "checkpoint.pt"},
        done=_iterations,
    ),
    "evaluate": Command(
        (
            *("evaluate", *MODEL, "--data", "x.npy", "--out", "quality", "--steps", "1,2", "--n", "50"),
            *("--ranges", "1", "--workers", "1", "--solver", "ddim"),
        ),
        "quality",
        result=_records,
        done=lambda out: len(matrix.read(out)),
    ),
}
WEIGHTS = {name: 1 if name == "evaluate" else 8 for name in COMMANDS}  # evaluate takes as long as all others


class Case(NamedTuple):
    """A command and what ends it.

    Args:
        number: Number of the case.
        command: A key of `COMMANDS`.
        ends: Pairs of one of `ENDS` and its moment, as a share of the run's time or of its largest file's bytes.
    """

    number: int
    command: str
    ends: list[tuple[str, float]]


def cases(seed: int, first: int = 0) -> Iterator[Case]:
    """Yield independent cases from number `first` on."""
    for number in itertools.count(first):
        draw = random.Random(f"{seed}/{number}")
        name = draw.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
        kinds = draw.choices(list(ENDS), (6, 3, 3, 3, 1), k=draw.randint(1, 3))
        yield Case(number, name, [(kind, draw.uniform(0, 1.05)) for kind in kinds])


def check(case: Case) -> str | None:
    """Run a case; return its fault, or None."""
    command = COMMANDS[case.command]
    try:
        wanted, seconds, largest, names = _whole(case.command)
        with tempfile.TemporaryDirectory() as folder:
            _prepare(Path(folder))
            out, done, again = Path(folder, command.out), 0, ()
            for kind, share in case.ends:
                _run(command, folder, again, kind, share * (largest if kind == FULL else seconds))
                left = command.done(out)
                assert left >= done or kind == VANISHED, f"{done} were done, and {left} are left after {kind}"
                done, again = left, (command.again,)
            _run(command, folder, again)
            assert command.result(out) == wanted, "the result is another one than that of a whole run"
            assert all(re.search(PART, n) for n in names ^ {*os.listdir(folder)}), f"there are {os.listdir(folder)}"
    except (AssertionError, ValueError) as error:
        return f"{case.command} {[(kind, round(share, 2)) for kind, share in case.ends]}: {error}"
    return None


@cache
def _whole(name: str) -> tuple[object, float, int, set[str]]:
    """Return result, seconds, largest file size and file names of an uninterrupted run."""
    with tempfile.TemporaryDirectory() as folder:
        _prepare(Path(folder))
        start = time.monotonic()
        _run(COMMANDS[name], folder)
        seconds = time.monotonic() - start
        out = Path(folder, COMMANDS[name].out)
        return COMMANDS[name].result(out), seconds, max(map(len, content(out).values())), set(os.listdir(folder))


def _prepare(folder: Path) -> None:
    torch.set_num_threads(1)  # threads do not outlive a fork
    io.save(tiny(), folder / "tiny")
    (folder / "guides").mkdir()
    images.save_image(torch.zeros(1, 4, 4), folder / "guides" / "a.png")
    np.save(folder / "x.npy", np.random.default_rng(0).uniform(-1, 1, (200, 4, 4)).astype(np.float32))


def _run(command: Command, folder: str, again: tuple[str, ...] = (), kind: str = "", amount: float = 0) -> None:
    """Run a command to its end, or end it by one of `ENDS`; raise AssertionError for a fault.

    `amount` is seconds, or bytes for a full disk.
    """
    said, words = os.pipe()
    os.set_blocking(said, False)
    signal.pthread_sigmask(signal.SIG_BLOCK, interrupts.SIGNALS)  # until the command has its handlers
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        frequent.be((*command.arguments, *again), folder, words, int(amount) if kind == FULL else None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, interrupts.SIGNALS)
    with suppress(OSError):  # parent or child, whichever is first
        os.setpgid(child, child)
    ended = _ends(child, amount if kind in (VANISHED, *SIGNALS) else LONGEST)
    if not ended and kind == "SIGKILL":
        os.kill(child, signal.SIGKILL)
    elif not ended and kind in SIGNALS:
        os.killpg(child, SIGNALS[kind])  # as a terminal does
    if not ended and kind == VANISHED:
        _vanish(Path(folder, command.out))
    ended = ended or _ends(child, LONGEST)
    alone = _group_ends(child)
    if not ended:
        os.waitpid(child, 0)
    os.write(words, b"\n")  # so that the read below finds something
    text = os.read(said, 1 << 16).decode()
    os.close(said)
    os.close(words)
    assert ended, f"it has not ended after {LONGEST:.0f} s more: {text}"
    assert alone, f"processes of its own outlive it by {GRACE:.0f} s"
    status = os.waitstatus_to_exitcode(ended[0])
    assert status in (0, ENDS.get(kind)), f"it ends with status {status} by {kind or 'itself'}: {text}"
    if status > 0:
        assert re.fullmatch(rf"gms-fast: {LINES[kind]}[^\n]*\n\n", text), f"not one line of its own at its end: {text}"


def _group_ends(group: int) -> bool:
    """Wait until a process group is empty; kill it and return False if that takes too long."""
    end = time.monotonic() + GRACE
    with suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.005)
        os.killpg(group, signal.SIGKILL)
        return False
    return True


def _vanish(out: Path) -> None:
    """Take a folder away; single files stay."""
    if out.is_dir():
        out.rename(out.with_name("away"))
        shutil.rmtree(out.with_name("away"))


def _ends(child: int, seconds: float) -> tuple[int] | None:
    """Return the status of a child, or None if it does not end within some seconds."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return (status,)
        if time.monotonic() > end:
            return None
        time.sleep(0.001)
