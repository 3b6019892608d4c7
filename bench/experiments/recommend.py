"""Record the solvers that `gms_fast.recommend` chooses for the embedded models.

    python -m bench.experiments.recommend

The trials use the half of the data that is not the quality matrix's reference, another seed than its samples, and its
own classifier. Group `best` of the matrix compares the choices with its other rows. The command prints each choice with
its evidence, and writes bench/results/recommend.json.
"""

import argparse
import sys
from typing import Any

import gms_fast
from bench.records.checkout import RESULTS
from bench.records.record import environment, save
from gms_fast.quality import classifier, subjects

CALLS, SEED = (3, 5, 10, 20), 1
SAMPLES = {"digits": 1600, "mnist": 800}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, nargs="*", default=list(CALLS), help="numbers of network calls")
    args = parser.parse_args()
    found: dict[str, Any] = {}
    for name, samples in SAMPLES.items():
        subject = subjects.build(name)
        seen = {"data": subject.control, "features": classifier.load(subject.features).hidden}
        options = {**seen, "samples": samples, "seed": SEED, "progress": sys.stderr.isatty()}
        for calls in args.calls:
            chosen = gms_fast.recommend(subject.model, name, calls, **options)
            without = gms_fast.recommend(subject.model, name, calls)
            print(f"{name}, {calls} calls: {chosen}\n  without data: {without.text}", flush=True)
            trials = [trial._asdict() for trial in chosen.trials]
            found.setdefault(name, {})[str(calls)] = {"text": chosen.text, "without": without.text, "trials": trials}
    save(RESULTS / "recommend.json", {"environment": environment(), "seed": SEED, "samples": SAMPLES, "models": found})


if __name__ == "__main__":
    main()
