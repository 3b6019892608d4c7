"""Run fault tests of all kinds for a given time.

    python -m bench.faults.every_kind                             some minutes
    python -m bench.faults.every_kind --minutes 300 --out F.json  hours; the same command again resumes
    python -m bench.faults.every_kind --parts commands --first 57 --count 1   one case again

The parts are damaged files, killed writers, killed commands, killed ranks, killed generation, and random calls of the
ops. Cases are numbered, and each is a function of the seed and its number alone. The exit status is 1 if any failed.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bench.records.record import environment, save

EVERY = 20.0  # seconds between two writes of the record
SHOWN = 20  # failures that the record keeps
Part = tuple[Iterator[object], Callable[[Any], str | None]]


def _files(seed: int, first: int) -> Part:
    from bench.faults import damage

    return damage.cases(seed, first), damage.check


def _writers(seed: int, first: int) -> Part:
    from bench.faults import kills

    return iter(list(kills.WRITERS)[first:]), kills.check_writer


def _commands(seed: int, first: int) -> Part:
    from bench.faults import kills

    return kills.cases(seed, first), kills.check


def _ops(seed: int, first: int) -> Part:
    from bench.faults import values

    return values.cases(seed, first), values.Case.check


def _ranks(seed: int, first: int) -> Part:
    from bench.faults import rank_kills

    return rank_kills.cases(seed, first), rank_kills.check


def _generation(seed: int, first: int) -> Part:
    from bench.faults import generation_kills

    return generation_kills.cases(seed, first), generation_kills.check


PARTS = {
    "files": _files,
    "writers": _writers,
    "commands": _commands,
    "ranks": _ranks,
    "generation": _generation,
    "ops": _ops,
}


def run(name: str, record: dict[str, Any], seconds: float, count: int | None, keep: Callable[[], None]) -> None:
    """Run cases of a part from the record's next one on, and record how they end."""
    cases, check = PARTS[name](record["seed"], record["next"])
    written = start = time.monotonic()
    try:
        for case in tqdm(_first(cases, count), desc=name, disable=not sys.stderr.isatty(), unit="case"):
            fault = check(case)
            record["next"] += 1
            record["failed"] += fault is not None
            if fault is not None:
                print(f"{name} {record['next'] - 1}: {fault}", flush=True)
                record["faults"] = [*record["faults"], fault][:SHOWN]
            now = time.monotonic()
            if now - written > EVERY:
                written = now
                keep()
            if now - start > seconds:
                break
    finally:
        record["seconds"] = round(record["seconds"] + time.monotonic() - start)
        keep()


def _first(cases: Iterable[object], count: int | None) -> Iterator[object]:
    for done, case in enumerate(cases):
        if done == count:
            return
        yield case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--minutes", type=float, default=4.0, help="total time of all parts (default: 4)")
    parser.add_argument("--count", type=int, help="most cases of each part")
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases")
    parser.add_argument("--out", type=Path, help="JSON record to write, and to resume from")
    args = parser.parse_args()
    if len(args.parts) > 1:  # a part that crashes or fills its memory then spares the others
        statuses = [_alone(args, part) for part in args.parts]
        raise SystemExit(any(statuses))
    (name,) = args.parts
    whole = json.loads(args.out.read_text()) if args.out and args.out.exists() else {}
    fresh = {"seed": args.seed, "next": args.first, "failed": 0, "seconds": 0, "faults": []}
    record = whole.setdefault(name, fresh)
    if record["seed"] != args.seed:
        raise SystemExit(f"--seed must be {record['seed']}, that of {args.out}: got {args.seed}")

    def keep() -> None:
        whole["environment"] = environment()
        if args.out:
            save(args.out, whole)

    run(name, record, 60 * args.minutes, args.count, keep)
    print(f"{name}: {record['next']} cases, {record['failed']} failed, {record['seconds']} s")
    raise SystemExit(record["failed"] > 0)


def _alone(args: argparse.Namespace, part: str) -> int:
    """Run a part in a process of its own; return its exit status."""
    options = {"--seed": args.seed, "--first": args.first, "--count": args.count, "--out": args.out}
    options |= {"--minutes": args.minutes / len(args.parts)}
    given = [str(word) for option in options.items() if option[1] is not None for word in option]
    return subprocess.run([sys.executable, "-m", __spec__.name, "--parts", part, *given], check=False).returncode


if __name__ == "__main__":
    main()
