"""Everything a GPU session runs, in one command: `python bench/gpu_check.py [--out bench/results/gpu.json]`.

Builds in place (CUDA kernels included), runs the tests marked `gpu`, then times the fused step on each GPU backend
against a copy of the same bytes, and writes one JSON with GPU, driver, versions, commit and date.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
BYTES = {torch.float32: 20, torch.bfloat16: 10}  # read x, e1, e2, e3 and write x_s, per element


def run(*command: str) -> dict[str, object]:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return {"command": " ".join(command), "rc": done.returncode, "tail": (done.stdout + done.stderr)[-2000:]}


def milliseconds(call, runs: int = 50) -> float:
    """Median time between CUDA events, after warm-up."""
    for _ in range(5):
        call()
    times = []
    for _ in range(runs):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)[len(times) // 2]


def copy_bandwidth(elements: int) -> float:
    """GB/s of a device-to-device copy, bytes read and written both counted."""
    source = torch.empty(elements, device="cuda")
    target = torch.empty_like(source)
    return 8 * elements / milliseconds(lambda: target.copy_(source)) / 1e6


def step_rates(elements: int) -> list[dict[str, object]]:
    import gms_fast
    from gms_fast import StepCoefficients, ops
    from gms_fast.schedules import VPLinear

    step, rows = StepCoefficients.between(VPLinear(), 499, 399), []
    for backend in ("triton", "cuda"):
        gms_fast.set_backend(backend)
        for dtype, size in BYTES.items():
            tensors = [torch.randn(1024, elements // 1024, device="cuda", dtype=dtype) for _ in range(4)]
            for fit in ("exact", "free", "adan"):
                ms = milliseconds(lambda t=tensors, f=fit: ops.gms_step(*t, step, fit=f))
                row = {"backend": backend, "dtype": str(dtype), "fit": fit, "elements": elements}
                rows.append(row | {"ms": ms, "GB/s": size * elements / ms / 1e6})
    gms_fast.set_backend(None)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "gpu.json")
    parser.add_argument("--elements", type=int, default=1 << 26)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible: nothing to measure")
    result = {"build": run(sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", ".")}
    result["tests"] = run(sys.executable, "-P", "-m", "pytest", "-m", "gpu", "-q", "--import-mode=importlib")
    sys.path.insert(0, str(ROOT))
    from timing import environment

    query = ("nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader")
    result |= {"environment": environment(), "driver": run(*query)["tail"].strip()}
    result["copy GB/s"] = copy_bandwidth(args.elements)
    result["gms_step"] = step_rates(args.elements)
    for row in result["gms_step"]:
        row["of copy"] = row["GB/s"] / result["copy GB/s"]
        print(f"{row['backend']:7}{row['dtype']:16}{row['fit']:7}{row['ms']:9.4f} ms {row['of copy']:6.1%} of copy")
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
