"""Search the settings of GMS on the learned networks.

    python -m bench.experiments.settings [--out FOLDER]

First it searches the level of a jump by grid, and the covariance without a jump. From the best of these it changes one
setting after the other: covariance behind the jump, fit and component, bound of the last step. Each time the setting
with the least feature Frechet distance over `N` samples of range `RANGE` is kept. The quality matrix (group `best`)
judges on other ranges. All trials and the result go to bench/results/settings.json. After an interrupt, the same
command resumes.
"""

import argparse
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from bench.records.checkout import RESULTS
from bench.records.record import environment, save
from gms_fast.quality import matrix
from gms_fast.quality.cells import Cell

N, RANGE = 400, 10  # samples 4000 to 4399; the matrix uses those up to 3000
MODELS, CALLS = ("digits", "mnist"), (5, 10)
LEVELS = (1.5, 2, 3, 4, 5)  # sigma/alpha where a jump ends
GRIDS = ("angle", "uniform", "1.2", "1.5")
FITS = (
    {},
    {"fit": "exact"},
    {"fit": "gaussian"},
    {"component": "sample"},
    {"fit": "exact", "component": "sample"},
    {"weight": "0.2"},
)
BOUNDS = (2, 0, 1, 5, 10, None)  # grey levels
SWITCHES = (0.8, 1.2, 1.5, 2, 3)
SHOWN = ("solver", "grid", "calls", "frechet", "precision", "recall", "energy")
Measured = Callable[[list[Cell]], list[dict[str, Any]]]


class Choice(NamedTuple):
    """Settings of GMS.

    Args:
        until: Level sigma/alpha where a jump ends and the network takes over; None: no jump.
        grid: Time grid.
        options: Options of the solver.
    """

    until: float | None
    grid: str
    options: tuple[tuple[str, str], ...] = ()

    def having(self, **options: str) -> "Choice":
        return self._replace(options=tuple(sorted({**dict(self.options), **options}.items())))

    def cell(self, model: str, calls: int) -> Cell:
        """Return the matrix cell: K steps and the call at the last time."""
        given = ",".join(f"{key}={value}" for key, value in self.options).replace("DATA", model)
        text = f"gms:{given}" if given else "gms"
        if self.until is not None:
            text = f"teleport:statistics={model},until={self.until:g} then {text}"
        return Cell(model, text, self.grid, calls - 1, RANGE)


def begun() -> list[Choice]:
    """Return the first choices: jumps by grid, no jump, and the covariance without a jump."""
    found = [Choice(until, grid) for until in LEVELS for grid in GRIDS] + [Choice(None, grid) for grid in GRIDS[:2]]
    return found + [Choice(None, g).having(covariance="DATA", switch=s) for g in GRIDS[:3] for s in ("1.5", "3")]


def search(model: str, calls: int, measured: Measured) -> dict[str, Any]:
    """Return the best settings for a number of calls, and all trials."""
    tried: dict[Choice, dict[str, Any]] = {}

    def best_of(choices: Iterable[Choice]) -> Choice:
        new = [c for c in dict.fromkeys(choices) if c not in tried]
        tried.update(zip(new, measured([c.cell(model, calls) for c in new]), strict=True))
        return min(tried, key=lambda c: float(tried[c]["frechet"]))

    best = best_of(begun())
    if best.until is not None:
        best = best_of(best.having(covariance="DATA", switch=f"{s:g}") for s in SWITCHES if s < best.until)
    best = best_of(best.having(**fit) for fit in FITS)
    best = best_of(best.having(clip_pixel=str(bound)) for bound in BOUNDS)
    rows = [{key: record[key] for key in SHOWN} for record in tried.values()]
    return {"best": best.cell(model, calls).fields, "tried": sorted(rows, key=lambda row: float(row["frechet"]))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/settings"), help="folder of the records (default: %(default)s)"
    )
    args = parser.parse_args()
    now = environment()
    options = {"n": N, "progress": sys.stderr.isatty(), "origin": f"commit {now['commit']}"}
    found: dict[str, Any] = {}
    for model in MODELS:
        for calls in CALLS:
            result = search(model, calls, partial(matrix.run, out=args.out, **options))
            found.setdefault(model, {})[str(calls)] = result
            first = result["tried"][0]
            print(f"{model}, {calls} calls: {first['solver']} on {first['grid']}: {first['frechet']:.2f}", flush=True)
    save(RESULTS / "settings.json", {"environment": now, "n": N, "range": RANGE, "models": found})


if __name__ == "__main__":
    main()
