"""Memory of a sampling loop beside its network, and the tensors made per network call.

On a CPU torch's profiler reports every allocation and release of the allocator, including those of the kernels. The
code runs as without it, which a dispatch mode could not guarantee. On a GPU torch counts the peak itself, and the
profiler counts the launches.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import gms_fast
from bench.speed.cases import noise_moments
from bench.speed.machine import Machine
from bench.speed.pairs import CALLS, Network, Pair, of_diffusers
from gms_fast import NoiseMoments
from gms_fast.schedules import VPLinear


class Fresh(Network):
    """Network whose outputs are new tensors, its only memory; it counts its calls."""

    calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return self.output.clone()


class FreshMoments(Fresh):
    """The same network with three noise moments."""

    def __call__(self, x: Tensor, t: Tensor) -> NoiseMoments:
        return NoiseMoments(super().__call__(x, t), self.output.clone(), self.output.clone())


class Kept(NamedTuple):
    """A solver and the number of state-sized tensors that its loop needs at once.

    These are x_t, x_s, outputs and history. The history of a step is the data estimates that it reads; the one that it
    keeps for the next step takes the place of one of these.

    Args:
        name: Name of the row.
        solver: Text of the solver.
        tensors: Number of tensors.
        network: Class of the network.
        pair: Name of another library's loop, if there is one.
    """

    name: str
    solver: str
    tensors: int
    network: type[Fresh] = Fresh
    pair: str = ""


KEPT = (
    Kept("DDIM", "ddim", 3, pair="DDIM"),
    Kept("DDPM", "ddpm", 3, pair="DDPM"),
    Kept("DPM-Solver++(2M)", "dpm-solver++", 5, pair="DPM-Solver++(2M)"),
    Kept("UniP-3", "unip", 6, pair="UniP-3"),
    Kept("Heun", "heun", 4, pair="Heun"),
    Kept("ER-SDE-3", "er-sde", 6),
    Kept("GMS", "gms", 5, FreshMoments),
)


def rows(machine: Machine, shape: tuple[int, ...]) -> list[dict[str, object]]:
    """Return a row for each solver: peak memory over what it needs, and costs per network call.

    The costs are state-sized tensors made, or launches on a GPU.
    """
    x, y, *_ = noise_moments(shape, machine.device, 0)
    rivals = {pair.name: pair for pair in of_diffusers()}
    return [_row(machine, kept, x, y, rivals.get(kept.pair)) for kept in KEPT]


def _row(machine: Machine, kept: Kept, x: Tensor, y: Tensor, rival: Pair | None) -> dict[str, object]:
    network = kept.network(y, VPLinear(), "noise", None)
    sides = {"ours": lambda: gms_fast.sample(network, CALLS - 1, solver=kept.solver, x_T=x)}
    if rival is not None:
        sides["theirs"] = lambda: rival.theirs(x, network)
    row: dict[str, object] = {"name": kept.name, "needed": kept.tensors}
    for side, draw in sides.items():
        network.calls = 0
        draw()  # makes the plan and loads the kernels
        row[side] = costs(machine, draw, x.nbytes, network.calls, kept.tensors)
    return row


def costs(machine: Machine, draw: Callable[[], object], size: int, calls: int, needed: int) -> dict[str, float]:
    """Measure a loop's peak memory and its costs per network call.

    Args:
        machine: Where to run.
        draw: The loop.
        size: Bytes of a state.
        calls: Network calls of the loop.
        needed: State-sized tensors that the loop needs; the unit of the peak.
    """
    if machine.device == "cuda":
        return {"peak": _peak_of_gpu(draw) / size / needed, "launches": _launches(draw) / calls}
    changes = allocations(draw)
    made = sum(change >= size for change in changes)
    return {"peak": max(accumulate(changes), default=0) / size / needed, "made": made / calls}


def allocations(draw: Callable[[], object]) -> list[int]:
    """Return the bytes that the CPU's allocator gave out (> 0) and took back (< 0), in order."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        draw()
    events = [e for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"]
    return [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]


def _peak_of_gpu(draw: Callable[[], object]) -> int:
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    draw()
    return torch.cuda.max_memory_allocated() - before


def _launches(draw: Callable[[], object]) -> int:
    """Count the kernels, copies and fills that the GPU ran."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        draw()
        torch.cuda.synchronize()
    return sum(e.device_type() == torch.autograd.DeviceType.CUDA for e in seen.profiler.kineto_results.events())
