"""Overhead of one call of an op, on 16 elements on the CPU.

    python -m bench.speed.call [--idle-cuda]

It prints the time of a call as a multiple of a plain DDPM update in eager torch, and in microseconds. The microseconds
are those of this machine and are not stored. The bar is 10 microseconds.

With --idle-cuda a call goes as far as a launch of the CUDA kernels, which does nothing. The kernels are compiled for a
CPU (tests/cuda_shim), and CPU tensors pass for GPU tensors. The bar is 6 microseconds.
"""

import argparse
import importlib.util
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

import torch

from bench.gpu import rehearsal
from bench.speed.baselines import ddpm_step
from bench.speed.cases import STEP, noise_moments
from gms_fast import ops
from gms_fast.ops import native


def microseconds(call, runs: int) -> float:
    """Return the fastest of the runs, because disturbances only make a call longer."""
    call()
    return min(timeit.repeat(call, number=1000, repeat=runs)) * 1e3


def calls() -> dict[str, Callable[[], object]]:
    """Return one call of each op."""
    x, e1, e2, e3 = noise_moments((1, 16), "cpu", 0)
    z = torch.rand(1, 16)
    return {
        "gms_step": lambda: ops.gms_step(x, e1, e2, e3, STEP),
        "sample_mixture": lambda: ops.sample_mixture(x, z, e3),
        "fit_mixture": lambda: ops.fit_mixture(x, z, e3),
        "affine_noise": lambda: ops.affine_noise(x, [e1], [0.5, 0.5], 0.1),
        "linear_step": lambda: ops.linear_step(x, e1, [e2], [0.5, 0.5, 0.5], 0.1, data=(1.0, -0.5)),
        "philox_normal": lambda: ops.philox_normal((1, 16), seed=0),
    }


def measure(runs: int) -> dict[str, float]:
    """Time each op, and the calls that it is compared with."""
    x, e1, e2, e3 = noise_moments((1, 16), "cpu", 0)
    op = torch.ops.gms_fast.gms_step
    others = {
        "torch.ops.gms_fast.gms_step": lambda: op(x, e1, e2, e3, STEP.as_list()),
        "eager DDPM update": lambda: ddpm_step(x, e1, STEP),
        "torch.randn_like": lambda: torch.randn_like(x),
    }
    return {name: microseconds(call, runs) for name, call in {**calls(), **others}.items()}


def begin_idle_cuda() -> None:
    """Send the ops to CUDA kernels that are not run, until the process ends."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "_C.so"
        rehearsal.build(target, "-O3", "-DGMS_IDLE_LAUNCHES")
        spec = importlib.util.spec_from_file_location("_C", target)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    native.introduce(module)
    native.compiled = rehearsal.OnDevice(module)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20, help="runs, of which the fastest counts")
    parser.add_argument("--idle-cuda", action="store_true", help="time calls up to a launch of the CUDA kernels")
    args = parser.parse_args()
    if args.idle_cuda:
        begin_idle_cuda()
    times = measure(args.runs)
    for name, us in times.items():
        print(f"{name:30} {us / times['eager DDPM update']:6.2f} of a DDPM update {us:7.2f} us")


if __name__ == "__main__":
    main()
