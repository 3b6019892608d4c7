"""Time of a reverse step with the released fit, and with our ops.

    python -m bench.speed.released_step

A step is one network call and everything that follows up to x_s. The sides run in this process and take turns, so a
drift of the machine affects all alike. Figures are quartiles, over the turns, of a step's time over that of the network
alone in the same turn.

- RELEASED: the released recipe in our own code, 70 iterations of Adan under autograd (`bench.speed.baselines`)
- LINES: the same moments, but the three lines of docs/hosts.md instead of fit and draw
- OURS: `ops.gms_step`, which computes the moments too

All sides use moments made beforehand, like those in sampling: an untrained network's are 0. Absolute times are stored
for GPUs only.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

import gms_fast
from bench.records.record import environment, save
from bench.speed import whole
from bench.speed.baselines import released_step
from bench.speed.cases import STEP, Case, Sets, noise_moments
from bench.speed.machine import Gpu, Machine
from bench.speed.timing import latency, spread
from gms_fast import ops
from gms_fast.models import MomentUNet
from gms_fast.ops import reference

NETWORK, RELEASED, LINES, OURS = "the network alone", "released-style fit", "`sample_mixture`", "`gms_step`"
THREADS = 2

Step = Callable[[Tensor, Tensor, Tensor, Tensor], object]


class Batch(NamedTuple):
    """Samples of a network that take a step together."""

    name: str
    network: MomentUNet
    n: int


def lines(x: Tensor, e1: Tensor, e2: Tensor, e3: Tensor) -> Tensor:
    """Compute the released moments in eager torch, then fit and draw in one op."""
    numbers = (STEP.alpha_t, STEP.sigma_t, STEP.A, STEP.B, STEP.c)
    mean, base, excess, third, _ = reference.step_moments(x, e1, e2, e3, numbers, moments="released")
    return ops.sample_mixture(mean, base + excess, third, STEP.c, component="sample")


def whole_step(x: Tensor, e1: Tensor, e2: Tensor, e3: Tensor) -> Tensor:
    """Compute x_s from the noise moments in one op."""
    return ops.gms_step(x, e1, e2, e3, STEP, moments="released")


STEPS: dict[str, Step] = {
    NETWORK: lambda *_: None,
    RELEASED: lambda *moments: released_step(*moments, STEP),
    LINES: lines,
    OURS: whole_step,
}


def batches(machine: Machine, n: int) -> list[Batch]:
    """Return the embedded network, and one of CIFAR-10's size with n samples."""
    cifar = MomentUNet(**machine.network).to(machine.device).eval()
    return [
        Batch("MNIST, embedded", gms_fast.load("mnist").to(machine.device), 64),
        Batch("CIFAR-10's size", cifar, n),
    ]


def rows(machine: Machine, batch: Batch, runs: int) -> dict[str, object]:
    """Return quartiles of the steps' times over the network's.

    Raises RuntimeError if a case fails.
    """
    size = (batch.n, *batch.network.sample_shape)
    sets = Sets(lambda seed: noise_moments(size, machine.device, seed))
    times = latency(machine, [_case(batch.network, name, step, sets) for name, step in STEPS.items()], runs)
    if times.failed:
        raise RuntimeError(f"not measured: {times.failed}")
    alone = times.seconds[NETWORK]
    found = {name: whole.ratio(seconds, alone) for name, seconds in times.seconds.items() if name != NETWORK}
    row: dict[str, object] = {"network": batch.name, "size": list(size), "over_network": found}
    if isinstance(machine, Gpu):
        row["ms"] = {name: 1e3 * spread(seconds)[1] for name, seconds in times.seconds.items()}
    return row


def _case(network: MomentUNet, name: str, step: Step, sets: Sets) -> Case:
    def run(x: Tensor, *moments: Tensor) -> object:
        with torch.no_grad():
            network(x, torch.full((len(x),), 500.0, device=x.device))
        return step(x, *moments)

    return Case(name, run, sets, 20)


def table(result: dict) -> str:
    """Format the medians as a table, in units of the network's time."""
    sides = [name for name in STEPS if name != NETWORK]
    shown = ["| network | batch | " + " | ".join(sides) + " |", "|---" * (2 + len(sides)) + "|"]
    for row in result["rows"]:
        cells = [f"{row['over_network'][side][1]:.2f}" for side in sides]
        shown.append(f"| {row['network']} | {'x'.join(map(str, row['size']))} | {' | '.join(cells)} |")
    return "\n".join(shown)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=9, help="turns of each side")
    parser.add_argument("--batch", type=int, help="samples of CIFAR-10's size (default: 16, on a GPU 128)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    machine = Gpu() if args.device == "cuda" else Machine()
    n = args.batch or (machine.batch if isinstance(machine, Gpu) else 16)
    found = [rows(machine, batch, args.runs) for batch in batches(machine, n)]
    result = {"environment": environment(), "rows": found}
    print(table(result))
    for row in found:
        print(*(f"{row['network']}: {name} {ms:.1f} ms" for name, ms in row.get("ms", {}).items()), sep="\n")
    if args.out:
        save(args.out, result)


if __name__ == "__main__":
    main()
