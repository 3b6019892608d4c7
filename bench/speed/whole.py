"""Time of sampling with a network, over the network's own and over diffusers' loop."""

from typing import Any

import torch
from torch import Tensor

import gms_fast
from bench.speed.cases import Case, Sets, normals
from bench.speed.machine import Machine
from bench.speed.pairs import Scheduler, ours
from bench.speed.timing import latency, spread
from gms_fast.models import MomentUNet

STEPS = 10
LOOP, ALONE = f"gms_fast.sample, {STEPS} steps of GMS", f"{STEPS + 1} network calls"
OURS, THEIRS = "ours", "diffusers"


def embedded(machine: Machine, n: int, runs: int) -> dict[str, list[float]]:
    """Return quartiles of two ratios of times for the embedded model.

    They are GMS's loop over its network calls alone, and DDIM over diffusers' loop at equal calls.
    """
    model = gms_fast.load("mnist").to(machine.device)
    sets = _states(machine, model, n)

    @torch.no_grad()
    def alone(x: Tensor) -> None:
        t = torch.full((n,), 500.0, device=x.device)
        for _ in range(STEPS + 1):
            model(x, t)

    draw = Case(LOOP, lambda x: gms_fast.sample(model, STEPS, x_T=x), sets, 4)
    loop = _ratio(machine, draw, Case(ALONE, alone, sets, 4), runs)
    return {"loop over network": loop, "mnist": against_diffusers(machine, model, n, runs)}


def cifar(machine: Machine, n: int, runs: int) -> list[float]:
    """Return quartiles of DDIM over diffusers' loop with a U-Net of CIFAR-10's size."""
    model = MomentUNet(**machine.network).to(machine.device).eval()
    return against_diffusers(machine, model, n, runs)


def against_diffusers(machine: Machine, model: Any, n: int, runs: int) -> list[float]:
    """Return quartiles of DDIM's time over diffusers' loop, with equal network and calls."""
    theirs = Scheduler("DDIM", calls=STEPS, clip_sample=True)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return model(x, t.to(x.device).expand(len(x))).e1

    sets, own = _states(machine, model, n), ours("ddim", steps=STEPS - 1)
    cases = [Case(OURS, lambda x: own(x, model), sets, 4), Case(THEIRS, lambda x: theirs(x, network), sets, 4)]
    return _ratio(machine, *cases, runs)


def _states(machine: Machine, model: Any, n: int) -> Sets:
    """Draw sets of start states."""
    return Sets(lambda seed: normals(1)((n, *model.sample_shape), machine.device, seed))


def _ratio(machine: Machine, over: Case, under: Case, runs: int) -> list[float]:
    """Return quartiles of time(over)/time(under), turn by turn.

    Raises RuntimeError if a case fails.
    """
    times = latency(machine, [over, under], runs)
    if times.failed:
        raise RuntimeError(f"not measured: {times.failed}")
    return ratio(times.seconds[over.name], times.seconds[under.name])


def ratio(over: list[float], under: list[float]) -> list[float]:
    """Return quartiles of the ratios of times measured in the same turns."""
    return list(spread([a / b for a, b in zip(over, under, strict=True)]))
