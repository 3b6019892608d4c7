"""Learn the embedded solver tables, or measure the memory of a search.

    python -m bench.assets.search [5 10] [--memory] [--ship] [--out FOLDER]

The tables of the embedded "mnist" are learned from the half of its data that the quality matrix does not use as its
reference, with the digit features of `gms_fast.search`. They go to FOLDER/K. --ship copies a finished one to
gms_fast/models/mnist/ggdm-K.safetensors. After an interrupt, the same command resumes.

--memory  measure instead the peak memory of one iteration at 5 and 20 steps, with and without rematerialisation, above
          the memory before it. Each case runs in processes of its own, and the least of three counts. The result goes
          to bench/results/search_memory.json.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch

from bench.records.checkout import RESULTS
from bench.records.record import environment, save
from gms_fast import io, search
from gms_fast.quality import subjects
from gms_fast.search import ddss

MODEL, FEATURES = "mnist", "mnist5k"
RECIPE = {  # network calls: settings
    5: {"iterations": 120, "batch_size": 192, "rematerialise": False},
    10: {"iterations": 60, "batch_size": 96, "lr": 3e-3, "kernel": "linear", "chunk": 16},
}
RETURNED = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "131072"}  # return freed memory at once
MEMORY = {  # case: rematerialise, settings of glibc
    "rematerialised": (True, RETURNED),
    "rematerialised, with what glibc keeps of freed memory": (True, {}),
    "not rematerialised": (False, RETURNED),
}
SETTINGS = {"variant": "time", "initial": "unip", "spacing": 0.7}


def learn(steps: int, out: Path, ship: bool) -> None:
    subject = subjects.build(MODEL)
    features = search.load_features(FEATURES)
    start = time.perf_counter()
    options = SETTINGS | RECIPE[steps] | {"progress": sys.stderr.isatty()}
    search.ggdm(subject.model, subject.control, steps, features=features, out=out / str(steps), **options)
    minutes = (time.perf_counter() - start) / 60
    print(f"{steps} steps: {minutes:.1f} minutes with {torch.get_num_threads()} threads, {out / str(steps)}")
    if ship:
        folder = Path(io.__file__).parent / "models" / MODEL
        shutil.copy(out / str(steps) / ddss.TABLE, folder / f"ggdm-{steps}.safetensors")


def memory(name: str) -> int:
    """Return a memory figure of this process in KiB, as Linux reports it."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1])


def one(steps: int, rematerialise: bool) -> None:
    """Print the peak memory of one iteration above the memory before it."""
    subject = subjects.build(MODEL)
    features = search.load_features(FEATURES)
    options = {"iterations": 1, "batch_size": 64, "score_samples": 2, "progress": False, "variant": "time"}
    before = memory("VmRSS")
    search.ggdm(subject.model, subject.control[:64], steps, features=features, rematerialise=rematerialise, **options)
    print(memory("VmHWM") - before)


def measure() -> None:
    growth, peaks = {}, {}
    for name, (rematerialise, settings) in MEMORY.items():
        found = []
        for steps in (5, 20):
            command = [sys.executable, "-m", __spec__.name, "--one", str(steps), str(rematerialise)]
            options = {"capture_output": True, "text": True, "check": True, "env": os.environ | settings}
            found.append(min(int(subprocess.run(command, **options).stdout) for _ in range(3)))
        growth[name] = round(found[1] / found[0], 2)
        peaks[name] = [round(kib / 1024) for kib in found]
        print(f"{name}: {peaks[name][0]} MiB at 5 steps, {peaks[name][1]} at 20, {growth[name]} times as much")
    record = {"environment": environment(), "MiB at 5 and 20 steps": peaks, "growth": growth}
    save(RESULTS / "search_memory.json", record)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("steps", nargs="*", type=int, default=list(RECIPE), help="network calls: 5, 10 (default: both)")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/search"), help="folder of the searches (default: %(default)s)"
    )
    parser.add_argument("--ship", action="store_true", help="replace the embedded tables")
    parser.add_argument("--memory", action="store_true", help="measure memory instead")
    parser.add_argument("--one", nargs=2, metavar=("STEPS", "REMATERIALISE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(int(args.one[0]), args.one[1] == "True")
    elif args.memory:
        measure()
    else:
        if unknown := set(args.steps) - set(RECIPE):
            raise SystemExit(f"steps must be some of {', '.join(map(str, RECIPE))}: got {sorted(unknown)}")
        for steps in args.steps:
            learn(steps, args.out, args.ship)


if __name__ == "__main__":
    main()
