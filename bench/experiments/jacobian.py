"""Cost and benefit of SN-DDPM without moment heads, by the network's Jacobian.

    python -m bench.experiments.jacobian [--quick] [--out FILE.json]

The cost of a call of `models.JacobianVariance` is measured in plain calls of the same network without heads. The
networks are the embedded models, and a small UNet2DModel if diffusers is installed. Calls take turns in one thread, and
the fastest of each counts, because other processes disturb it least. "derivative" is forward mode, "two backward
passes" the same network behind a layer without forward mode, "difference" distance=0.01.

The benefit is measured at equal cost: SN-DDPM on the networks without heads, beside DDPM and DDIM (GMS(fit="gaussian")
gives the same samples as SN-DDPM, bit for bit). A step costs as much as a call on the embedded models at the largest
batch, on average, rounded up to a tenth. The last call, which removes the remaining noise, needs one moment and counts
as one. So N calls are (N - 1)/cost steps, rounded down. Exact models are called as if they were networks. The grid is
"angle". Cells are means over three ranges of samples with their standard deviation.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gms_fast
from bench.records.record import environment, save
from gms_fast.models import JacobianVariance, wrap
from gms_fast.quality import cells, subjects
from gms_fast.quality.cells import Cell
from gms_fast.storage import atomic

DISTANCE = 0.01
WAYS = {"derivative": {}, "difference": {"distance": DISTANCE}}
N = {"mixture-1d": 20_000, "eight": 4000, "exact-digits": 1000, "digits": 500}
CALLS = {
    "mixture-1d": (10, 20, 40, 80),
    "eight": (10, 20, 40, 80),
    "exact-digits": (10, 20, 40),
    "digits": (10, 20, 40),
}
MEASURES = ("wasserstein", "frechet", "energy", "sliced")
NOISY = ("exact-digits",)  # data with noise of its own, which a bounded last step would remove


class Headless:
    """E[eps|x_t] of a model alone, as from a network without heads."""

    prediction = "noise"

    def __init__(self, model: Any, clip: tuple[float, float] | None) -> None:
        self.model, self.schedule, self.sample_shape, self.clip = model, model.schedule, model.sample_shape, clip

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if isinstance(self.model, torch.nn.Module):
            return self.model.first_moment(x, t)
        return self.model.noise_moment(x, t, 1).to(x.dtype)


class _OneWay(torch.autograd.Function):
    """Identity function without forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class OneWay(Headless):
    """The same network behind a layer without forward mode."""

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return super().__call__(_OneWay.apply(x), t)


def host_network() -> Any:
    """Make a small UNet2DModel of diffusers, wrapped as a model."""
    from diffusers import UNet2DModel

    torch.manual_seed(0)
    network = UNet2DModel(
        sample_size=32, in_channels=3, out_channels=3, layers_per_block=1, block_out_channels=(32, 64),
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        norm_num_groups=8,
    )  # fmt: skip
    return wrap(network.eval().requires_grad_(False), schedule="linear", prediction="noise")


def costs(networks: dict[str, tuple[Any, Any]], batches: Sequence[int], runs: int) -> list[dict[str, Any]]:
    """Return rows of a call's time over that of a plain call, each the fastest of `runs`."""
    found = []
    for name, (plain, one_way) in networks.items():
        kinds = {(way, p): JacobianVariance(plain, p, **given) for way, given in WAYS.items() for p in (1, 2)}
        if one_way is not None:
            kinds |= {("two backward passes", p): JacobianVariance(one_way, p) for p in (1, 2)}
        for batch in batches:
            x = torch.randn(batch, *plain.sample_shape, generator=torch.Generator().manual_seed(0))
            t = torch.full((batch,), 400.0)
            times = timed({("plain", 0): plain, **kinds}, x, t, runs)
            unit = times.pop(("plain", 0))
            found += [
                {"network": name, "batch": batch, "way": way, "probes": p, "cost": round(seconds / unit, 2)}
                for (way, p), seconds in times.items()
            ]
            print(*found[-len(times) :], sep="\n", flush=True)
    return found


@torch.no_grad()
def timed(calls: dict[Any, Callable[[Tensor, Tensor], Any]], x: Tensor, t: Tensor, runs: int) -> dict[Any, float]:
    """Return the least seconds of each call; calls take turns after a round to warm up."""
    seconds: dict[Any, list[float]] = {name: [] for name in calls}
    for i in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(x, t)
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: min(each) for name, each in seconds.items()}


class Row(NamedTuple):
    """A solver on a network without heads.

    Args:
        solver: Text of the solver.
        way: Key of `WAYS` for the variance; None: no variance.
        probes: Number of probes of the variance.
    """

    solver: str
    way: str | None = None
    probes: int = 0

    @property
    def label(self) -> str:
        variance = "" if self.way is None else f", {self.way}, {self.probes} probe{'s'[: self.probes > 1]}"
        return f"{self.solver}{variance}"


def rows(model: str) -> list[Row]:
    free = ":clip_pixel=None" if model in NOISY else ""
    return [Row(f"ddpm{free}"), Row("ddim"), *(Row(f"sn-ddpm{free}", way, p) for way in WAYS for p in (1, 2))]


def scored(model: str, row: Row, steps: int, n: int, ranges: int) -> dict[str, list[float]]:
    """Return the measures of a row, one value for each range of samples."""
    subject = subjects.build(model)
    bare: Any = Headless(subject.model, subject.clip)
    if row.way is not None:
        bare = JacobianVariance(bare, row.probes, **WAYS[row.way])
    subject = replace(subject, model=bare)
    found: dict[str, list[float]] = {}
    for index in range(ranges):
        x, _ = cells.samples(Cell(model, row.solver, "angle", steps, index), subject, n)
        for name, value in cells.measure(x, subject).items():
            if name in MEASURES:
                found.setdefault(name, []).append(round(value, 6))
    return found


def compared(step_cost: dict[tuple[str, int], float], n: dict[str, int], ranges: int) -> list[dict[str, Any]]:
    """Return records of all rows by network calls, with the steps that fit into the calls."""
    found = []
    for model in n:
        for row in rows(model):
            for calls in CALLS[model]:
                cost = 1 if row.way is None else step_cost[row.way, row.probes]
                steps = int((calls - 1) / cost)
                if steps:
                    measures = scored(model, row, steps, n[model], ranges)
                    found.append({"model": model, "row": row.label, "calls": calls, "steps": steps, **measures})
                    print(found[-1], flush=True)
    return found


def step_costs(found: list[dict[str, Any]]) -> dict[tuple[str, int], float]:
    """Return the plain calls that a step counts as.

    A difference counts as 1 + probes, other ways as their measured cost, rounded up.
    """
    largest = max(row["batch"] for row in found)
    own = [row for row in found if row["batch"] == largest]
    counted: dict[tuple[str, int], float] = {("difference", p): 1 + p for p in (1, 2)}
    for p in (1, 2):
        of = [row["cost"] for row in own if row["way"] == "derivative" and row["probes"] == p]
        counted["derivative", p] = math.ceil(10 * statistics.mean(of)) / 10
    return counted


def cost_table(found: list[dict[str, Any]]) -> str:
    """Format the costs in plain calls as Markdown."""
    columns = list(dict.fromkeys((row["network"], row["batch"]) for row in found))
    by = {(row["way"], row["probes"], row["network"], row["batch"]): row["cost"] for row in found}
    head = " | ".join(f"{network}, batch {batch}" for network, batch in columns)
    lines = [f"| way, probes | {head} |", "|---" * (len(columns) + 1) + "|"]
    for way, p in dict.fromkeys((row["way"], row["probes"]) for row in found):
        shown = " | ".join(f"{by[(way, p, *c)]:.1f}" if (way, p, *c) in by else "" for c in columns)
        lines.append(f"| {way}, {p} | {shown} |")
    return "\n".join(lines)


def table(records: list[dict[str, Any]], measure: str) -> str:
    """Format a measure of one model as Markdown: mean ± standard deviation, and the steps."""
    calls = sorted({r["calls"] for r in records})
    by = {(r["row"], r["calls"]): r for r in records}
    lines = ["| solver | " + " | ".join(f"{c} calls" for c in calls) + " |", "|---" * (len(calls) + 1) + "|"]
    for label in dict.fromkeys(r["row"] for r in records):
        shown = [_figure(by.get((label, c)), measure) for c in calls]
        lines.append(f"| `{label.partition(',')[0]}`{label[len(label.partition(',')[0]) :]} | {' | '.join(shown)} |")
    return "\n".join(lines)


def _figure(record: dict[str, Any] | None, measure: str) -> str:
    if record is None:
        return ""
    values = record[measure]
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {spread:.4f} (K={record['steps']})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples, to test the command")
    parser.add_argument("--out", type=Path, help="write the figures as JSON, and the tables next to it as Markdown")
    args = parser.parse_args()
    torch.set_num_threads(1)  # with more threads the ratios depend on other processes
    where = environment()
    loaded = {name: gms_fast.load(name).requires_grad_(False) for name in ("digits", "mnist")}
    networks = {name: tuple(kind(m, m.clip) for kind in (Headless, OneWay)) for name, m in loaded.items()}
    runs = 1 if args.quick else 5
    measured = costs(networks, (4,) if args.quick else (16, 100), runs)
    counted = step_costs(measured)
    if find_spec("diffusers"):
        measured += costs({"UNet2DModel": (host_network(), None)}, (4,), runs)
    n, ranges = (dict.fromkeys(N, 200), 1) if args.quick else (N, 3)
    records = compared(counted, n, ranges)
    text = report(where, n, ranges, measured, records)
    print(text)
    if args.out:
        per_step = {f"{way}, {p}": cost for (way, p), cost in counted.items()}
        result = {"environment": where, "samples": n, "ranges": ranges, "costs": measured, "a step counts as": per_step}
        save(args.out, {**result, "records": records})
        atomic.write_text(args.out.with_suffix(".md"), text)


def report(where: dict[str, Any], n: dict[str, int], ranges: int, measured: list, records: list) -> str:
    """Format all tables, with the counts and the commit that they come from."""
    counts = ", ".join(f"{count} {name}" for name, count in n.items())
    about = f"{ranges} ranges of {counts}, commit {where['commit']}, {where['date']}, torch {where['torch']}"
    parts = [f"<!-- {about} -->", f"**plain calls that a call takes**\n\n{cost_table(measured)}"]
    for model in n:
        own = [r for r in records if r["model"] == model]
        parts += [f"**{model}, {measure}**\n\n{table(own, measure)}" for measure in MEASURES if measure in own[0]]
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
