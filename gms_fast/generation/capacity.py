"""The batch size at which a device draws fastest, found by measurement within a limit of memory."""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SIZES = tuple(2**i for i in range(3, 13))  # 8 .. 4096
GAIN = 0.05  # of samples a second that twice the batch must bring
SECONDS = 30.0  # after which no larger batch is tried
_REPEATS = 2  # of a measurement, of which the quicker one counts
_UNKNOWN = 8 << 30  # bytes, where the system does not say what is free
_OF_FREE = {"cuda": 0.8, "cpu": 0.5}  # of the memory that is free, unless a limit is given


class Use(NamedTuple):
    """Seconds that a batch takes, and bytes that it needs at most."""

    seconds: float
    memory: int


def fastest(measure: Callable[[int], Use | None], limit: int, most: int, multiple: int | None = None) -> int:
    """The smallest batch size whose double brings less than `GAIN`, or does not fit.

    measure  the use of a batch of so many samples, or None where memory runs out
    limit    bytes
    most     samples that there are; larger batches than these make no sense
    multiple of the size that is found, if there is to be one
    Raises ValueError where not even the smallest size fits.
    """
    start, best, chosen = time.monotonic(), 0.0, 0
    sizes = [size for size in SIZES if multiple is None or multiple % size == 0]
    if not sizes:
        raise ValueError(
            f"shard_size must be a multiple of {SIZES[0]} for a batch size that is measured: got {multiple}"
        )
    for size in sizes:
        used = measure(size)
        if used is None or used.memory > limit:
            break
        if used.seconds and size / used.seconds < best * (1 + GAIN):
            break
        best, chosen = size / max(used.seconds, 1e-9), size
        if size >= most or 2 * used.memory > limit or time.monotonic() - start > SECONDS:
            break
    if not chosen:
        raise ValueError(f"memory must be enough for a batch of {SIZES[0]} samples: {limit / 2**30:.3g} GiB are not")
    return chosen


def use(draw: Callable[[], object], device: torch.device) -> Use | None:
    """The use of a call; None where memory runs out."""
    seconds = []
    before = _begin(device)
    for _ in range(_REPEATS):
        start = time.perf_counter()
        try:
            draw()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            return None
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return Use(min(seconds), _peak(device) - before)


def free(device: torch.device) -> int:
    """Bytes of memory that batches may take unless a limit is given."""
    if device.type == "cuda":
        unused, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_OF_FREE["cuda"] * (unused + held))
    available = _kib("/proc/meminfo", "MemAvailable")
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return _UNKNOWN if available is None else int(_OF_FREE["cpu"] * available * 1024 / ranks)


def out_of_memory(error: RuntimeError) -> bool:
    """Tell errors by which torch says that memory has run out: it has a class for GPUs alone."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _begin(device: torch.device) -> int:
    """Bytes that are taken before a call."""
    if device.type != "cuda":
        return _resident("VmRSS")
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    """The most bytes that were ever taken."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    """Bytes of this process, 0 where the system does not say."""
    return 1024 * (_kib("/proc/self/status", name) or 0)


def _kib(file: str, name: str) -> int | None:
    """The number of a line of Linux's own files; None elsewhere."""
    try:
        with open(file) as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
