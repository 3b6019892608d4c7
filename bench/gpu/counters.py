"""Record hardware counters of the kernels that have targets.

    python -m bench.gpu.counters [--backend cuda] --out FILE

It runs itself under ncu (Nsight Compute) and writes ncu's report, section by section. Each kernel is launched once on
2^26 elements. The GPU's clocks are left as they are.
"""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import torch

import gms_fast
from bench.speed import affine_noise, gms_step
from bench.speed.cases import SHAPES, Sets, noise_moments, normals

SECTIONS = (
    "SpeedOfLight",
    "LaunchStats",
    "Occupancy",
    "SchedulerStats",
    "WarpStateStats",
    "InstructionStats",
    "MemoryWorkloadAnalysis",
    "ComputeWorkloadAnalysis",
)


def launch_all() -> None:
    """Launch each kernel between marks for ncu, after a launch that compiles and loads it."""
    moments = Sets(lambda seed: noise_moments(SHAPES["stream"], "cuda", seed))
    terms = Sets(lambda seed: normals(4)(SHAPES["stream"], "cuda", seed))
    cases = [gms_step.fused(moments, *fit) for fit in gms_step.FITS]
    cases += [gms_step.narrow(moments)[-1], affine_noise.three_terms(terms)[0]]
    for case in cases:
        case.call(0)
        torch.cuda.synchronize()
        torch.cuda.profiler.start()
        case.call(0)
        torch.cuda.synchronize()
        torch.cuda.profiler.stop()


def watch(command: list[str], out: Path) -> None:
    sections = [word for name in SECTIONS for word in ("--section", name)]
    ncu = ["ncu", "--clock-control", "none", "--profile-from-start", "off", *sections]
    with out.open("w") as report:
        subprocess.run([*ncu, *command], stdout=report, stderr=subprocess.STDOUT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backend", default="cuda", choices=("cuda", "triton"), help="backend to profile (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="text file of the report (default: launch only, under ncu)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible: nothing to count")
    if args.out is None:
        gms_fast.set_backend(args.backend)
        launch_all()
    elif shutil.which("ncu") is None:
        raise SystemExit("ncu is not on PATH: install Nsight Compute")
    else:
        watch([sys.executable, "-m", __spec__.name, "--backend", args.backend], args.out)


if __name__ == "__main__":
    main()
