"""Run the benchmarks of one GPU backend, most important first; `gpu_check` calls this.

    python -m bench.gpu.gpu_rows --backend cuda --out FILE

Parts that do not fit into --seconds are skipped and named. The JSON is written after each part. --rehearse runs
everything without a GPU, on tiny tensors. Exit status 1: a part failed, or a case of one.
"""

import argparse
import importlib
import time
from collections.abc import Callable
from pathlib import Path

import torch

import gms_fast
from bench.gpu import bits, loops, rehearsal
from bench.gpu.targets import card, over, share
from bench.records.record import environment, save
from bench.speed import gms_step
from bench.speed.cases import SHAPES, input_sets, noise_moments, yardsticks
from bench.speed.figures import measured
from bench.speed.machine import Gpu, StandIn

NEEDS = 15  # approximate seconds of a part with its compilation
TINY = (1, 1, 8, 8)  # shape of all rows in a rehearsal
Part = Callable[[Gpu], dict[str, object]]


def rows(machine: Gpu, op: str, shape: str) -> dict[str, object]:
    """Return the rows of one benchmark."""
    return importlib.import_module(f"bench.speed.{op}").measure(machine, shape, machine.runs)


def gms_at_stream(machine: Gpu) -> dict[str, object]:
    result = rows(machine, "gms_step", "stream")
    bars = [
        *share("float32", result["rows"], gms_step.EXACT),
        *share(f"bfloat16, {card(machine.name)}", result["rows"], gms_step.NARROW),
        *share("free", result["rows"], gms_step.FREE),
        *over("compiled", result["rows"], gms_step.COMPILED, gms_step.EXACT),
    ]
    return result | {"bars": bars}


def affine_at_stream(machine: Gpu) -> dict[str, object]:
    result = rows(machine, "affine_noise", "stream")
    return result | {"bars": share("affine", result["rows"], "affine_noise, terms: 3")}


def beside_the_released_fit(machine: Gpu) -> dict[str, object]:
    sets = input_sets(noise_moments, SHAPES["cifar512"], machine)
    base, exact = yardsticks(sets), gms_step.fused(sets, *gms_step.FITS[0])
    result = measured(machine, "cifar512", [*base, exact], [*base, gms_step.released(sets)], machine.runs)
    return result | {"bars": over("released", result["rows"], gms_step.RELEASED, gms_step.EXACT)}


PARTS: dict[str, dict[str, Part]] = {  # by groups, which `gpu_check` orders
    "stream": {"gms_step, stream": gms_at_stream, "affine_noise, stream": affine_at_stream},
    "host": {
        "bits": bits.bits,
        "host": loops.host,
        "gms_step, cifar512": beside_the_released_fit,
        "outside the network": loops.outside,
    },
    "graphs": {"graph": loops.graph, "launches": loops.launches},
    "rest": {
        "gms_step, cifar": lambda machine: rows(machine, "gms_step", "cifar"),
        "affine_noise, cifar": lambda machine: rows(machine, "affine_noise", "cifar"),
        **{
            f"{op}, {shape}": lambda machine, op=op, shape=shape: rows(machine, op, shape)
            for shape in ("stream", "cifar")
            for op in ("philox", "sample_mixture", "fit_mixture")
        },
    },
}


def attempt(part: Part, machine: Gpu, left: float) -> dict[str, object]:
    """Run a part; return its result, or the reason why there is none.

    One failure must not cost the other figures.
    """
    if left < NEEDS:
        return {"skipped": f"needs about {NEEDS} s, {max(left, 0):.0f} s are left"}
    try:
        result = part(machine)
    except Exception as error:
        return {"rc": 1, "error": f"{type(error).__name__}: {error}"}
    result.pop("environment", None)  # the result has one for all parts
    return result | ({"rc": 1} if "failed" in result else {})


def begin(backend: str, rehearse: bool) -> Gpu:
    """Prepare the machine and select the backend.

    Raises RuntimeError if the backend cannot run.
    """
    if rehearse:
        rehearsal.begin(backend)
        if backend == "triton":
            from bench.gpu import interpreter  # needs Triton

            for replacement in interpreter.replacements():
                setattr(*replacement)
        SHAPES.update(dict.fromkeys(SHAPES, TINY))
        torch.compiler.set_stance("force_eager")
        return StandIn()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible: nothing to measure")
    gms_fast.set_backend(backend)
    return Gpu()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", required=True, choices=("cuda", "triton"), help="backend to measure")
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="groups of parts, in this order")
    parser.add_argument("--seconds", type=float, default=180, help="time limit (default: %(default)s)")
    parser.add_argument("--commit", help="commit that is measured (default: git's)")
    parser.add_argument("--rehearse", action="store_true", help="run without a GPU: the figures mean nothing")
    parser.add_argument("--out", type=Path, required=True, help="write the figures as JSON")
    args = parser.parse_args()
    end = time.monotonic() + args.seconds
    try:
        machine = begin(args.backend, args.rehearse)
    except RuntimeError as error:
        save(args.out, {"skipped": str(error)})
        return
    result: dict[str, object] = {"environment": environment(args.commit), "bars": [], "lines": [], "parts": {}}
    for name, part in ((name, part) for group in args.parts for name, part in PARTS[group].items()):
        found = attempt(part, machine, end - time.monotonic())
        bars = found.pop("bars", [])
        result["parts"][name] = found
        result["bars"] += [bar.as_json() for bar in bars]
        result["lines"] += [*lines(name, found), *map(str, bars)]
        save(args.out, result)
    if any("rc" in part for part in result["parts"].values()):
        raise SystemExit(1)


def lines(name: str, part: dict[str, object]) -> list[str]:
    """Return lines that report the failures of a part."""
    whole = [f"{name}: {part[key]}" for key in ("skipped", "error") if key in part]
    return whole + [f"{name}: {case}: {why}" for case, why in part.get("failed", {}).items()]


if __name__ == "__main__":
    main()
