"""Search the few numbers of GMS for 5 network calls.

    python -m bench.experiments.search_gms [--evaluations N]

`gms_fast.search.gms` runs on the embedded "mnist" with the covariance of the data: 4 steps and the last call. It uses
the half of the data that is not the quality matrix's reference, and the digit features of `gms_fast.search`. The
numbers go to bench/results/search_gms.json, with the quality measures of other samples before and after, by another
classifier. After an interrupt, the same command resumes.
"""

import argparse
import json
import statistics as numbers
from pathlib import Path

import torch

import gms_fast
from bench.records.checkout import RESULTS
from bench.records.record import environment, save
from gms_fast import search, solvers, statistics
from gms_fast.quality import cells, subjects

STEPS, N, AT_ONCE, RANGES = 4, 800, 100, 3


def measured(subject: subjects.Subject, times: list[float], solver: solvers.GMS) -> dict[str, list[float]]:
    """Return [mean, standard deviation] over the quality matrix's ranges of samples."""
    found = []
    for r in range(RANGES):
        starts = range(r * N, (r + 1) * N, AT_ONCE)
        options = {"solver": solver, "timesteps": times, "n": AT_ONCE}
        x = torch.cat([gms_fast.sample(subject.model, sample_offset=start, **options) for start in starts])
        found.append(cells.measure(x, subject))
    return {k: [numbers.fmean(m[k] for m in found), numbers.stdev(m[k] for m in found)] for k in found[0]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--evaluations", type=int, default=120, help="evaluations of the search (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/search/gms.json"),
        help="file of the search, to resume from (default: %(default)s)",
    )
    args = parser.parse_args()
    subject = subjects.build("mnist")
    first = solvers.GMS(covariance=statistics.load_gaussian("mnist"))
    grid = subject.model.schedule.timesteps(STEPS, "angle")
    options = {"solver": first, "features": search.load_features("mnist5k"), "evaluations": args.evaluations}
    learned = search.gms(subject.model, subject.control, STEPS, out=args.out, **options)
    record = {"environment": environment(), "evaluations": args.evaluations}
    for name, (times, solver) in (("first", (grid, first)), ("learned", learned)):
        own = {key: getattr(solver, key) for key in ("weight", "switch", "clip_pixel")}
        record[name] = {"timesteps": times, **own, "measures": measured(subject, times, solver)}
        print(name, json.dumps(record[name]))
    save(RESULTS / "search_gms.json", record)


if __name__ == "__main__":
    main()
