"""Shared part of the op benchmarks: check, timing, rows and command line.

A row holds quartiles of the time as a multiple of `torch.randn_like`, and the bytes that an element must move. It also
holds the bandwidth that these make, as a share of a copy's in the same turns. Absolute times are stored for GPUs only.
A case that fails has no row; the result names it.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bench.records.record import environment, save
from bench.speed.cases import SHAPES, Case, Sets, yardsticks
from bench.speed.gate import WrongResultError, check
from bench.speed.machine import Gpu, Machine
from bench.speed.timing import Times, dropping, in_turn, spread

SLOW_LIMIT = 1 << 24  # most elements for which slow cases are timed


def measured(machine: Machine, shape: str, cases: Sequence[Case], slow: Sequence[Case], runs: int) -> dict[str, object]:
    """Check and time the cases; return all rows.

    Args:
        machine: Where to run.
        shape: Key of `SHAPES`, for the record.
        cases: Cases to time, the yardsticks first.
        slow: Cases to time in fewer turns, the yardsticks first; may be empty.
        runs: Turns of `cases`.
    """
    like = cases[0].sets[0][0]
    groups = [(cases, runs)]
    if slow and like.numel() > SLOW_LIMIT:
        print(f"left out beyond {SLOW_LIMIT} elements: {', '.join(c.name for c in slow[2:])}")
    elif slow:
        groups.append((slow, max(runs // 10, 2)))
    failed: dict[str, str] = {}
    for case in (case for group, _ in groups for case in group if case.checked):
        with dropping(case.name, failed):
            check(case)
    rows: dict[str, dict] = {}
    for group, turns in groups:
        right = [case for case in group if case.name not in failed]
        times = in_turn(machine, right, turns)
        failed |= times.failed
        rows = {row["name"]: row for row in _rows(machine, right, times)} | rows
    order = [case.name for group, _ in groups for case in group if case.name in rows]
    shown = {"shape": shape, "size": list(like.shape), "device": like.device.type}
    result = {"environment": environment(), **shown, "rows": [rows[name] for name in dict.fromkeys(order)]}
    return result | ({"failed": failed} if failed else {})


def _rows(machine: Machine, cases: Sequence[Case], times: Times) -> list[dict[str, object]]:
    if why := times.failed.get("torch.randn_like") or times.failed.get("copy"):
        raise RuntimeError(f"a yardstick failed: {why}")
    quartiles = {name: spread(values) for name, values in times.seconds.items()}
    randn, copy = quartiles["torch.randn_like"][1], quartiles["copy"][1]
    copy_rate = next(c.bytes for c in cases if c.name == "copy") / copy
    rows = []
    for case in (case for case in cases if case.name in quartiles):
        median = quartiles[case.name][1]
        row = {"name": case.name, "over_randn": [q / randn for q in quartiles[case.name]], "bytes": case.bytes}
        row["of_copy"] = case.bytes / median / copy_rate
        if isinstance(machine, Gpu):
            row |= {"ms": 1e3 * median, "GB/s": case.size / median / 1e9}
        if case.name in times.host_bound:
            row["bound by"] = "host"
        rows.append(row)
    return rows


def ridge(machine: Machine, sets: Sets, runs: int) -> float | None:
    """Return the operations of a float32 matrix product in the time of copying one byte.

    This is where the two roofs of a roofline plot meet.
    """
    a = torch.randn(machine.side, machine.side, device=machine.device)
    copy = yardsticks(sets)[1]
    times = in_turn(machine, [copy, Case("product", lambda *_: a @ a, sets, 12)], runs)
    if times.failed:
        return None
    product_time, copy_time = (spread(times.seconds[name])[1] for name in ("product", "copy"))
    return (2 * machine.side**3 / product_time) / (copy.size / copy_time)


def show(result: dict[str, object]) -> None:
    """Print the rows and failures."""
    gpu = "ms" in result["rows"][0]
    size = "x".join(map(str, result["size"]))
    print(f"{size} on {result['device']}; time in units of torch.randn_like, bandwidth in units of the copy's")
    print(f"{'':52} {'time':>8}  {'quartiles':^17} {'bytes':>5} {'of copy':>8}" + (" " * 7 + "ms     GB/s") * gpu)
    for row in result["rows"]:
        low, median, high = row["over_randn"]
        line = f"{row['name']:52} {median:8.2f}  {low:8.2f} {high:8.2f} {row['bytes']:5} {row['of_copy']:8.1%}"
        gpu_times = f" {row['ms']:8.4f} {row['GB/s']:8.0f}" if gpu else ""
        print(line + gpu_times + (f"  bound by the {row['bound by']}" if "bound by" in row else ""))
    for name, why in result.get("failed", {}).items():
        print(f"left out: {name}: {why.strip().splitlines()[0]}")


def main(
    doc: str, measure: Callable[[Machine, str, int], dict], bars: Callable[[list[dict]], list] | None = None
) -> None:
    """Run a benchmark from the command line; fail for a wrong kernel, but not for a missed bar."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to run (default: %(default)s)")
    parser.add_argument("--shape", default="cifar", choices=SHAPES, help="shape of the inputs (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=30, help="turns of each case (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    result = measure(Gpu() if args.device == "cuda" else Machine(), args.shape, args.runs)
    show(result)
    if wrong := [why for why in result.get("failed", {}).values() if why.startswith(WrongResultError.__name__)]:
        raise SystemExit("\n".join(wrong))
    if bars is not None:
        reached = bars(result["rows"])
        print(*reached, sep="\n")
        result["bars"] = [bar.as_json() for bar in reached]
    if args.out:
        save(args.out, result)
