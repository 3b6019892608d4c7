"""Calls every op on every GPU backend, in every kind of access, for compute-sanitizer: `python bench/every_op.py`."""

import argparse
import itertools

import torch
from cases import STEP

import gms_fast
from gms_fast import ops

# 315 elements a sample: no multiple of four, nor of any block; 512: whole 16-byte accesses; small samples, many of them
SHAPES = ((3, 5, 7, 9), (40, 8, 8, 8), (5000, 1, 1, 3))


def call_all(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, a, b, c = (torch.rand(shape, device="cuda").to(dtype) for _ in range(4))
    seeds, numbers = torch.arange(shape[0], device="cuda"), STEP.as_tensor("cuda")
    for fit in ("exact", "free", "adan", "gaussian"):
        ops.fit_mixture(x, a, b, fit=fit)
        for component in ("sample", "element"):
            ops.sample_mixture(x, a, b, fit=fit, component=component)
            ops.gms_step(x, a, b, c, STEP, fit=fit, component=component, seed=seeds)
            ops.gms_step(x, a, b, c, STEP, fit=fit, component=component, moments="released", central=True, out=x)
    ops.gms_step(x, a, None, None, STEP, fit="gaussian", noise=b)
    ops.affine_noise(x, (a, b), (0.9, 0.1, -0.2), 0.3)
    ops.gms_step(x, a, b, c, numbers, seed=seeds[1], step_index=seeds[2])
    ops.gms_step(x, *(t.to(memory_format=torch.channels_last) for t in (a, b, c)), STEP)
    ops.gms_step(x, *(torch.stack([t, t], dim=-1)[..., 0] for t in (a, b, c)), STEP)
    for draw in (ops.philox_normal, ops.philox_uniform):
        draw(shape, seed=1, device="cuda", dtype=dtype)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible: nothing to call")
    for backend in {"cuda", "triton"} & set(gms_fast.backends()["available"]):
        gms_fast.set_backend(backend)
        for shape, dtype in itertools.product(SHAPES, (torch.float32, torch.bfloat16, torch.float16)):
            call_all(shape, dtype)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
