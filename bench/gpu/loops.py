"""Costs of loops of calls on a GPU: the host's time, the time outside the network, and what a CUDA graph saves."""

import statistics
import time
from collections.abc import Callable

import torch

import gms_fast
from bench.gpu.targets import TARGETS
from bench.speed.cases import STEP, noise_moments
from bench.speed.machine import Gpu
from gms_fast import ops
from gms_fast.models import MomentUNet

STEPS = 5


def host(machine: Gpu) -> dict[str, object]:
    """Microseconds that the host takes to enqueue one step, without waiting for the GPU; and a sum of two tensors by
    torch, because hosts differ."""
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
    """Share of the GPU's time in gms_fast.sample that is not between entry to and exit from the network."""
    shares = {str(dtype): _outside(machine, dtype) for dtype in (torch.float32, torch.bfloat16)}
    full = shares["torch.float32"]
    return {"shares": shares, "bars": [TARGETS["outside"].reached(full["share"], full)]}


def _outside(machine: Gpu, dtype: torch.dtype) -> dict[str, object]:
    """The share; "bound by" the host if the GPU ever had nothing to do when the host came to the network."""
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
    machine.sleep(seconds)  # longer than the host needs to plan, and to reach the network
    marks.append(machine.mark())
    draw()
    marks.append(machine.mark())
    machine.synchronize()
    start, *inner, end = marks
    inside = sum(a.elapsed_time(b) for a, b in zip(inner[::2], inner[1::2], strict=True))
    return {"share": 1 - inside / start.elapsed_time(end)} | ({"bound by": "host"} if any(waited) else {})


def graph(machine: Gpu) -> dict[str, object]:
    """Ten steps of a small network at batch 1: eager over the loop in one CUDA graph."""
    network = gms_fast.load("mnist").to(machine.device)
    seed = torch.zeros(1, dtype=torch.int64, device=machine.device)

    def draw() -> None:
        gms_fast.sample(network, 10, n=1, seed=seed)

    eager = _seconds(machine, draw, machine.synchronize)
    replayed = _seconds(machine, machine.capture(draw), machine.synchronize)
    return {"ms": {"eager": 1e3 * eager, "graph": 1e3 * replayed}, "bars": [TARGETS["graph"].reached(eager / replayed)]}


def _seconds(machine: Gpu, function: Callable[[], object], finish: Callable[[], None]) -> float:
    """Median time of a call on the wall clock, `finish` included, after one that is not counted."""
    found = []
    for _ in range(1 + machine.runs):
        machine.synchronize()
        start = time.perf_counter()
        function()
        finish()
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])
