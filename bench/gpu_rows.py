"""The benchmarks of one GPU backend, most important first: `python bench/gpu_rows.py --backend cuda --out FILE`.

Run by gpu_check.py. What does not fit into --seconds is skipped; the JSON is written after each part, and says so.
"""

import argparse
import importlib
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import gms_step
import torch
from bars import Bar, ratio
from cases import STEP, noise_moments
from timing import environment

import gms_fast
from gms_fast import ops
from gms_fast.models import MomentUNet

RUNS = 10
NEEDS = 15  # seconds that a part takes with its compilation, roughly


def bench(op: str, shape: str) -> dict[str, object]:
    """The rows of one benchmark."""
    return importlib.import_module(op).measure("cuda", shape, RUNS)


def at_stream() -> dict[str, object]:
    result = bench("gms_step", "stream")
    of_copy = {row["name"]: row["of_copy"] for row in result["rows"]}
    low = f"{gms_step.EXACT}, bfloat16 moments and output"
    bars = [
        Bar("exact/sample, float32: share of the copy's bandwidth", of_copy[gms_step.EXACT], 0.8, 0.95, False),
        Bar("exact/sample, bfloat16 moments and output: share of the copy's bandwidth", of_copy[low], 0.65, 0.9, False),
    ]
    return result | {"bars": bars}


def beside_the_released_fit() -> dict[str, object]:
    result = bench("gms_step", "cifar512")
    (bar,) = ratio(result["rows"], gms_step.RELEASED, gms_step.EXACT, 300, 2000, at_most=False)
    return result | {"bars": [bar._replace(name="released-style fit / exact/sample, 512x3x32x32")]}


def host() -> dict[str, object]:
    """Microseconds that the host takes to enqueue one step, without waiting for the GPU."""
    tensors, calls = noise_moments((4, 3, 8, 8), "cuda", 0), 500

    def enqueue() -> float:
        torch.cuda.synchronize()
        start = time.perf_counter()
        for i in range(calls):
            ops.gms_step(*tensors, STEP, seed=1, step_index=i)
        return 1e6 * (time.perf_counter() - start) / calls

    enqueue()
    bar = Bar("host time of one call, microseconds", statistics.median(enqueue() for _ in range(9)), 12, 6, True)
    return {"bars": [bar]}


def outside_the_network() -> dict[str, object]:
    """Share of the GPU's time in gms_fast.sample that is not between entry to and exit from the network."""
    shares = {str(dtype): _outside(dtype) for dtype in (torch.float32, torch.bfloat16)}
    bar = Bar("share of sampling outside the network", shares["torch.float32"], 0.01, 0.002, True)
    return {"shares": shares, "bars": [bar]}


def _outside(dtype: torch.dtype, steps: int = 5) -> float:
    network, marks = MomentUNet(channel_mult=(1, 2, 2, 2)).to("cuda", dtype).eval(), []

    def mark(*_: object) -> None:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        marks.append(event)

    gms_fast.sample(network, 1, n=128)
    network.register_forward_pre_hook(mark)
    network.register_forward_hook(mark)
    mark()
    gms_fast.sample(network, steps, n=128)
    mark()
    torch.cuda.synchronize()
    start, *inner, end = marks
    inside = sum(a.elapsed_time(b) for a, b in zip(inner[::2], inner[1::2], strict=True))
    return 1 - inside / start.elapsed_time(end)


PARTS: dict[str, Callable[[], dict[str, object]]] = {
    "gms_step, 2^26 elements": at_stream,
    "host": host,
    "gms_step, 512x3x32x32": beside_the_released_fit,
    "outside the network": outside_the_network,
    "gms_step, cifar": lambda: bench("gms_step", "cifar"),
    **{
        f"{op}, {shape}": lambda op=op, shape=shape: bench(op, shape)
        for shape in ("stream", "cifar")
        for op in ("affine_noise", "philox", "sample_mixture", "fit_mixture")
    },
}


def attempt(run: Callable[[], dict[str, object]], left: float) -> dict[str, object]:
    """The part's result, or why there is none: one failure must not cost the other figures."""
    if left < NEEDS:
        return {"skipped": f"needs about {NEEDS} s, {max(left, 0):.0f} s are left"}
    try:
        return run()
    except Exception as error:
        return {"rc": 1, "error": f"{type(error).__name__}: {error}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", required=True, choices=("cuda", "triton"))
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible: nothing to measure")
    end = time.monotonic() + args.seconds
    try:
        gms_fast.set_backend(args.backend)
    except RuntimeError as error:
        args.out.write_text(json.dumps({"skipped": str(error)}) + "\n")
        return
    result: dict[str, object] = {"environment": environment(), "bars": [], "lines": [], "parts": {}}
    for name, run in PARTS.items():
        part = attempt(run, end - time.monotonic())
        bars = part.pop("bars", [])
        result["parts"][name] = part
        result["bars"] += [bar.as_json() for bar in bars]
        problem = part.get("skipped") or part.get("error")
        result["lines"] += [f"{name}: {problem}"] if problem else map(str, bars)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
