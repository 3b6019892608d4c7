"""Measurement of the fastest batch size of a device within a memory limit."""

import os
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SIZES = tuple(2**i for i in range(3, 13))  # 8 .. 4096
GAIN = 0.05  # gain in samples per second that twice the batch must bring
SECONDS = 30.0  # no larger batch is tried after this time
_REPEATS = 2  # measurements of each size; the quicker one counts
_UNKNOWN = 8 << 30  # bytes, if the system does not report its free memory
_OF_FREE = {"cuda": 0.8, "cpu": 0.5}  # default limit, as a share of the free memory


class Use(NamedTuple):
    """Time of a batch in seconds, and its peak memory in bytes."""

    seconds: float
    memory: int


def fastest(measure: Callable[[int], Use | None], limit: int, most: int, multiple: int | None = None) -> int:
    """Return the smallest batch size whose double gains less than `GAIN`, or does not fit.

    Args:
        measure: Returns the use of a batch of a given size, or None if memory runs out.
        limit: Memory limit in bytes.
        most: Number of samples in total; larger batches are not tried.
        multiple: Number that the batch size must divide, if there is one.

    Raises:
        ValueError: If not even the smallest size fits.
    """
    start, best, chosen = time.monotonic(), 0.0, 0
    sizes = [size for size in SIZES if multiple is None or multiple % size == 0]
    if not sizes:
        raise ValueError(f'shard_size must be a multiple of {SIZES[0]} if batch_size is "auto": got {multiple}')
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
        raise ValueError(f"memory must be enough for a batch of {SIZES[0]} samples: got {limit / 2**30:.3g} GiB")
    return chosen


def use(draw: Callable[[], object], device: torch.device) -> Use | None:
    """Measure a call; return None if memory runs out."""
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
    """Return the bytes of memory that batches may take by default."""
    if device.type == "cuda":
        unused, _ = torch.cuda.mem_get_info(device)
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(_OF_FREE["cuda"] * (unused + held))
    available = _kib("/proc/meminfo", "MemAvailable")
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return _UNKNOWN if available is None else int(_OF_FREE["cpu"] * available * 1024 / ranks)


def out_of_memory(error: RuntimeError) -> bool:
    """Recognise torch's out-of-memory errors; only those of GPUs have a class of their own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _begin(device: torch.device) -> int:
    """Return the bytes in use before a call."""
    if device.type != "cuda":
        return _resident("VmRSS")
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    """Return the peak of bytes in use."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM")


def _resident(name: str) -> int:
    """Return the bytes of this process, 0 if the system does not report them."""
    return 1024 * (_kib("/proc/self/status", name) or 0)


def _kib(file: str, name: str) -> int | None:
    """Return the number in a line of a Linux status file; None on other systems."""
    try:
        with open(file) as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
    except (OSError, StopIteration):
        return None


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
