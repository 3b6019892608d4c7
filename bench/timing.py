"""Timing for the benchmarks: cases taken in turn, medians with their quartiles, and where it all ran.

In each turn a case runs `repeat` times back to back and the first is not counted: caches and the allocator are then
those of a sampling loop, for all cases alike. A turn gives one time, the mean of those counted. On a GPU the time
between events, and the inputs rotate (cases.input_sets).
"""

import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import torch
from cases import Case

import gms_fast

_AHEAD = 20_000_000  # clock ticks, some 10 ms: the GPU waits while the host enqueues, and then never waits for the host


def in_turn(cases: Sequence[Case], runs: int) -> dict[str, list[float]]:
    """Seconds of each case, the cases taking turns so that a drift of the machine hits all alike."""
    clock, repeat = (_between_events, 11) if cases[0].sets[0][0].is_cuda else (_on_the_wall, 3)
    for case in cases:
        case.call(0)
    seconds: dict[str, list[float]] = {case.name: [] for case in cases}
    for run in range(runs):
        for case in cases:
            seconds[case.name].append(clock(case, run * repeat, repeat))
    return seconds


def _on_the_wall(case: Case, first: int, repeat: int) -> float:
    case.call(first)
    start = time.perf_counter()
    for turn in range(first + 1, first + repeat):
        case.call(turn)
    return (time.perf_counter() - start) / (repeat - 1)


def _between_events(case: Case, first: int, repeat: int) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(_AHEAD)
    case.call(first)
    start.record()
    for turn in range(first + 1, first + repeat):
        case.call(turn)
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1e3 / (repeat - 1)


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    return tuple(statistics.quantiles(values, n=4, method="inclusive")) if len(values) > 1 else (values[0],) * 3


def environment() -> dict[str, object]:
    """Versions, processor and commit that a result belongs to."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    commit = _git("rev-parse", "--short", "HEAD") + ("-dirty" if changed else "")
    return {
        "date": date.today().isoformat(),
        "commit": commit or None,
        "gms_fast": gms_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "backends": gms_fast.backends(),
    }


def _git(*command: str) -> str:
    root = Path(__file__).parent.parent
    return subprocess.run(["git", *command], cwd=root, capture_output=True, text=True, check=False).stdout.strip()
