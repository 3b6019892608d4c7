"""Costs of sampling loops on a GPU.

They are the host's time, the time outside the network, the gain of a CUDA graph, and the launches of a step.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import torch

import gms_fast
from bench.gpu.targets import TARGETS
from bench.speed.cases import STEP, noise_moments
from bench.speed.machine import Gpu
from gms_fast import ops, solvers
from gms_fast.models import MomentUNet

STEPS = 5
WITH_STATISTICS = ("dpm-solver-v3:statistics=mnist", "gms:covariance=mnist")


def host(machine: Gpu) -> dict[str, object]:
    """Measure the microseconds that the host takes to enqueue a step, and a sum of two tensors.

    The host does not wait for the GPU. torch's sum is measured for comparison, because hosts differ.
    """
    tensors = noise_moments((1, 3, 8, 8), machine.device, 0)

    def enqueue() -> None:
        for i in range(machine.calls):
            ops.gms_step(*tensors, STEP, seed=1, step_index=i)

    def add() -> None:
        for _ in range(machine.calls):
            torch.add(tensors[0], tensors[1])

    step, of_torch = (1e6 * _seconds(machine, f, lambda: None) / machine.calls for f in (enqueue, add))
    return {"us": {"gms_step": step, "torch.add": of_torch}, "bars": [TARGETS["host"].reached(step)]}


def outside(machine: Gpu) -> dict[str, object]:
    """Return the share of GPU time in gms_fast.sample that is spent outside the network."""
    shares = {str(dtype): _outside(machine, dtype) for dtype in (torch.float32, torch.bfloat16)}
    full = shares["torch.float32"]
    return {"shares": shares, "bars": [TARGETS["outside"].reached(full["share"], full)]}


def _outside(machine: Gpu, dtype: torch.dtype) -> dict[str, object]:
    """Return the share; "bound by" is the host if the GPU ever waited for it at a network call."""
    network = MomentUNet(**machine.network).to(machine.device, dtype).eval()
    marks, waited = [], []

    def draw() -> None:
        gms_fast.sample(network, STEPS, n=machine.batch)

    def enter(*_: object) -> None:
        waited.append(marks[-1].query())
        marks.append(machine.mark())

    draw()
    seconds = _seconds(machine, draw, machine.synchronize)
    network.register_forward_pre_hook(enter)
    network.register_forward_hook(lambda *_: marks.append(machine.mark()))
    machine.sleep(seconds)  # longer than the host takes to reach the network
    marks.append(machine.mark())
    draw()
    marks.append(machine.mark())
    machine.synchronize()
    start, *inner, end = marks
    inside = sum(a.elapsed_time(b) for a, b in zip(inner[::2], inner[1::2], strict=True))
    return {"share": 1 - inside / start.elapsed_time(end)} | ({"bound by": "host"} if any(waited) else {})


def graph(machine: Gpu) -> dict[str, object]:
    """Compare ten steps of a small network at batch 1: eager, and in one CUDA graph."""
    network = gms_fast.load("mnist").to(machine.device)
    draw = gms_fast.graphed(network, 10, n=1)
    if draw.why is not None and machine.device == "cuda":
        raise RuntimeError(draw.why)
    eager = _seconds(machine, partial(gms_fast.sample, network, 10, n=1), machine.synchronize)
    replayed = _seconds(machine, draw, machine.synchronize)
    return {"ms": {"eager": 1e3 * eager, "graph": 1e3 * replayed}, "bars": [TARGETS["graph"].reached(eager / replayed)]}


class Still:
    """Network without launches: it returns another network's output and has its attributes."""

    def __init__(self, network: torch.nn.Module, n: int, device: str) -> None:
        for name in ("sample_shape", "schedule", "prediction", "moments", "clip"):
            setattr(self, name, getattr(network, name))
        x = torch.zeros(n, *network.sample_shape, device=device)
        self.calls, self._output = 0, network(x, torch.zeros(n, device=device))

    def __call__(self, x: torch.Tensor, t: torch.Tensor) -> object:
        self.calls += 1
        return self._output


@torch.no_grad()
def launches(machine: Gpu) -> dict[str, object]:
    """Count each solver's launches outside the network per network call.

    The difference of two loops with 5 and 15 steps excludes what is launched once.
    """
    network = Still(gms_fast.load("mnist").to(machine.device), 4, machine.device)

    def of(steps: int, solver: str) -> tuple[int, int]:
        draw = partial(gms_fast.sample, network, steps, solver=solver, n=4, device=machine.device)
        draw()
        network.calls = 0
        return machine.launched(draw), network.calls

    found = {}
    for solver in (*solvers.names(), *WITH_STATISTICS):
        (few, once), (many, more) = of(5, solver), of(15, solver)
        found[solver] = (many - few) / (more - once)
    return {"launches": found, "bars": [TARGETS["launches"].reached(max(found.values()))]}


def _seconds(machine: Gpu, function: Callable[[], object], finish: Callable[[], None]) -> float:
    """Return the median wall-clock time of a call and `finish`, after a call to warm up."""
    found = []
    for _ in range(1 + machine.runs):
        machine.synchronize()
        start = time.perf_counter()
        function()
        finish()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])
