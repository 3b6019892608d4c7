"""Time of the fused step beside its rivals, on 128x3x32x32 float32: `python bench/gms_step.py [--out FILE]`.

Prints each case's time as a multiple of `torch.randn_like` of the same tensor, medians of interleaved runs.
"""

import argparse
import json
from pathlib import Path

import torch
from baselines import ddpm_step, eager_step, inputs, released_step
from timing import environment, in_turn, spread

from gms_fast import StepCoefficients, ops
from gms_fast.schedules import VPLinear

SHAPE = (128, 3, 32, 32)


def check(tensors, step) -> None:
    """Correctness before speed: the kernel against the float64 reference on the same counters."""
    got = ops.gms_step(*tensors, step)
    want = ops.gms_step(*(t.double() for t in tensors), step)
    # The third moment is a difference of cubes of the noise, off by some eps max|e1|^3; a cube root turns that into
    # at most (13.5 B^3 r^3 4 eps max|e1|^3)^(1/3) = 3.8 B r eps^(1/3) max|e1| in the distance of the means.
    r, largest = step.sigma_t / step.alpha_t, float(tensors[1].abs().max())
    torch.testing.assert_close(got.double(), want, atol=3.8 * step.B * r * 2.0 ** (-23 / 3) * largest, rtol=1e-5)


def measure(device: str, runs: int) -> dict[str, list[float]]:
    step = StepCoefficients.between(VPLinear(), 499, 399)
    tensors = inputs(SHAPE, device)
    x, e1, *_ = tensors
    check(tensors, step)
    fused = {
        f"gms_step {fit}/{component}": lambda fit=fit, component=component: ops.gms_step(
            *tensors, step, fit=fit, component=component
        )
        for fit, component in (("exact", "sample"), ("exact", "element"), ("free", "sample"), ("gaussian", "sample"))
    }
    cases = {
        "torch.randn_like": lambda: torch.randn_like(x),
        **fused,
        "eager DDPM update": lambda: ddpm_step(x, e1, step),
        "eager closed fit": lambda: eager_step(*tensors, step),
    }
    slow = {
        "torch.randn_like": cases["torch.randn_like"],
        "gms_step adan/sample": lambda: ops.gms_step(*tensors, step, fit="adan", moments="released"),
        "released-style autograd fit": lambda: released_step(*tensors, step),
    }
    return in_turn(cases, runs) | {f: s for f, s in in_turn(slow, max(runs // 6, 3), 1).items() if f not in cases}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    args = parser.parse_args()
    seconds = measure(args.device, args.runs)
    base = spread(seconds["torch.randn_like"])[1]
    rows = {name: [q / base for q in spread(values)] for name, values in seconds.items()}
    print(f"{'x'.join(map(str, SHAPE))} float32, {torch.get_num_threads()} threads: multiples of torch.randn_like")
    for name, (low, median, high) in rows.items():
        print(f"{name:30} {median:9.2f}  ({low:.2f} .. {high:.2f})")
    released = rows["released-style autograd fit"][1]
    print(f"released-style fit / gms_step exact/sample: {released / rows['gms_step exact/sample'][1]:.0f}")
    print(f"released-style fit / gms_step adan/sample:  {released / rows['gms_step adan/sample'][1]:.1f}")
    if args.out:
        args.out.write_text(json.dumps({"environment": environment(), "shape": SHAPE, "ratio": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
