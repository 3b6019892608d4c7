"""Everything a GPU session runs, in one command: `python bench/gpu_check.py [--sanitize] [--out FILE]`.

Builds in place (CUDA kernels included), runs the benchmarks on each GPU backend (gpu_rows.py), then the tests marked
`gpu` and, if asked, compute-sanitizer over every op; writes one JSON. It all takes less than 8 minutes: a part is
stopped when the time is up and skipped when less is left than it needs, and the JSON says so.
"""

import argparse
import importlib.util
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
SECONDS = 470
BACKENDS = ("triton", "cuda")
RESERVED = 120  # for the tests, which come last


class Budget:
    """Runs commands while there is time."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    def run(self, command: list[str], needs: float, keep: float = 0.0) -> dict[str, object]:
        """Exit status, seconds and last output of a command that may take all that is left but `keep` seconds."""
        limit = self.left - keep
        if limit < needs:
            return {"skipped": f"needs about {needs:.0f} s, {max(limit, 0):.0f} s are left"}
        start = time.monotonic()
        try:
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=limit)
            outcome = {"rc": done.returncode, "tail": (done.stdout + done.stderr)[-4000:]}
        except subprocess.TimeoutExpired:
            outcome = {"rc": 124, "tail": f"stopped after {limit:.0f} s"}
        return {"command": " ".join(command), "seconds": round(time.monotonic() - start, 1), **outcome}


def build(budget: Budget) -> dict[str, object]:
    pip = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", "."]
    return budget.run(pip, needs=20)


def rows(budget: Budget, backend: str, backends_left: int) -> dict[str, object]:
    """What gpu_rows.py measures in a process of its own: a kernel that breaks the GPU's context breaks no other."""
    seconds = (budget.left - RESERVED) / backends_left
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "rows.json"
        command = [sys.executable, str(BENCH / "gpu_rows.py"), "--backend", backend, "--out", str(out)]
        outcome = budget.run([*command, "--seconds", f"{seconds:.0f}"], needs=40, keep=RESERVED / 2)
        return outcome | (json.loads(out.read_text()) if out.exists() else {})


def tests(budget: Budget) -> dict[str, object]:
    """The tests marked gpu; files without one are left alone, for what they import may not be installed."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    files = [str(file) for file in sorted((ROOT / "tests").glob("test_*.py")) if "mark.gpu" in file.read_text()]
    # -P: in the repository's root, `python -m` would put gms_fast without its kernels on the path.
    pytest = [sys.executable, "-P", "-m", "pytest", "-m", "gpu", "-q", "--color=no", "--import-mode=importlib"]
    return budget.run([*pytest, *files], needs=30)


def sanitize(budget: Budget) -> dict[str, object]:
    """compute-sanitizer's memcheck and racecheck over every op."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        return {"skipped": "compute-sanitizer is not installed"}
    every_op = [sys.executable, str(BENCH / "every_op.py")]
    checks = ("memcheck", "racecheck")
    return {c: budget.run([tool, "--tool", c, "--error-exitcode", "1", *every_op], needs=30) for c in checks}


def gpu() -> dict[str, str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        text = subprocess.run(query, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return {}
    return dict(zip(("gpu", "driver", "memory"), text.strip().split("\n")[0].split(", "), strict=False))


def failed(part: dict[str, object]) -> bool:
    """Whether the part, or a part of it, ran and failed."""
    return bool(part.get("rc")) or any(failed(p) for p in part.values() if isinstance(p, dict))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sanitize", action="store_true", help="also run compute-sanitizer over every op")
    parser.add_argument("--out", type=Path, default=BENCH / "results" / "gpu.json")
    args = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible: nothing to measure")
    budget, result = Budget(SECONDS), gpu()
    parts = {"build": build}
    for left, backend in zip((2, 1), BACKENDS, strict=True):
        parts[backend] = lambda budget, backend=backend, left=left: rows(budget, backend, left)
    parts |= {"tests": tests} | ({"sanitize": sanitize} if args.sanitize else {})
    for name, run in parts.items():
        result[name] = run(budget)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        brief = {k: v for k, v in result[name].items() if k in ("rc", "seconds", "skipped")}
        print(name, brief, *result[name].get("lines", []), sep="\n  ", flush=True)
    if failed(result):
        raise SystemExit("failed: " + ", ".join(n for n in parts if failed(result[n])) + f" (see {args.out})")


if __name__ == "__main__":
    main()
