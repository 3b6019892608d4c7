"""From cases to figures: gate, timing, one row a case, and the command line that the benchmarks share.

A row holds the time as a multiple of `torch.randn_like` (quartiles), the bytes an element must move, and the bandwidth
these make as a share of the copy's in the same turns. Absolute times are kept for GPUs only.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from cases import SHAPES, Case, Inputs, yardsticks
from gate import WrongResultError, check
from timing import environment, in_turn, spread

SLOW_LIMIT = 1 << 24  # elements beyond which the optimisers' fits are not timed


def measured(shape: str, cases: Sequence[Case], slow: Sequence[Case], runs: int) -> dict[str, object]:
    """All rows of `cases`, and of `slow` in fewer turns; both start with the yardsticks, unless empty."""
    like = cases[0].sets[0][0]
    groups = [(cases, runs)]
    if slow and like.numel() > SLOW_LIMIT:
        print(f"left out beyond {SLOW_LIMIT} elements: {', '.join(c.name for c in slow[2:])}")
    elif slow:
        groups.append((slow, max(runs // 10, 2)))
    for case in (case for group, _ in groups for case in group if case.checked):
        check(case)
    rows: dict[str, dict] = {}
    for group, turns in groups:
        seconds = in_turn(group, turns)
        rows = {row["name"]: row for row in _rows(group, seconds, like)} | rows
    order = [case.name for group, _ in groups for case in group]
    shown = {"shape": shape, "size": list(like.shape), "device": like.device.type}
    return {"environment": environment(), **shown, "rows": [rows[name] for name in dict.fromkeys(order)]}


def _rows(cases: Sequence[Case], seconds: dict[str, list[float]], like: torch.Tensor) -> list[dict[str, object]]:
    quartiles = {name: spread(values) for name, values in seconds.items()}
    randn, copy = quartiles["torch.randn_like"][1], quartiles["copy"][1]
    copy_rate = next(c.bytes for c in cases if c.name == "copy") / copy
    rows = []
    for case in cases:
        median = quartiles[case.name][1]
        row = {"name": case.name, "over_randn": [q / randn for q in quartiles[case.name]], "bytes": case.bytes}
        row["of_copy"] = case.bytes / median / copy_rate
        if like.is_cuda:
            row |= {"ms": 1e3 * median, "GB/s": case.bytes * like.numel() / median / 1e9}
        rows.append(row)
    return rows


def ridge(sets: list[Inputs], runs: int) -> float:
    """Operations in the time of copying one byte, at the rate of a float32 matrix product: where the roofs meet."""
    side = 4096 if sets[0][0].is_cuda else 1024
    a = torch.randn(side, side, device=sets[0][0].device)
    copy = yardsticks(sets)[1]
    seconds = in_turn([copy, Case("product", lambda *_: a @ a, sets, 0)], runs)
    product_time, copy_time = (spread(seconds[name])[1] for name in ("product", "copy"))
    return (2 * side**3 / product_time) / (copy.bytes * sets[0][0].numel() / copy_time)


def show(result: dict[str, object]) -> None:
    """The rows and bars on the terminal."""
    gpu = "ms" in result["rows"][0]
    size = "x".join(map(str, result["size"]))
    print(f"{size} on {result['device']}; time in units of torch.randn_like, bandwidth in units of the copy's")
    print(f"{'':52} {'time':>8}  {'quartiles':^17} {'bytes':>5} {'of copy':>8}" + (" " * 7 + "ms     GB/s") * gpu)
    for row in result["rows"]:
        low, median, high = row["over_randn"]
        line = f"{row['name']:52} {median:8.2f}  {low:8.2f} {high:8.2f} {row['bytes']:5} {row['of_copy']:8.1%}"
        print(line + (f" {row['ms']:8.4f} {row['GB/s']:8.0f}" if gpu else ""))


def main(doc: str, measure: Callable[[str, str, int], dict], bars: Callable[[list[dict]], list] | None = None) -> None:
    """Run a benchmark from the command line. Missing a bar is no failure, a wrong kernel is."""
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--shape", default="cifar", choices=SHAPES)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    try:
        result = measure(args.device, args.shape, args.runs)
    except WrongResultError as error:
        raise SystemExit(str(error)) from None
    show(result)
    if bars is not None:
        reached = bars(result["rows"])
        print(*reached, sep="\n")
        result["bars"] = [bar.as_json() for bar in reached]
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
