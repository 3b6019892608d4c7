"""Timing for the benchmarks: cases that take turns, medians and quartiles.

In each turn a case runs a few times in a row, and the first run is not counted. Caches and the allocator are then in
the state of a sampling loop, for all cases alike. A turn gives one time, the mean of the counted runs.

On a GPU that is the time between two events. Inputs and outputs rotate through more than twice the L2 cache, so every
call reads from memory and writes to it. The GPU sleeps while the host enqueues a turn. If the GPU has no work left when
the host has enqueued everything, it was waiting for the host. A case in which that happens in most turns is bound by
the host.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from bench.speed.cases import Case
from bench.speed.machine import Gpu, Machine

_LONGEST_SLEEP = 0.05  # seconds: a driver queues about a thousand launches, then the host waits anyway
_SPARE = 1e-3  # seconds of sleep beyond the time of enqueueing
_CAUGHT_UP = 1e-4  # seconds: a GPU with less work left was waiting for the host


class Times(NamedTuple):
    """Times that `in_turn` measures, by name of the case.

    Args:
        seconds: A list with one entry per turn.
        host_bound: Cases that kept the GPU waiting.
        failed: Cases that were dropped, with the reason.
    """

    seconds: dict[str, list[float]]
    host_bound: set[str]
    failed: dict[str, str]


def in_turn(machine: Machine, cases: Sequence[Case], runs: int) -> Times:
    """Time the cases in turn, so that a drift of the machine affects all alike.

    A case that raises an exception is dropped.
    """
    kind = _Events if isinstance(machine, Gpu) else _OnTheWall
    clocks: dict[str, _OnTheWall | _Events] = {}
    seconds: dict[str, list[float]] = {}
    failed: dict[str, str] = {}
    for case in cases:
        with dropping(case.name, failed):
            clocks[case.name] = kind(machine, case)
            seconds[case.name] = []
    for run in range(runs):
        for name in list(seconds):
            with dropping(name, failed):
                seconds[name].append(clocks[name].turn(run * machine.repeat))
            if name in failed:
                del seconds[name]
    return Times(seconds, {name for name in seconds if clocks[name].waits > runs / 2}, failed)


def latency(machine: Machine, cases: Sequence[Case], runs: int) -> Times:
    """Time the cases as `in_turn`, but by the wall clock and to the end of the GPU's work.

    For loops that may wait for the GPU themselves. The sleep of `in_turn` would hide the host's work only of loops that
    never wait.
    """
    if isinstance(machine, Gpu):
        cases = [case._replace(run=lambda *t, run=case.run: (run(*t), machine.synchronize())) for case in cases]
    return in_turn(Machine(), cases, runs)


@contextmanager
def dropping(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Record an exception under the case's name and continue."""
    try:
        yield
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"


class _OnTheWall:
    """Timer by the wall clock."""

    waits = 0

    def __init__(self, machine: Machine, case: Case) -> None:
        self._case, self._repeat = case, machine.repeat
        case.call(0)

    def turn(self, first: int) -> float:
        """Return the mean seconds of a call in a turn, after `first` earlier calls."""
        self._case.call(first)
        start = time.perf_counter()
        for turn in range(first + 1, first + self._repeat):
            self._case.call(turn)
        return (time.perf_counter() - start) / (self._repeat - 1)


class _Events:
    """Timer by the GPU's clock, which counts the turns in which the GPU waited for the host."""

    def __init__(self, machine: Gpu, case: Case) -> None:
        self._machine, self._case, self.waits = machine, case, 0
        self._rotation = machine.rotation(case.size)
        self._enqueue(range(self._rotation))  # fills the allocator's cache
        machine.synchronize()
        start = time.perf_counter()
        self._enqueue(range(machine.repeat))
        self._sleep = min(2 * (time.perf_counter() - start) + _SPARE, _LONGEST_SLEEP)

    def turn(self, first: int) -> float:
        """Return the mean seconds of a call in a turn, after `first` earlier calls."""
        machine = self._machine
        machine.synchronize()
        machine.sleep(self._sleep)
        self._enqueue(range(first, first + 1))
        start = machine.mark()
        self._enqueue(range(first + 1, first + machine.repeat))
        end = machine.mark()
        enqueued = time.perf_counter()
        machine.synchronize()
        self.waits += time.perf_counter() - enqueued < _CAUGHT_UP
        return start.elapsed_time(end) / 1e3 / (machine.repeat - 1)

    def _enqueue(self, turns: range) -> None:
        """Call the case, and keep each output until the cache has lost it."""
        kept = deque(maxlen=self._rotation)
        for turn in turns:
            kept.append(self._case.call(turn))


def spread(values: list[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile."""
    return tuple(statistics.quantiles(values, n=4, method="inclusive")) if len(values) > 1 else (values[0],) * 3
