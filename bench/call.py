"""What one call costs besides its work: `python bench/call.py`, 16 elements on the CPU.

Prints the time of a call as a multiple of the plain DDPM update in eager torch, and in microseconds, which are this
machine's and are kept nowhere. Bar: 10 microseconds.
"""

import argparse
import timeit

import torch
from baselines import ddpm_step
from cases import STEP, noise_moments

from gms_fast import ops


def microseconds(call, runs: int) -> float:
    """Fastest of the runs: what disturbs a call of microseconds only ever makes it longer."""
    call()
    return min(timeit.repeat(call, number=1000, repeat=runs)) * 1e3


def measure(runs: int) -> dict[str, float]:
    x, e1, e2, e3 = noise_moments((1, 16), "cpu", 0)
    z, op = torch.rand(1, 16), torch.ops.gms_fast.gms_step
    calls = {
        "gms_step": lambda: ops.gms_step(x, e1, e2, e3, STEP),
        "torch.ops.gms_fast.gms_step": lambda: op(x, e1, e2, e3, STEP.as_list()),
        "sample_mixture": lambda: ops.sample_mixture(x, z, e3),
        "fit_mixture": lambda: ops.fit_mixture(x, z, e3),
        "affine_noise": lambda: ops.affine_noise(x, [e1], [0.5, 0.5], 0.1),
        "philox_normal": lambda: ops.philox_normal((1, 16), seed=0),
        "eager DDPM update": lambda: ddpm_step(x, e1, STEP),
        "torch.randn_like": lambda: torch.randn_like(x),
    }
    return {name: microseconds(call, runs) for name, call in calls.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=20)
    times = measure(parser.parse_args().runs)
    for name, us in times.items():
        print(f"{name:30} {us / times['eager DDPM update']:6.2f} of a DDPM update {us:7.2f} us")


if __name__ == "__main__":
    main()
