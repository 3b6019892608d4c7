"""Time of `import gms_fast` beside `import torch`, in fresh processes that take turns.

    python -m bench.speed.imports

It prints the ratio of the medians of processor time, which other processes disturb least. Bytecode is cached, as usual.
The bar is 1.05: gms_fast imports torch, whose own times vary as much.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys

MODULES = ("torch", "gms_fast")


def seconds(module: str) -> float:
    """Return the processor time of a process that imports a module and ends."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
    subprocess.run([sys.executable, "-P", "-c", f"import {module}"], env=environment, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=11, help="processes of each import (default: %(default)s)")
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {module: [] for module in MODULES}
    for _ in range(runs):
        for module in MODULES:
            times[module].append(seconds(module))
    torch, ours = (statistics.median(times[module]) for module in MODULES)
    low, *_, high = statistics.quantiles(times["torch"], n=4)
    print(f"import gms_fast: {ours / torch:.3f} of import torch ({low / torch:.3f} to {high / torch:.3f} by itself)")


if __name__ == "__main__":
    main()
