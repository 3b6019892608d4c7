"""Simulation of generation by hundreds of processes that claim parts of the work.

    python -m bench.experiments.claims [--out FILE]

The package's own queue and rules of expiry (`gms_fast.generation.queue`, `gms_fast.storage.claims`) run on files in
memory and a clock that jumps from event to event. No machine sees another's locks, so a dead process is recognised only
by its silence. The time of a part is lognormal with a spread of 10 %. A share of the processes is slow for good. Each
process dies at random, once in so many hours on average, and a new one replaces it after a while.

The results are the time until all is done, relative to the same processes without deaths and idle time; the share of
parts that were drawn twice; and the operations of the file system, by kind.
"""

import argparse
import bisect
import heapq
import itertools
import math
import random
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from bench.records.record import environment, save
from gms_fast.generation.queue import Pause, Queue
from gms_fast.storage.claims import BEAT, Claims, Look

SPREAD = 0.1  # standard deviation of the logarithm of a part's time
OPERATIONS = ("create", "look", "remove", "list", "write", "beat")
RUNS = 3


class Case(NamedTuple):
    """Processes that share parts.

    Args:
        processes: Number of processes.
        parts: Number of parts.
        seconds: Mean time of a part.
        slow_share: Share of the processes that are slow.
        slower: Factor of their time.
        hours: Mean time to a process's death.
        restart: Seconds until a dead process is replaced.
        placed: Each process begins at its own place, like the ranks of one torchrun.
        lag: Age of a directory listing in seconds; checks of a single file are up to date.
    """

    processes: int
    parts: int
    seconds: float
    slow_share: float
    slower: float
    hours: float
    restart: float = 120.0
    placed: bool = True
    lag: float = 0.0


CASES = {
    "8 processes, nothing goes wrong": Case(8, 800, 60, 0, 1, math.inf),
    "64, one in ten is 4 times as slow": Case(64, 4096, 60, 0.1, 4, math.inf),
    "64, each dies every 2 hours": Case(64, 4096, 60, 0, 1, 2),
    "512, nothing goes wrong": Case(512, 12288, 60, 0, 1, math.inf),
    "512, lists are 30 s old": Case(512, 12288, 60, 0, 1, math.inf, lag=30),
    "512 that know nothing of each other": Case(512, 12288, 60, 0, 1, math.inf, placed=False),
    "512, one in fifty is 4 times as slow, each dies every 6 hours": Case(512, 12288, 60, 0.02, 4, 6),
    "512, each dies every hour": Case(512, 12288, 60, 0, 1, 1),
    "512 for 256 parts": Case(512, 256, 60, 0, 1, 6),
}


class World:
    """Shared state of all processes: claims, finished parts, the time, and counts of operations."""

    def __init__(self, lag: float) -> None:
        self.now, self.lag, self.counts, self.seconds = 0.0, lag, Counter[str](), Counter[int]()
        self.done = set[int]()
        self.order: list[tuple[float, int]] = []  # (time, part)
        self.claims: dict[str, tuple[int, Simulated, float]] = {}
        self.inodes = itertools.count()

    def count(self, operation: str) -> None:
        self.counts[operation] += 1
        self.seconds[int(self.now)] += 1

    def listed(self) -> set[int]:
        self.count("list")
        return {part for _, part in self.order[: bisect.bisect(self.order, (self.now - self.lag, 1 << 60))]}

    def has(self, part: int) -> bool:
        self.count("look")
        return part in self.done

    def write(self, part: int) -> None:
        self.count("write")
        self.done.add(part)
        self.order.append((self.now, part))


class Simulated(Claims):
    """Claims of one process in a world, by the rules of the package."""

    def __init__(self, world: World, folder: Path = Path()) -> None:
        super().__init__(folder)
        self.world, self.died = world, math.inf

    def clock(self) -> float:
        return self.world.now

    def _make(self, name: str) -> bool:
        self.world.count("create")
        if name in self.world.claims:
            return False
        self._mine[name] = next(self.world.inodes)
        self.world.claims[name] = self._mine[name], self, self.world.now
        self._seen.pop(name, None)
        return True

    def _look(self, name: str) -> Look | None:
        self.world.count("look")
        if name not in self.world.claims:
            return None
        inode, owner, _ = self.world.claims[name]
        return Look(inode, int(min(self.world.now, owner.died) // BEAT), dead=False)

    def _remove(self, name: str) -> None:
        self.world.count("remove")
        self.world.claims.pop(name, None)

    def drop(self, name: str) -> None:
        if self.world.claims.get(name, (None,))[0] == self._mine.pop(name):
            self._remove(name)

    def names(self) -> set[str]:
        self.world.count("list")
        old = self.world.now - self.world.lag
        return {name for name, (_, _, made) in self.world.claims.items() if made <= old}


class Played:
    """Simulation of a case, event by event."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case, self.draw, self.world = case, random.Random(seed), World(case.lag)
        self.slow = set(self.draw.sample(range(case.processes), round(case.slow_share * case.processes)))
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.drawn, self.deaths, self.last, self.order = 0, 0, 0.0, itertools.count()
        for rank in range(case.processes):
            self._begin(rank)
        while self.events:
            self.world.now, _, act = heapq.heappop(self.events)
            act()
        assert self.world.done == set(range(case.parts)), "parts are left"

    def _at(self, moment: float, act: Callable[[], None]) -> None:
        heapq.heappush(self.events, (moment, next(self.order), act))

    def _begin(self, rank: int) -> None:
        """Start a process of this rank."""
        first, world = self.case.parts * rank // self.case.processes if self.case.placed else 0, self.world
        parts = [*range(first, self.case.parts), *range(first)]
        claims = Simulated(world)
        queue = Queue(parts, world.listed, world.has, _name, claims, self.draw)
        dies = world.now + 3600 * self.case.hours * self.draw.expovariate(1)
        self._go_on(rank, claims, queue.steps(), dies)

    def _go_on(self, rank: int, claims: Simulated, steps: Iterator[int | Pause], dies: float) -> None:
        """Take the next step of a process, until it ends or dies."""
        step, now = next(steps, None), self.world.now
        if step is None:
            self.last = now
            return
        takes = step.seconds if isinstance(step, Pause) else self._seconds(rank)
        if now + takes > dies:
            self._at(dies, lambda: self._die(rank, claims))
        else:
            self._at(now + takes, lambda: self._finish(rank, claims, steps, dies, step))

    def _finish(
        self, rank: int, claims: Simulated, steps: Iterator[int | Pause], dies: float, step: int | Pause
    ) -> None:
        if not isinstance(step, Pause):
            self.drawn += 1
            self.world.write(step)
            claims.drop(_name(step))
        self._go_on(rank, claims, steps, dies)

    def _die(self, rank: int, claims: Simulated) -> None:
        self.deaths, claims.died = self.deaths + 1, self.world.now
        self._at(self.world.now + self.case.restart, lambda: self._begin(rank))

    def _seconds(self, rank: int) -> float:
        slower = self.case.slower if rank in self.slow else 1.0
        return self.case.seconds * slower * self.draw.lognormvariate(-(SPREAD**2) / 2, SPREAD)


def play(case: Case, seed: int) -> dict[str, float]:
    """Simulate a case once; return its figures."""
    played = Played(case, seed)
    fast = case.processes - len(played.slow)
    ideal = case.parts * case.seconds / (fast + len(played.slow) / case.slower)
    beats = case.processes * played.last / BEAT
    counts = {**played.world.counts, "beat": beats}
    return {
        "hours": played.last / 3600,
        "of ideal": played.last / ideal,
        "drawn twice": played.drawn / case.parts - 1,
        "deaths": played.deaths,
        **{f"{name} / s": counts[name] / played.last for name in OPERATIONS},
        "most / s": max(played.world.seconds.values()),
    }


def _name(part: int) -> str:
    return f"{part:09d}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=RUNS, help="runs of each case; the median is kept")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    rows = {}
    with ProcessPoolExecutor() as pool:
        played = {name: [pool.submit(play, case, seed) for seed in range(args.runs)] for name, case in CASES.items()}
        for name, jobs in played.items():
            runs = [job.result() for job in jobs]
            rows[name] = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
            print(name, {key: round(value, 4) for key, value in rows[name].items()}, flush=True)
    if args.out:
        cases = {name: case._asdict() for name, case in CASES.items()}
        save(args.out, {"environment": environment(), "runs": args.runs, "cases": cases, "rows": rows})


if __name__ == "__main__":
    main()
