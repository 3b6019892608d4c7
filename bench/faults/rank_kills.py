"""Kill tests of commands that several ranks run together.

A case starts a command as some ranks and ends them at random moments by one of `ENDS`, perhaps several times and each
time with another number of ranks. A last start runs to its end. In some cases torchrun starts the ranks, and starts
them again when one is killed.

A case fails for
- work that is lost beyond the last checkpoint,
- a file that is refused,
- a result that differs from that of an uninterrupted run,
- a rank that outlives the others, or prints more than one line,
- files left behind.
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
import torch._dynamo  # once here instead of in each rank

from bench.faults import kills
from bench.faults.kills import FULL, VANISHED
from bench.faults.rank_groups import End, Group, Torchrun
from gms_fast import io
from gms_fast.models import saved_heads

ONE, ALL, WRITE, SECOND = "one killed", "all killed", "killed in a write", "second run"
TERMINATED, ALL_TERMINATED = "SIGTERM to one", "SIGTERM to all"
ENDS = {ONE: 5, ALL: 4, WRITE: 4, TERMINATED: 1, ALL_TERMINATED: 1, FULL: 2, VANISHED: 1, SECOND: 1}  # frequencies
TORCHRUN = 20  # one case in so many uses torchrun
FIRST, RATE = 0, "0.05"  # rank that writes; learning rate at which few steps move weights far


class Command(NamedTuple):
    """A command of ranks and how its result is checked.

    Args:
        arguments: Arguments of `gms-fast`.
        out: Folder that it writes.
        differs: Function (found, wanted, alike) that returns the difference of two folders, or "". With `alike`, every
            part
            of the first was made by as many ranks as the second, so the bits must be equal; else rounding may differ.
        done: Returns the amount of stored work, which must not decrease.
        again: Option for a repeated run.
    """

    arguments: tuple[str, ...]
    out: str
    differs: Callable[[Path, Path, bool], str]
    done: Callable[[Path], int]
    again: str = "--resume"


def _answers(out: Path) -> list[torch.Tensor]:
    """Return outputs of a trained model.

    Weights cannot be compared: some have no effect and follow the rounding.
    """
    model, generator = io.load(out / "model"), torch.Generator().manual_seed(0)
    with torch.no_grad():
        return list(model(torch.randn(8, *model.sample_shape, generator=generator), torch.linspace(10, 990, 8)))


def _heads(out: Path) -> list[torch.Tensor]:
    return list(saved_heads.read(out / "model")[0].values())


def _trained(read: Callable[[Path], list[torch.Tensor]]) -> Callable[[Path, Path, bool], str]:
    def differs(found: Path, wanted: Path, alike: bool) -> str:
        if alike:
            same = all(map(torch.equal, read(found), read(wanted)))
            return "" if same else "the bits differ from those of an uninterrupted run"
        # 16 steps of at most 0.05/200 x 9; rounding counts for more where a gradient's terms cancel
        far = max(float((a - b).abs().max()) for a, b in zip(read(found), read(wanted), strict=True))
        return "" if far < 1e-5 else f"{far:.1g} away from an uninterrupted run"

    return differs


def _with(name: str, *options: str) -> tuple[str, ...]:
    return (*kills.COMMANDS[name].arguments, "--batch-size", "7", "--lr", RATE, *options)


COMMANDS = {
    "train": Command(_with("train"), "run", _trained(_answers), kills._steps),
    "train-heads": Command(_with("train-heads", "--head", "simple"), "run-heads", _trained(_heads), kills._steps),
}


class Start(NamedTuple):
    """One start of a command and how it is ended, if at all.

    Args:
        ranks: Number of ranks.
        rows: Rows of a micro-batch; 0: all at once.
        end: One of `ENDS`; empty: it runs to its end.
        when: Share of the run's time, or of the bytes that it writes.
        which: Rank that is killed, if it is only one.
    """

    ranks: int
    rows: int = 0
    end: str = ""
    when: float = 0.0
    which: int = 0


class Case(NamedTuple):
    """A command and its starts, the last of which runs to its end.

    Args:
        number: Number of the case.
        command: A key of `COMMANDS`.
        starts: The starts.
        torchrun: True if torchrun starts and restarts the ranks.
    """

    number: int
    command: str
    starts: list[Start]
    torchrun: bool = False


def cases(seed: int, first: int = 0) -> Iterator[Case]:
    """Yield independent cases from number `first` on."""
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
    """Run a case; return its fault, or None."""
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
    """Return the folder and the seconds of an uninterrupted run."""
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
    """Run all starts of a case."""
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
    """End a group at its start's moment; return True if it had begun to work."""
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
    """Raise AssertionError unless each rank ended as expected with at most one line."""
    fine = {"": {0}, SECOND: {0}, FULL: {0, 2, 143}, VANISHED: {0, 2, 143}}.get(start.end, {0, 2, 130, 143, -9})
    for rank, (status, words, hung) in enumerate(ends):
        assert not (hung and begun), f"rank {rank} outlives the others: {ends}"
        assert status in fine, f"rank {rank} ends with status {status} by {start.end or 'itself'}: {ends}"
        assert hung or re.fullmatch(r"(gms-fast: [^\n]+\n)?", words), f"rank {rank} says {words!r}"
    if start.end in (FULL, VANISHED) and ends[FIRST].status:
        assert re.match("gms-fast: error: (File too large|No such file)", ends[FIRST].words), f"no clear word: {ends}"


def _restarted(command: Command, folder: str, case: Case) -> None:
    """Let torchrun start ranks, kill some, and let it restart them."""
    *killed, last = case.starts
    _, seconds = _whole(case.command, last.ranks, last.rows)
    run = Torchrun(_arguments(command, last, (command.again,)), folder, last.ranks, len(killed))
    for start in killed:
        while not run.ended() and not list(Path(folder, command.out).rglob(".lock")):
            time.sleep(0.01)
        time.sleep(seconds * start.when)
        if (process := run.working(start.which)) is not None:
            os.kill(process, signal.SIGKILL)
            time.sleep(1)  # until torchrun has noticed
    status, words = run.end()
    assert status == 0, f"torchrun ends with status {status}: {words[-2000:]}"
