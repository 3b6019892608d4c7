"""Timing for the benchmarks: cases taken in turn, and medians with their quartiles.

In each turn a case runs a few times back to back and the first is not counted: caches and the allocator are then those
of a sampling loop, for all cases alike. A turn gives one time, the mean of those counted.

On a GPU that is the time between two events. Inputs and outputs rotate through more than twice the L2, so that every
call reads from memory and writes there. The GPU sleeps while the host enqueues a turn. One that has nothing left to do
when the host is through was waiting for the host: a case where most turns end so is bound by the host.
"""

import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from bench.speed.cases import Case
from bench.speed.machine import Gpu, Machine

_LONGEST_SLEEP = 0.05  # seconds: a driver queues some thousand launches, then the host waits for the GPU anyway
_SPARE = 1e-3  # seconds of sleep beyond what enqueueing takes
_CAUGHT_UP = 1e-4  # seconds: a GPU with less to do than that was waiting for the host


class Times(NamedTuple):
    """The times that `in_turn` finds, by the names of the cases."""

    seconds: dict[str, list[float]]  # an entry a turn
    host_bound: set[str]  # cases that kept the GPU waiting
    failed: dict[str, str]  # cases that were dropped, and why


def in_turn(machine: Machine, cases: Sequence[Case], runs: int) -> Times:
    """Seconds of each case, the cases taking turns so that a drift of the machine hits all alike.

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
    """The same on the wall clock, each call to the end of its work: for loops that wait for the GPU themselves.

    A loop that never waits could hide the host's work in the sleep of `in_turn`, and one that does could not.
    """
    if isinstance(machine, Gpu):
        cases = [case._replace(run=lambda *t, run=case.run: (run(*t), machine.synchronize())) for case in cases]
    return in_turn(Machine(), cases, runs)


@contextmanager
def dropping(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Note an exception under the name of the case that raised it, and go on without the case."""
    try:
        yield
    except Exception as error:
        failed[name] = f"{type(error).__name__}: {error}"


class _OnTheWall:
    """The wall clock."""

    waits = 0

    def __init__(self, machine: Machine, case: Case) -> None:
        self._case, self._repeat = case, machine.repeat
        case.call(0)

    def turn(self, first: int) -> float:
        """Mean seconds of a call in a turn; `first`: number of calls before it."""
        self._case.call(first)
        start = time.perf_counter()
        for turn in range(first + 1, first + self._repeat):
            self._case.call(turn)
        return (time.perf_counter() - start) / (self._repeat - 1)


class _Events:
    """The GPU's own clock, and in how many turns the GPU waited for the host."""

    def __init__(self, machine: Gpu, case: Case) -> None:
        self._machine, self._case, self.waits = machine, case, 0
        self._rotation = machine.rotation(case.size)
        self._enqueue(range(self._rotation))  # the allocator keeps the memory of all outputs
        machine.synchronize()
        start = time.perf_counter()
        self._enqueue(range(machine.repeat))
        self._sleep = min(2 * (time.perf_counter() - start) + _SPARE, _LONGEST_SLEEP)

    def turn(self, first: int) -> float:
        """Mean seconds of a call in a turn; `first`: number of calls before it."""
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
        """Call the case, each output kept until the cache has lost it."""
        kept = deque(maxlen=self._rotation)
        for turn in turns:
            kept.append(self._case.call(turn))


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    return tuple(statistics.quantiles(values, n=4, method="inclusive")) if len(values) > 1 else (values[0],) * 3
