"""Test every op with random values and layouts.

    python -m bench.faults.values [--fits N] [--calls N] [--out FILE.json]

For each fit and dtype it makes N mixture fits, which must satisfy the bound of `random_fits`, and N elements of random
steps, which must be finite (`random_steps`). It also makes valid and invalid calls of every op (`random_calls`), which
must satisfy the rules of `outcomes`. The exit status is 1 if any fails.

For a longer run, `cases` has no end; each case is a function of its number and the seed alone.
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from bench.faults import outcomes, random_calls, random_fits, random_steps
from bench.faults.random_fits import AT_ZERO, CLOSED, DTYPES, FITS, MOMENTS
from bench.records.record import environment, save

TOGETHER = 4000  # elements of a batch in `fits`
BATCH = 500  # elements of a case: too few for a second thread
KINDS = tuple(itertools.product(FITS, DTYPES))
ERRORS = (*MOMENTS, *(AT_ZERO + moment for moment in MOMENTS))
TURN = 8  # cases of a turn: one batch of fits, one of steps, and six calls


class Case(NamedTuple):
    """A batch of fits or of steps, or a call.

    Args:
        seed: Seed of all cases.
        number: Number of the case.
    """

    seed: int
    number: int

    def check(self) -> str | None:
        """Run the case; return its fault, or None."""
        turn, place = divmod(self.number, TURN)
        seed, (fit, dtype) = _seed(*self), KINDS[turn % len(KINDS)]
        if place == 0:
            fault = random_fits.check(random_fits.problem(seed, fit, dtype, BATCH))[1]
        elif place == 1:
            fault = random_steps.check(seed, fit, dtype, BATCH)
        else:
            return outcomes.check(random_calls.call(seed))
        return fault and f"{('fit_mixture', 'gms_step')[place]}, fit={fit!r}, {dtype}: {fault}"


def cases(seed: int = 0, first: int = 0) -> Iterator[Case]:
    """Yield all cases from number `first` on, without end."""
    return (Case(seed, number) for number in itertools.count(first))


def _seed(seed: int, number: int) -> int:
    return (seed << 32) + number


def fits(count: int, seed: int, failed: dict[str, str]) -> list[dict[str, object]]:
    """Make `count` fits of each fit and dtype; return the largest errors over their bounds."""
    rows = []
    for fit, dtype in KINDS:
        label = f"{fit}, {_name(dtype)}"
        worst = dict.fromkeys(ERRORS, 0.0) if fit in CLOSED else {}
        for first in tqdm(range(0, count, TOGETHER), desc=label, disable=not sys.stderr.isatty()):
            number, size = _seed(seed, first), min(TOGETHER, count - first)
            found, fault = random_fits.check(random_fits.problem(number, fit, dtype, size))
            worst = {name: max(error, found[name]) for name, error in worst.items()}
            fault = fault or random_steps.check(number, fit, dtype, size)
            if fault:
                failed[f"{label}, from {first} on"] = fault
        rows.append({"fit": fit, "dtype": _name(dtype), "count": count} | worst)
    return rows


def _name(dtype: object) -> str:
    return str(dtype).removeprefix("torch.")


def calls(count: int, seed: int, failed: dict[str, str]) -> dict[str, int]:
    """Make calls; return their numbers by op, and the number of wrong ones."""
    made = dict.fromkeys((*random_calls.MAKERS, "wrong"), 0)
    for number in tqdm(range(count), desc="calls", disable=not sys.stderr.isatty()):
        call = random_calls.call(_seed(seed, number))
        made[call.op] += 1
        made["wrong"] += bool(call.wrong)
        if fault := outcomes.check(call):
            failed[f"call {number}"] = fault
    return made


def table(figures: dict) -> str:
    """Format the largest errors as the table of docs/faults.md."""
    head = "fit", "dtype", *(name.replace("var", "variance").replace("third", "third moment") for name in ERRORS)
    shown = [row for row in figures["fits"] if row["fit"] in CLOSED]
    rows = [[row["fit"], row["dtype"], *(f"{row[name]:.3f}" for name in ERRORS)] for row in shown]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=1_000_000, help="fits of each kind of fit and dtype")
    parser.add_argument("--calls", type=int, default=100_000, help="calls of ops")
    parser.add_argument("--seed", type=int, default=0, help="seed of all cases")
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    failed: dict[str, str] = {}
    figures = {
        "environment": environment(),
        "seed": args.seed,
        "fits": fits(args.fits, args.seed, failed),
        "calls": calls(args.calls, args.seed, failed),
        "failed": failed,
    }
    print(table(figures), figures["calls"], *map(": ".join, failed.items()), sep="\n")
    if args.out:
        save(args.out, figures)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
