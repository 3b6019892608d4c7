"""Calls every op on every GPU backend with odd sizes, for compute-sanitizer: `python bench/every_op.py`."""

import argparse

import torch
from cases import STEP

import gms_fast
from gms_fast import ops

SHAPE = (3, 5, 7, 9)  # 315 elements a sample: no multiple of four, nor of any block


def call_all(dtype: torch.dtype) -> None:
    x, a, b, c = (torch.rand(SHAPE, device="cuda").to(dtype) for _ in range(4))
    seeds = torch.arange(SHAPE[0], device="cuda")
    for fit in ("exact", "free", "adan", "gaussian"):
        ops.fit_mixture(x, a, b, fit=fit)
        for component in ("sample", "element"):
            ops.sample_mixture(x, a, b, fit=fit, component=component)
            ops.gms_step(x, a, b, c, STEP, fit=fit, component=component, seed=seeds)
            ops.gms_step(x, a, b, c, STEP, fit=fit, component=component, moments="released", central=True, out=x)
    ops.gms_step(x, a, None, None, STEP, fit="gaussian", noise=b)
    ops.affine_noise(x, (a, b), (0.9, 0.1, -0.2), 0.3)
    for draw in (ops.philox_normal, ops.philox_uniform):
        draw(SHAPE, seed=1, device="cuda", dtype=dtype)


def main() -> None:
    argparse.ArgumentParser(description=__doc__).parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible: nothing to call")
    for backend in {"cuda", "triton"} & set(gms_fast.backends()["available"]):
        gms_fast.set_backend(backend)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            call_all(dtype)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
