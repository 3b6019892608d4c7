"""Time of the sampling loop outside the network, ours over diffusers'.

    python -m bench.speed.loop [--out FILE]

Both sides run in this process and take turns, so a drift of the machine affects both. A figure is the median of the
turns' ratios, with quartiles. On a GPU a loop is timed to the end of its work there. The network costs nothing: it
returns a tensor made beforehand. Each side calls it 20 times (Heun 39). The times include:

- ours: all of `gms_fast.sample(network, 19, solver=.., x_T=x)`: its checks, the look-up of its plan (made once and
  kept between calls), its copy of x_T
- theirs: `scheduler.set_timesteps(20)`, which their pipelines call for each batch, and the loop of `scheduler.step`

They exclude making a scheduler and making the first plan. Before the timing each pair must agree
(`bench.speed.pairs`).

Also measured: a step of DDIM over a copy of the bytes that it must move, the host's time of one call, the loop of the
embedded model over its network calls alone, images per second against diffusers' loop with the same network, and peak
memory over what a solver needs (`bench.speed.memory`). Absolute times other than the host's are stored for GPUs only.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

import gms_fast
from bench.records.record import environment, save
from bench.speed import memory, whole
from bench.speed.bars import Bar
from bench.speed.cases import Case, Sets, normals
from bench.speed.gate import WrongResultError
from bench.speed.machine import Gpu, Machine
from bench.speed.pairs import CALLS, CLIP, Network, Pair, check, of_diffusers, of_k_diffusion
from bench.speed.timing import dropping, in_turn, latency
from gms_fast.ops import Draws, fused
from gms_fast.ops.types import Linear, Reading
from gms_fast.schedules import VPLinear

BYTES = 12 * CALLS  # bytes of a loop per element: x, the network's output and x_s at each call
THREADS = 2
LARGE = 1 << 20  # elements
_STEP = Linear(Reading(1.25, -0.75, *CLIP), (0.6, 0.4, 0.0), terms=0)


class Settings(NamedTuple):
    """Sizes of a measurement, with the bar and aim of each state."""

    states: dict[tuple[int, ...], tuple[float, float]]
    copied: tuple[int, ...]
    images: int
    cifar_images: int


FULL = Settings(
    {
        (1, 3, 32, 32): (0.5, 0.25),
        (16, 3, 32, 32): (0.4, 0.2),
        (128, 3, 32, 32): (0.33, 0.2),
        (16, 3, 256, 256): (0.33, 0.2),
    },
    (128, 3, 32, 32),
    64,
    4,
)
QUICK = Settings({(1, 3, 8, 8): (0.5, 0.25), (2, 3, 8, 8): (0.4, 0.2)}, (2, 3, 8, 8), 2, 1)


def size(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def pairs() -> list[Pair]:
    """Return diffusers' pairs, and k-diffusion's if it is installed."""
    found = of_diffusers()
    try:
        return [*found, *of_k_diffusion()]
    except ImportError as error:
        print(f"left out: {error}")
        return found


def ratios(machine: Machine, rivals: Sequence[Pair], shape: tuple[int, ...], runs: int) -> list[dict[str, object]]:
    """Return a row for each pair at a state shape: quartiles of our time over theirs.

    States beyond LARGE elements get fewer turns.
    """
    sets = Sets(lambda seed: normals(2)(shape, machine.device, seed))
    turns = min(runs, max(runs * LARGE // torch.Size(shape).numel(), 3))
    times = latency(machine, [case for pair in rivals for case in _cases(pair, sets)], turns)
    rows = []
    for pair in rivals:
        names = [case.name for case in _cases(pair, sets)]
        row: dict[str, object] = {"state": size(shape), "name": pair.name}
        if why := next((times.failed[name] for name in names if name in times.failed), ""):
            rows.append(row | {"failed": why})
            continue
        found = [times.seconds[name] for name in names]
        row["ratio"] = whole.ratio(*found)
        if isinstance(machine, Gpu):
            row["ms a call"] = [1e3 * statistics.median(seconds) / CALLS for seconds in found]
        rows.append(row)
    return rows


def _cases(pair: Pair, sets: Sets) -> list[Case]:
    """Return our loop and theirs as cases."""
    loops = (("ours", pair.ours), ("theirs", pair.theirs))
    return [
        Case(f"{pair.name}: {side}", lambda z, y, loop=loop: loop(pair.start(z), pair.network(y)), sets, BYTES)
        for side, loop in loops
    ]


def over_copy(machine: Machine, shape: tuple[int, ...], runs: int) -> dict[str, list[float]]:
    """Return quartiles of DDIM's time over operations that move as many bytes, by name.

    Each call must move x, y -> x_s. "copy" divides by copies of 1.5 tensors, "add" by sums of two tensors. "op" is the
    op of a step alone over such a copy, without the host's work and the costs that arise once a loop.
    """
    elements = torch.Size(shape).numel()
    sets = Sets(lambda seed: normals(2)(shape, machine.device, seed), machine.rotation(BYTES * elements))
    sums = sets.map(lambda inputs: (*inputs, torch.empty_like(inputs[0])))
    sizes = 3 * elements // 2
    copies = sets.map(lambda t: (torch.cat([s.flatten() for s in t])[:sizes].clone(), t[0].new_empty(sizes)))
    cases = [
        Case("ours", lambda x, y: _ddim(y)(x), sets, BYTES),
        Case("op", lambda x, y: [_op(x, y) for _ in range(CALLS)], sets, BYTES),
        Case("copy", lambda a, out: [out.copy_(a) for _ in range(CALLS)], copies, BYTES),
        Case("add", lambda x, y, out: [torch.add(x, y, out=out) for _ in range(CALLS)], sums, BYTES),
    ]
    times = in_turn(machine, cases, runs)
    if times.failed:
        raise RuntimeError(f"not measured: {times.failed}")
    ratios = {name: whole.ratio(times.seconds["ours"], times.seconds[name]) for name in ("copy", "add")}
    return {**ratios, "op": whole.ratio(times.seconds["op"], times.seconds["copy"])}


def _op(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Run the op of one DDIM step."""
    return fused.linear_step(x, y, (), _STEP, Draws())[0]


def _ddim(output: torch.Tensor, steps: int = CALLS - 1) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return DDIM from a given state, with a network that costs nothing."""
    network = Network(output, VPLinear(), "noise", CLIP)
    return lambda x: gms_fast.sample(network, steps, solver="ddim", x_T=x)


def host_ms(machine: Machine, calls: int) -> float:
    """Return the host's median time in ms for 10 steps of DDIM at batch 1, with a kept plan."""
    x, y = normals(2)((1, 3, 32, 32), machine.device, 0)
    draw = _ddim(y, 10)
    draw(x)
    found = []
    for _ in range(calls):
        start = time.perf_counter()
        draw(x)
        found.append(time.perf_counter() - start)
    return 1e3 * statistics.median(found)


def right(rivals: Sequence[Pair], shape: tuple[int, ...], device: str, failed: dict[str, str]) -> list[Pair]:
    """Return the pairs whose sides agree; record the others in `failed`."""
    z = normals(1)(shape, device, 0)[0]
    for pair in rivals:
        with dropping(pair.name, failed):
            check(pair, z)
    return [pair for pair in rivals if pair.name not in failed]


def measure(machine: Machine, settings: Settings, runs: int, *, with_cifar: bool) -> dict[str, object]:
    """Measure all figures; pairs that disagree are not timed."""
    failed: dict[str, str] = {}
    rivals = right(pairs(), settings.copied, machine.device, failed)
    result: dict[str, object] = {"environment": environment(), "calls": CALLS}
    result["rows"] = []
    for shape in settings.states:
        rows = ratios(machine, rivals, shape, runs)
        show_ratios(rows)  # print now: a state may take minutes
        result["rows"] += rows
    result["over"] = over_copy(machine, settings.copied, runs)
    result["host ms"] = host_ms(machine, 20 * runs)
    result["network"] = whole.embedded(machine, settings.images, runs)
    if with_cifar:
        result["network"]["cifar"] = whole.cifar(machine, settings.cifar_images, max(runs // 5, 2))
    result["memory"] = memory.rows(machine, settings.copied)
    result["bars"] = [bar.as_json() for bar in bars(result, settings)]
    return result | ({"failed": failed} if failed else {})


def bars(result: dict, settings: Settings) -> list[Bar]:
    """Return the bars of the figures that were measured."""
    limits = {size(shape): limit for shape, limit in settings.states.items()}

    def at_most(name: str, value: float, bar: float, aim: float) -> Bar:
        return Bar(name, value, bar, aim, at_most=True)

    return [
        *(
            at_most(f"{row['name']}, {row['state']}: ours / theirs", row["ratio"][1], *limits[row["state"]])
            for row in result["rows"]
            if "ratio" in row
        ),
        at_most(f"a step of DDIM, {size(settings.copied)} / a copy", result["over"]["copy"][1], 1.5, 1.1),
        at_most(f"the op of such a step, {size(settings.copied)} / a copy", result["over"]["op"][1], 1.5, 1.1),
        at_most("ms of 10 steps of DDIM, batch 1", result["host ms"], 0.4, 0.2),
        at_most(f"{whole.LOOP} / {whole.ALONE}", result["network"]["loop over network"][1], 1.02, 1.005),
        *(at_most(f"{row['name']}: peak memory / needed", row["ours"]["peak"], 1.1, 1.0) for row in result["memory"]),
    ]


def show_ratios(rows: list[dict]) -> None:
    """Print the rows of a state."""
    print(f"{'':32} {'state':>14} {'ours/theirs':>11}  quartiles")
    for row in rows:
        low, median, high = row.get("ratio", [float("nan")] * 3)
        more = f"  ms a call: {row['ms a call']}" if "ms a call" in row else ""
        print(f"{row['name']:32} {row['state']:>14} {median:11.3f}  {low:.3f} {high:.3f}{more}", flush=True)


def show(result: dict) -> None:
    """Print the other figures."""
    for name, (low, median, high) in (result["over"] | result["network"]).items():
        print(f"{name:32} {'':14} {median:11.3f}  {low:.3f} {high:.3f}")
    for row in result["memory"]:
        sides = (f"{side}: {_line(row[side])}" for side in ("ours", "theirs") if side in row)
        print(f"{row['name']:32} {row['needed']} tensors needed; {'; '.join(sides)}")
    for name, why in result.get("failed", {}).items():
        print(f"left out: {name}: {why}")


def _line(costs: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.2f}" for name, value in costs.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=20, help="turns of each side, fewer for large states")
    parser.add_argument("--quick", action="store_true", help="small states, to test the command")
    parser.add_argument("--cifar", action="store_true", help="with a U-Net of CIFAR-10's size: minutes on a CPU")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    machine = Gpu() if args.device == "cuda" else Machine()
    settings = QUICK if args.quick else FULL
    result = measure(machine, settings, args.runs, with_cifar=args.cifar)
    show(result)
    print(*bars(result, settings), sep="\n")
    if args.out:
        save(args.out, result)
    if wrong := [why for why in result.get("failed", {}).values() if why.startswith(WrongResultError.__name__)]:
        raise SystemExit("\n".join(wrong))


if __name__ == "__main__":
    main()
