"""Tables of docs/generation.md and docs/scale.md.

They show time, files and requests by number of GPUs, and simulated claims.
"""

from itertools import product
from typing import Any

from gms_fast.generation.loop import cut_of
from gms_fast.storage.claims import BEAT

CALLS, BATCH, COSTLIER = 11, 256, (1, 100)  # of a sample by ten steps; of a rank; times the measured network
GPUS, PICTURES = (1, 8, 64), (50_000, 1_000_000, 100_000_000)
NETWORK = "CIFAR-10's size"  # of bench/results/released_step_h200.json
SIDES = {1: 32, 100: 256}  # of images in colour
COLUMNS = {  # of `bench.experiments.claims`, and their heads
    "hours": "hours",
    "of ideal": "relative time",
    "drawn twice": "drawn twice",
    "deaths": "deaths",
    "create / s": "creates / s",
    "look / s": "looks / s",
    "list / s": "listings / s",
    "beat / s": "touches / s",
    "most / s": "peak / s",
}
CASES = {  # of `bench.experiments.claims`, as the page names them
    "8 processes, nothing goes wrong": "8 processes, no failures",
    "64, one in ten is 4 times as slow": "64 processes; one in ten takes 4 times as long",
    "64, each dies every 2 hours": "64 processes; each dies every 2 hours on average",
    "512, nothing goes wrong": "512 processes, no failures",
    "512, lists are 30 s old": "512 processes; listings are 30 s old",
    "512 that know nothing of each other": "512 processes without ranks",
    "512, one in fifty is 4 times as slow, each dies every 6 hours": (
        "512 processes; one in fifty takes 4 times as long, each dies every 6 hours"
    ),
    "512, each dies every hour": "512 processes; each dies every hour",
    "512 for 256 parts": "512 processes for 256 shards; each dies every 6 hours",
}
MEASURED = {"measured": "with `--features`", "not measured": "without `--features`"}  # of `bench.speed.generation`


def rate(measured: dict[str, Any]) -> float:
    """Return the number of network evaluations in a second, each of one sample."""
    row = next(row for row in measured["rows"] if row["network"] == NETWORK)
    return row["size"][0] / row["ms"]["the network alone"] * 1000


def scale_table(measured: dict[str, Any]) -> str:
    """Return a row for each cost of the network, number of images and number of GPUs."""
    header = ("network", "images", "GPUs", "time", "shards", "disk space", "claim requests", "touches")
    lines = [f"| {' | '.join(header)} |", "|---" * len(header) + "|"]
    calls = rate(measured)
    for costlier, n, gpus in product(COSTLIER, PICTURES, GPUS):
        cut = cut_of(n, BATCH, None)
        shards, of_one = len(cut), cut.size * CALLS * costlier / calls
        whole = of_one * -(-shards // gpus)  # the last shard may be smaller
        seconds = min(whole, n * CALLS * costlier / calls)
        size = n * 3 * SIDES[costlier] ** 2
        side = f"{SIDES[costlier]}x{SIDES[costlier]} pixels"
        name = f"measured network, {side}" if costlier == 1 else f"{costlier} times as expensive, {side}"
        requests = _rate(4 * shards / seconds), _rate(gpus / BEAT)
        cells = (name, f"{n:,}", gpus, _time(seconds), f"{shards:,}", _bytes(size), *requests)
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def claims_table(played: dict[str, Any]) -> str:
    """Return a row for each case of `bench.experiments.claims`."""
    lines = [f"| case | shards | {' | '.join(COLUMNS.values())} |", "|---" * (2 + len(COLUMNS)) + "|"]
    for name, row in played["rows"].items():
        cells = [_cell(column, row[column]) for column in COLUMNS]
        lines.append(f"| {CASES.get(name, name)} | {played['cases'][name]['parts']:,} | {' | '.join(cells)} |")
    commit = played["environment"]["commit"]
    return "\n".join(
        [*lines, "", f"Commit {commit}. Medians of {played['runs']} simulations; a shard takes 60 s on average."]
    )


def generation_table(measured: dict[str, Any]) -> str:
    """Return the tables of `bench.speed.generation`: share of the network, and memory."""
    lines = ["| model (one process, two cores) | share of the time in the network |", "|---|---|"]
    for name, (least, middle, most) in measured["share"].items():
        model, kind = name.split(", ")
        lines.append(f"| {model}, {MEASURED[kind]} | {middle:.1%} ({least:.1%} to {most:.1%}) |")
    lines += [
        "",
        "| images (model digits, with `--features`) | torchrun itself, MiB | each rank, MiB |",
        "|---|---|---|",
    ]
    for row in measured["memory"]:
        lines.append(f"| {row['n']:,} | {row['starter']} | {', '.join(map(str, row['ranks']))} |")
    return "\n".join([*lines, "", f"Commit {measured['environment']['commit']}."])


def _cell(column: str, value: float) -> str:
    if column == "drawn twice":
        return f"{value:.2%}"
    if column in ("deaths", "most / s"):
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _time(seconds: float) -> str:
    for unit, length in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds:.3g} s"


def _bytes(size: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9)):
        if size >= length:
            return f"{size / length:.3g} {unit}"
    return f"{size / 1e6:.3g} MB"


def _rate(of: float) -> str:
    return f"{of:.2g} / s" if of >= 0.1 else f"{60 * of:.2g} / min"
