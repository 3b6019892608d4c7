"""Timing for the benchmarks: warm-up, many runs taken in turn, medians with their spread, and where it all ran."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from datetime import date

import torch

import gms_fast


def in_turn(cases: dict[str, Callable[[], object]], runs: int = 30, warmup: int = 3) -> dict[str, list[float]]:
    """Seconds of each case, the cases taking turns so that a drift of the machine hits all alike."""
    for run in cases.values():
        for _ in range(warmup):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(runs):
        for name, run in cases.items():
            _synchronize()
            start = time.perf_counter()
            run()
            _synchronize()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def spread(values: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median, upper quartile."""
    return tuple(statistics.quantiles(values, n=4)) if len(values) > 1 else (values[0],) * 3


def environment() -> dict[str, object]:
    """Versions, processor and commit that a result belongs to."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {
        "date": date.today().isoformat(),
        "commit": commit.stdout.strip() or None,
        "gms_fast": gms_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "backends": gms_fast.backends(),
    }
