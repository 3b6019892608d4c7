"""Machines that benchmarks run on: the CPU, a GPU, and a stand-in for a GPU that a rehearsal uses.

All that is asked of a GPU beside tensors and ops is asked here.
"""

import time
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

PROBE = 20_000_000  # clock ticks, some 10 ms: the sleep that tells how long a tick is


class Machine:
    """The CPU. Its inputs stay in the cache, as those of a sampling loop do."""

    device = "cpu"
    cache = 0  # bytes; what cases read and write rotates through more than twice as many
    repeat = 3  # calls in a turn of a benchmark
    side = 1024  # of the matrices of a product
    network: ClassVar = {"channel_mult": (1, 2, 2, 2)}  # MomentUNet of CIFAR-10's size

    def rotation(self, size: int) -> int:
        """Number of calls, each moving `size` bytes, after which nothing of the first is left in the cache."""
        return 1 + 2 * self.cache // size


class Gpu(Machine):
    """The first CUDA device, seen from its default stream."""

    device = "cuda"
    repeat = 11
    side = 4096
    runs = 10  # turns of a benchmark
    calls = 500  # that the host is timed by
    batch = 128

    @cached_property
    def name(self) -> str:
        return torch.cuda.get_device_name()

    @cached_property
    def cache(self) -> int:
        return torch.cuda.get_device_properties(0).L2_cache_size

    @cached_property
    def _ticks(self) -> float:
        """Clock ticks in a second."""
        for _ in range(2):  # the first wakes the clock
            start = self.mark()
            torch.cuda._sleep(PROBE)
            end = self.mark()
            self.synchronize()
        return PROBE / (1e-3 * start.elapsed_time(end))

    def mark(self) -> torch.cuda.Event:
        """An event in the stream, with its time."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def sleep(self, seconds: float) -> None:
        """Keep the stream busy while the host enqueues what follows."""
        torch.cuda._sleep(int(seconds * self._ticks))

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def launched(self, function: Callable[[], object]) -> int:
        """Kernels and copies on the GPU during a call."""
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            function()
            self.synchronize()
        return sum(event.device_type != DeviceType.CPU for event in profiler.events())


class StandIn(Gpu):
    """No GPU: tensors are on the CPU, nothing is asynchronous, and times mean nothing."""

    device = "cpu"
    name = "no GPU, rehearsed"
    cache = 1 << 8
    repeat = 2
    side = 16
    runs = 1
    calls = 4
    batch = 1
    network: ClassVar = {"image_size": 8, "model_channels": 32, "channel_mult": (1,), "num_res_blocks": 1}

    def mark(self) -> "Stamp":
        return Stamp()

    def sleep(self, seconds: float) -> None:
        pass

    def synchronize(self) -> None:
        pass

    def launched(self, function: Callable[[], object]) -> int:
        function()
        return 0


class Stamp:
    """An event of a GPU that never falls behind the host."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Stamp") -> float:
        return 1e3 * (end._at - self._at)
