"""The batch size at which a device draws fastest, found by measurement within a limit of memory."""

import os
import resource
import time
from collections.abc import Callable
from typing import NamedTuple

import torch

SIZES = tuple(2**i for i in range(3, 13))  # 8 .. 4096
GAIN = 0.05  # of samples a second that twice the batch must bring
SECONDS = 30.0  # after which no larger batch is tried
_REPEATS = 2  # of a measurement, of which the quicker one counts
_OF_FREE = {"cuda": 0.8, "cpu": 0.5}  # of the memory that is free, unless a limit is given


class Use(NamedTuple):
    """Seconds that a batch takes, and bytes that it needs at most."""

    seconds: float
    memory: int


def fastest(measure: Callable[[int], Use | None], limit: int, most: int) -> int:
    """The smallest batch size whose double brings less than `GAIN`, or does not fit.

    measure  the use of a batch of so many samples, or None where memory runs out
    limit    bytes
    most     samples that there are; larger batches than these make no sense
    Raises ValueError where not even the smallest size fits.
    """
    start, best, chosen = time.monotonic(), 0.0, 0
    for size in SIZES:
        used = measure(size)
        if used is None or used.memory > limit:
            break
        if used.seconds and size / used.seconds < best * (1 + GAIN):
            break
        best, chosen = size / max(used.seconds, 1e-9), size
        if size >= most or 2 * used.memory > limit or time.monotonic() - start > SECONDS:
            break
    if not chosen:
        raise ValueError(f"memory must be more than a batch of {SIZES[0]} samples needs: got {limit} bytes")
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
    ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return int(_OF_FREE["cpu"] * os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / ranks)


def out_of_memory(error: RuntimeError) -> bool:
    """Tell errors by which torch says that memory has run out: it has a class for GPUs alone."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _begin(device: torch.device) -> int:
    """Bytes that are taken before a call, the most that ever were on a CPU."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10  # KiB on Linux


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
