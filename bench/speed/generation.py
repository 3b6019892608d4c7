"""Time and memory of `gms-fast generate`, compared with its network alone.

    python -m bench.speed.generation [--quick] [--out FILE]

share    time of the network calls, as a share of the time in which one process fills a folder: embedded networks, ten
         steps of GMS, batches of 64; also with features measured meanwhile. Median of several runs
memory   largest memory (MiB) of the launcher and of each rank, for 1,000 and for 20,000 digits that two ranks of
         torchrun draw and measure; also the seconds of each run
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gms_fast
from bench.records.record import environment, save
from gms_fast.generation import generate

COUNTS, RANKS, RUNS = (1000, 20_000), 2, 5
SHARES = {"mnist": 512, "digits": 2048}  # pictures of a run
_POLL = 0.1  # seconds between two readings of memory


class Timed:
    """Total seconds of a module's calls."""

    def __init__(self, module: Any) -> None:
        self.seconds = self._begun = 0.0
        module.register_forward_pre_hook(self._begin)
        module.register_forward_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._begun = time.perf_counter()

    def _end(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._begun


def share(name: str, n: int, features: str | None) -> float:
    """Return the network's share of the time of one run, after a run to warm up."""
    model = gms_fast.load(name)
    with tempfile.TemporaryDirectory() as folder:
        generate(model, Path(folder, "first"), n=64, features=features)
        timed = Timed(model)
        start = time.perf_counter()
        generate(model, Path(folder, "timed"), n=n, features=features)
        return timed.seconds / (time.perf_counter() - start)


def shares(runs: int) -> dict[str, list[float]]:
    """Return least, median and largest share by network and features."""
    found = {}
    for name, n in SHARES.items():
        for features in (None, "mnist5k" if name == "mnist" else "digits"):
            several = sorted(share(name, n, features) for _ in range(runs))
            label = f"{name}, {'measured' if features else 'not measured'}"
            found[label] = [round(v, 4) for v in (several[0], statistics.median(several), several[-1])]
            print(label, found[label], flush=True)
    return found


def memory(counts: tuple[int, ...]) -> list[dict[str, Any]]:
    """Return rows by number of pictures: MiB of the launcher and of each rank, and seconds."""
    rows = []
    for n in counts:
        with tempfile.TemporaryDirectory() as folder:
            launch = ("-m", "torch.distributed.run", "--nproc-per-node", str(RANKS), "-m", "gms_fast", "--")
            command = ("generate", "--model", "digits", "--features", "digits", "--n", str(n), "--out", f"{folder}/out")
            start = time.perf_counter()
            process = subprocess.Popen((sys.executable, *launch, *command), stderr=subprocess.DEVNULL)
            peaks: dict[int, int] = {}
            while process.poll() is None:
                for pid in (process.pid, *_children(process.pid)):
                    peaks[pid] = max(peaks.get(pid, 0), _peak(pid))
                time.sleep(_POLL)
            if process.returncode:
                raise SystemExit(f"the run ended with status {process.returncode}")
            ranks = sorted(peak for pid, peak in peaks.items() if pid != process.pid)[-RANKS:]
            seconds = round(time.perf_counter() - start, 1)
            rows.append({"n": n, "starter": peaks[process.pid], "ranks": ranks, "seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _peak(pid: int) -> int:
    """Return the largest memory that a process has had, in MiB."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) >> 10
    return 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one run, and a tenth of the pictures")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    args = parser.parse_args()
    counts = tuple(n // 10 for n in COUNTS) if args.quick else COUNTS
    result = {
        "environment": environment(),
        "share": shares(1 if args.quick else RUNS),
        "memory": memory(counts),
    }
    if args.out:
        save(args.out, result)


if __name__ == "__main__":
    main()
