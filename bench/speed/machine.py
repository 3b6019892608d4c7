"""Machines that benchmarks run on: the CPU, a GPU, and a stand-in for a GPU in rehearsals.

Everything that benchmarks ask of a GPU, apart from tensors and ops, is here.
"""

import time
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

PROBE = 20_000_000  # clock ticks, about 10 ms: a sleep that calibrates the ticks


class Machine:
    """The CPU; inputs stay in the cache, as in a sampling loop."""

    device = "cpu"
    cache = 0  # bytes; inputs and outputs rotate through more than twice as many
    repeat = 3  # calls in a turn of a benchmark
    side = 1024  # side of the matrices of a product
    network: ClassVar = {"channel_mult": (1, 2, 2, 2)}  # a MomentUNet of CIFAR-10's size

    def rotation(self, size: int) -> int:
        """Return the number of calls of `size` bytes that evict the first one's data from the cache."""
        return 1 + 2 * self.cache // size


class Gpu(Machine):
    """The first CUDA device, used by its default stream."""

    device = "cuda"
    repeat = 11
    side = 4096
    runs = 10  # turns of a benchmark
    calls = 500  # calls in a timing of the host
    batch = 128

    @cached_property
    def name(self) -> str:
        return torch.cuda.get_device_name()

    @cached_property
    def cache(self) -> int:
        return torch.cuda.get_device_properties(0).L2_cache_size

    @cached_property
    def _ticks(self) -> float:
        """Clock ticks per second."""
        for _ in range(2):  # the first run raises the clock rate
            start = self.mark()
            torch.cuda._sleep(PROBE)
            end = self.mark()
            self.synchronize()
        return PROBE / (1e-3 * start.elapsed_time(end))

    def mark(self) -> torch.cuda.Event:
        """Record an event with its time in the stream."""
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def sleep(self, seconds: float) -> None:
        """Keep the stream busy while the host enqueues further work."""
        torch.cuda._sleep(int(seconds * self._ticks))

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def launched(self, function: Callable[[], object]) -> int:
        """Count the kernels and copies on the GPU during a call."""
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            function()
            self.synchronize()
        return sum(event.device_type != DeviceType.CPU for event in profiler.events())


class StandIn(Gpu):
    """Stand-in for a GPU: tensors on the CPU, nothing asynchronous, meaningless times."""

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
    """Event of a GPU that is never behind the host."""

    def __init__(self) -> None:
        self._at = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "Stamp") -> float:
        return 1e3 * (end._at - self._at)
