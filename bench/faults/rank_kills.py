"""Kills of ranks: commands that several processes run together, ended at random moments and gone on with.

A case starts a command as some ranks, ends them by one of `ENDS`, perhaps several times and each time as another number
of ranks, and lets a last start go through. A case fails by work that is lost beyond the last checkpoint, a file that is
refused, a result other than that of a whole run, a rank that outlives the others, words beyond one line, or litter.
Some cases are started by torchrun, which starts all ranks again when one is killed.
"""

import itertools
import os
import random
import re
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import torch._dynamo  # ranks would import it, each for itself

from bench.faults import kills
from bench.faults.kills import FULL, VANISHED
from bench.faults.rank_groups import End, Group, Torchrun
from gms_fast import io
from gms_fast.models import saved_heads

ONE, ALL, WRITE, SECOND = "one killed", "all killed", "killed in a write", "second run"
TERMINATED, ALL_TERMINATED = "SIGTERM to one", "SIGTERM to all"
ENDS = {ONE: 5, ALL: 4, WRITE: 4, TERMINATED: 1, ALL_TERMINATED: 1, FULL: 2, VANISHED: 1, SECOND: 1}  # how often
TORCHRUN = 20  # every so many cases one is torchrun's
FIRST, RATE = 0, "0.05"  # rank that writes; a rate at which few steps move weights far


class Command(NamedTuple):
    """A command of ranks, what it writes, and how its result is told from that of a whole run.

    differs  (found, wanted, alike) -> the difference of two folders, if there is one. alike: all that went into the
             first was made by as many ranks as the second, so that bits are promised, where else rounding may differ
    done     what may not get less
    rows     of a batch, which all ranks share; none: each has its own
    """

    arguments: tuple[str, ...]
    out: str
    differs: Callable[[Path, Path, bool], str]
    done: Callable[[Path], int]
    again: str = "--resume"


def _answers(out: Path) -> list[torch.Tensor]:
    """Answers of a trained model; some weights of it do nothing, and follow the rounding."""
    model, generator = io.load(out / "model"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        return list(model(torch.randn(8, *model.sample_shape, generator=generator), torch.linspace(10, 990, 8)))


def _heads(out: Path) -> list[torch.Tensor]:
    return list(saved_heads.read(out / "model")[0].values())


def _trained(read: Callable[[Path], list[torch.Tensor]]) -> Callable[[Path, Path, bool], str]:
    def differs(found: Path, wanted: Path, alike: bool) -> str:
        if alike:
            same = all(map(torch.equal, read(found), read(wanted)))
            return "" if same else "other bits than those of a whole run"
        # 16 steps of at most 0.05/200 x 9 and as much rounding as terms of a gradient are larger than itself
        far = max(float((a - b).abs().max()) for a, b in zip(read(found), read(wanted), strict=True))
        return "" if far < 1e-5 else f"{far:.1g} away from a whole run"

    return differs


def _with(name: str, *options: str) -> tuple[str, ...]:
    return (*kills.COMMANDS[name].arguments, "--batch-size", "7", "--lr", RATE, *options)


COMMANDS = {
    "train": Command(_with("train"), "run", _trained(_answers), kills._steps),
    "train-heads": Command(_with("train-heads", "--head", "simple"), "run-heads", _trained(_heads), kills._steps),
}


class Start(NamedTuple):
    """A start of a command as `ranks` with so many rows at a time (0: all), and its end, if any.

    when  share of the time that it takes, or of the bytes that it writes
    which rank that is meant, where it is one
    """

    ranks: int
    rows: int = 0
    end: str = ""
    when: float = 0.0
    which: int = 0


class Case(NamedTuple):
    """A command, its starts, of which the last goes through, and whether torchrun is there to start it again."""

    number: int
    command: str
    starts: list[Start]
    torchrun: bool = False


def cases(seed: int, first: int = 0) -> Iterator[Case]:
    """Cases from number `first` on, each of its own."""
    for number in itertools.count(first):
        draw = random.Random(f"ranks/{seed}/{number}")
        name, torchrun = draw.choice(list(COMMANDS)), number % TORCHRUN == TORCHRUN - 1
        alike, ranks, rows = torchrun or draw.random() < 0.4, draw.randint(2, 3), draw.choice((0, 0, 2))
        starts = []
        for _ in range(draw.randint(1, 3)):
            starts.append(Start(ranks, rows, ONE if torchrun else draw.choices(list(ENDS), list(ENDS.values()))[0],
                                draw.uniform(0, 1.05), draw.randrange(ranks)))  # fmt: skip
            ranks, rows = (ranks, rows) if alike else (draw.randint(1, 3), draw.choice((0, 0, 2)))
        yield Case(number, name, [*starts, Start(ranks, rows)], torchrun)


def check(case: Case) -> str | None:
    """Run a case. Returns what went wrong, if something did."""
    command = COMMANDS[case.command]
    *_, last = case.starts
    alike = len({(start.ranks, start.rows) for start in case.starts}) == 1
    try:
        wanted, _ = _whole(case.command, last.ranks, last.rows)
        with tempfile.TemporaryDirectory() as folder:
            kills._prepare(Path(folder))
            (_restarted if case.torchrun else _started)(command, folder, case)
            fault = command.differs(Path(folder, command.out), wanted / command.out, alike)
            assert not fault, fault
            left = set(kills.content(Path(folder))) ^ set(kills.content(wanted))
            assert not left, f"files of one run alone: {left}"
    except (AssertionError, ValueError) as error:
        return f"{case.command}, {'torchrun' if case.torchrun else 'forks'}, {case.starts}: {error}"
    return None


@cache
def _whole(name: str, ranks: int, rows: int) -> tuple[Path, float]:
    """The folder of a run that nothing ends, and its seconds."""
    folder = Path(tempfile.mkdtemp(dir=_everything().name))
    kills._prepare(folder)
    start = time.monotonic()
    ends = Group(_arguments(COMMANDS[name], Start(ranks, rows)), str(folder), ranks).end()
    assert all(end.status == 0 for end in ends), f"a whole run fails: {ends}"
    return folder, time.monotonic() - start


@cache
def _everything() -> "tempfile.TemporaryDirectory[str]":
    return tempfile.TemporaryDirectory()


def _arguments(command: Command, start: Start, again: tuple[str, ...] = ()) -> tuple[str, ...]:
    return (*command.arguments, *again, *(("--micro-batch", str(start.rows)) if start.rows else ()))


def _started(command: Command, folder: str, case: Case) -> None:
    """Go through all starts of a case."""
    out, done, again = Path(folder, command.out), 0, ()
    for start in case.starts:
        whole, seconds = _whole(case.command, start.ranks, start.rows)
        largest = int(start.when * max(map(len, kills.content(whole / command.out).values())))
        arguments = _arguments(command, start, again)
        group = Group(arguments, folder, start.ranks, largest if start.end == FULL else None)
        begun = _act(group, start, seconds, out, arguments)
        _look(group.end(), start, begun)
        left = command.done(out)
        assert left >= done or start.end == VANISHED, f"{done} were done, and {left} are left after {start}"
        done, again = left, (command.again,)


def _act(group: Group, start: Start, seconds: float, out: Path, arguments: tuple[str, ...]) -> bool:
    """End a group as its start says when its moment has come, and tell whether it had begun to work."""
    if start.end in ("", FULL) or group.wait(start.when * seconds):
        return True
    begun, everyone = group.begun(out), range(start.ranks)
    if start.end == SECOND:
        ends = Group((*arguments, *(() if "--resume" in arguments else ("--resume",))), str(out.parent), 2).end()
        refused = all(end.status == 2 and "is in use by process" in end.words for end in ends)
        assert refused or all(end.status == 0 for end in ends), f"the second run ends with {ends}"
    elif start.end == VANISHED:
        kills._vanish(out)
    elif start.end == WRITE:
        while not list(out.rglob("*.partial")) and not group.wait(0.0005):
            pass
        group.send(signal.SIGKILL, (FIRST,))
    elif start.end in (ONE, ALL):
        group.send(signal.SIGKILL, (start.which,) if start.end == ONE else everyone)
    else:
        group.send(signal.SIGTERM, (start.which,) if start.end == TERMINATED else everyone)
    return begun


def _look(ends: list[End], start: Start, begun: bool) -> None:
    """Raise AssertionError unless each rank has ended as it should, with one line of its own at most."""
    fine = {"": {0}, SECOND: {0}, FULL: {0, 2, 143}, VANISHED: {0, 2, 143}}.get(start.end, {0, 2, 130, 143, -9})
    for rank, (status, words, hung) in enumerate(ends):
        assert not (hung and begun), f"rank {rank} outlives the others: {ends}"
        assert status in fine, f"rank {rank} ends with status {status} by {start.end or 'itself'}: {ends}"
        assert hung or re.fullmatch(r"(gms-fast: [^\n]+\n)?", words), f"rank {rank} says {words!r}"
    if start.end in (FULL, VANISHED) and ends[FIRST].status:
        assert re.match("gms-fast: error: (File too large|No such file)", ends[FIRST].words), f"no clear word: {ends}"


def _restarted(command: Command, folder: str, case: Case) -> None:
    """Have torchrun start ranks, and start them again whenever one of them is killed."""
    *killed, last = case.starts
    _, seconds = _whole(case.command, last.ranks, last.rows)
    run = Torchrun(_arguments(command, last, (command.again,)), folder, last.ranks, len(killed))
    for start in killed:
        while not run.ended() and not list(Path(folder, command.out).rglob(".lock")):
            time.sleep(0.01)
        time.sleep(seconds * start.when)
        if (process := run.working(start.which)) is not None:
            os.kill(process, signal.SIGKILL)
            time.sleep(1)  # torchrun has noticed
    status, words = run.end()
    assert status == 0, f"torchrun ends with status {status}: {words[-2000:]}"
