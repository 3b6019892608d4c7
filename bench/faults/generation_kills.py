"""Kill tests of generation by several processes that fill one folder.

A case starts some processes, directly or by torchrun. It ends one or all of them at random moments by one of `ENDS`,
perhaps several times and each time with another number of processes. A last start runs to its end.

A case fails for
- a finished shard that is lost or broken,
- a process that does not end, or prints more than one line,
- a folder that differs from that of one uninterrupted process,
- statistics that are not those of the pictures,
- files left behind.
"""

import itertools
import os
import random
import signal
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch

from bench.faults import kills
from bench.faults.kills import FULL, VANISHED, Content
from bench.faults.rank_groups import End, Group, Torchrun
from bench.faults.rank_kills import Case
from gms_fast import shards
from gms_fast.generation.settings import CLAIMS, FILE, MEASURED, WHOLE
from gms_fast.quality import extractors, running
from gms_fast.quality.running import Running

ONE, ALL, WRITE, TERMINATED, ANOTHER = "one killed", "all killed", "killed in a write", "SIGTERM to all", "another run"
ENDS = {ONE: 4, ALL: 5, WRITE: 4, TERMINATED: 2, FULL: 2, VANISHED: 1, ANOTHER: 1}  # relative frequency
TORCHRUN = 10  # one case in so many uses torchrun
OUT, N = "drawn", 40
LEAST = 500  # bytes allowed for a file on a full disk: stderr goes to a file too
_SMALL = ("--model", "tiny", "--n", str(N), "--batch-size", "2", "--shard-size", "4", "--steps", "3")
COMMANDS = {
    "npz": ("generate", *_SMALL, "--out", OUT),
    "png": ("generate", *_SMALL, "--form", "png", "--out", OUT),
    "measured": ("generate", *_SMALL, "--features", "pixels", "--out", OUT),
    "none": ("generate", *_SMALL, "--form", "none", "--features", "pixels", "--out", OUT),
}


class Start(NamedTuple):
    """One start of the command and how it is ended, if at all.

    Args:
        count: Number of processes.
        end: One of `ENDS`; empty: it runs to its end.
        when: Share of the run's time, or of the bytes of its largest file.
        which: Process that is killed, if it is only one.
    """

    count: int
    end: str = ""
    when: float = 0.0
    which: int = 0


def cases(seed: int, first: int = 0) -> Iterator[Case]:
    """Yield independent cases from number `first` on."""
    for number in itertools.count(first):
        draw = random.Random(f"generation/{seed}/{number}")
        name, torchrun = draw.choice(list(COMMANDS)), number % TORCHRUN == TORCHRUN - 1
        starts = []
        for _ in range(draw.randint(1, 3)):
            count = draw.choice((1, 2, 3, 5))
            end = ONE if torchrun else draw.choices(list(ENDS), list(ENDS.values()))[0]
            starts.append(Start(count, end, draw.uniform(0, 1.05), draw.randrange(count)))
        yield Case(number, name, [*starts, Start(draw.choice((1, 2, 5)))], torchrun)


def check(case: Case) -> str | None:
    """Run a case; return its fault, or None."""
    try:
        wanted, *_ = _whole(case.command)
        with tempfile.TemporaryDirectory() as folder:
            kills._prepare(Path(folder))
            out = Path(folder, OUT)
            (_restarted if case.torchrun else _started)(folder, case)
            assert pictures(out) == wanted, "the folder differs from that of an uninterrupted run"
            assert not (out / CLAIMS).exists(), f"claims are left: {os.listdir(out / CLAIMS)}"
            if case.command in ("measured", "none"):
                _look_at_statistics(out)
    except (AssertionError, ValueError) as error:
        return f"{case.command}, {'torchrun' if case.torchrun else 'forks'}, {case.starts}: {error}"
    return None


def pictures(out: Path) -> Content:
    """Return the bytes of all files except statistics.

    The last bits of statistics depend on the order in which parts were merged.
    """
    found = kills.content(out)
    return {name: data for name, data in found.items() if not name.startswith((MEASURED, WHOLE))}


@cache
def _whole(name: str) -> tuple[Content, float, int]:
    """Return the files, seconds and largest file size of one uninterrupted process."""
    with tempfile.TemporaryDirectory() as folder:
        kills._prepare(Path(folder))
        start = time.monotonic()
        ends = Group(COMMANDS[name], folder, 1).end()
        assert ends[0].status == 0, f"a whole run fails: {ends}"
        out = Path(folder, OUT)
        return pictures(out), time.monotonic() - start, max(map(len, kills.content(out).values()))


@cache
def _counted() -> Running:
    """Compute the statistics from the pictures themselves."""
    with tempfile.TemporaryDirectory() as folder:
        kills._prepare(Path(folder))
        assert Group(COMMANDS["npz"], folder, 1).end()[0].status == 0
        return running.measured(Path(folder, OUT), extractors.load("pixels"))


def _look_at_statistics(out: Path) -> None:
    found, wanted = Running.load(out / WHOLE), _counted()
    assert (found.count, found.index.tolist()) == (N, wanted.index.tolist()), "other samples are counted"
    far = float((found.covariance - wanted.covariance).abs().max() / wanted.covariance.abs().max())
    assert far < 1e-12, f"the covariance is {far:.1g} of its largest element away"


def _started(folder: str, case: Case) -> None:
    """Run all starts of a case."""
    out, done = Path(folder, OUT), set[str]()
    _, seconds, largest = _whole(case.command)
    for start in case.starts:
        most = max(LEAST, int(start.when * largest)) if start.end == FULL else None
        group = Group(COMMANDS[case.command], folder, start.count, most)
        _act(group, start, seconds, out)
        _look(group.end(), start)
        there = set(os.listdir(out)) if out.is_dir() else set()
        assert start.end == VANISHED or done <= there, f"shards are lost after {start}"
        done = set()
        if case.command in ("npz", "measured") and there:
            for file in shards.files(out):
                shards.read(file)
                done.add(file.name)


def _act(group: Group, start: Start, seconds: float, out: Path) -> None:
    """End a group at the moment and in the way that its start says."""
    if start.end in ("", FULL) or group.wait(start.when * seconds):
        return
    everyone = range(start.count)
    if start.end == VANISHED:
        kills._vanish(out)
    elif start.end == ANOTHER:
        other = Group((*COMMANDS["npz"], "--seed", "1"), str(out.parent), 1).end()[0]
        if (out / FILE).exists() and other.status:
            assert "holds another run" in other.words, f"another run ends with {other}"
    elif start.end == WRITE:
        while not list(out.rglob("*.partial")) and not group.wait(0.0005):
            pass
        group.send(signal.SIGKILL, everyone)
    elif start.end in (ONE, ALL):
        group.send(signal.SIGKILL, (start.which,) if start.end == ONE else everyone)
    else:
        group.send(signal.SIGTERM, everyone)


def _look(ends: list[End], start: Start) -> None:
    """Raise AssertionError unless each process ended as expected with at most one line."""
    fine = {"": {0}, ANOTHER: {0}, FULL: {0, 2, 143}, VANISHED: {0, 2, 143}}.get(start.end, {0, 143, -9})
    for rank, (status, words, hung) in enumerate(ends):
        assert not hung, f"process {rank} does not end: {ends}"
        assert status in fine, f"process {rank} ends with status {status} by {start.end or 'itself'}: {ends}"
        assert words.count("\n") <= 1, f"process {rank} says {words!r}"
    if start.end in (FULL, VANISHED):
        assert all("error: " in end.words for end in ends if end.status == 2), f"no clear word: {ends}"


def _restarted(folder: str, case: Case) -> None:
    """Let torchrun start processes, kill some, and let it restart them."""
    *killed, last = case.starts
    _, seconds, _ = _whole(case.command)
    run = Torchrun(("--", *COMMANDS[case.command]), folder, last.count, len(killed))
    for start in killed:
        while not run.ended() and not list(Path(folder).glob(f"{OUT}/{CLAIMS}/*")):
            time.sleep(0.01)
        time.sleep(seconds * start.when)
        if (process := run.working(start.which % last.count)) is not None:
            os.kill(process, signal.SIGKILL)
            time.sleep(1)  # until torchrun has noticed
    status, words = run.end()
    assert status == 0, f"torchrun ends with status {status}: {_of_ranks(words)}"


def _of_ranks(words: str) -> str:
    """Return the lines of ranks in torchrun's output."""
    return "; ".join(line for line in words.splitlines() if line.startswith("gms-fast"))


torch.set_num_threads(1)  # threads do not outlive a fork
