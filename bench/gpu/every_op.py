"""Calls of every op of one GPU backend, in every kind of access, for compute-sanitizer: `python -m bench.gpu.every_op`.

The same calls in the same order in every run. Inputs are made on the CPU, so that the tools watch few kernels of torch.
"""

import argparse
import itertools

import torch

import gms_fast
from bench.speed.cases import STEP
from gms_fast import ops

# 315 elements a sample: no multiple of four, nor of any block; 512: whole 16-byte accesses; 1548: those, and a last
# block that is nearly empty; small samples, many of them
SHAPES = ((3, 5, 7, 9), (40, 8, 8, 8), (3, 3, 12, 43), (5000, 1, 1, 3))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def call_all(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x, a, b, c = (torch.rand(shape, generator=generator).to(dtype).to(device) for _ in range(4))
    seeds, numbers = torch.arange(shape[0]).to(device), STEP.as_tensor(device)
    weights = torch.rand((4, *shape[1:]), generator=generator).to(device)
    for fit in ("exact", "free", "adan", "gaussian"):
        ops.fit_mixture(x, a, b, fit=fit)
        for component in ("sample", "element"):
            ops.sample_mixture(x, a, b, fit=fit, component=component)
            ops.gms_step(x, a, b, c, STEP, fit=fit, component=component)
            ops.gms_step(x, a, b, c, STEP, fit=fit, component=component, seed=seeds)
            ops.gms_step(x, a, b, c * torch.inf, STEP, fit=fit, component=component)  # elements that are done again
            ops.gms_step(x, a, b, c, STEP, fit=fit, component=component, moments="released", central=True, out=x)
    ops.gms_step(x, a, None, None, STEP, fit="gaussian", noise=b)
    ops.gms_step(x, a, b, c, STEP, out=torch.empty_like(x, dtype=torch.bfloat16))
    ops.affine_noise(x, (a, b), (0.9, 0.1, -0.2), 0.3)
    ops.affine_noise(x, (a, b), weights, 0.3)
    ops.gms_step(x, a, b, c, numbers, seed=seeds[1], step_index=seeds[2])
    ops.gms_step(x, *(t.to(memory_format=torch.channels_last) for t in (a, b, c)), STEP)
    ops.gms_step(x, *(torch.stack([t, t], dim=-1)[..., 0] for t in (a, b, c)), STEP)
    for draw in (ops.philox_normal, ops.philox_uniform):
        draw(shape, seed=1, device=device, dtype=dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backend", default="cuda", choices=("cuda", "triton"))
    parser.add_argument("--rehearse", action="store_true", help="run without a GPU, on what `rehearsal` builds")
    args = parser.parse_args()
    if args.rehearse:
        from bench.gpu import rehearsal

        rehearsal.begin(args.backend)
    elif not torch.cuda.is_available():
        raise SystemExit("no CUDA device is visible: nothing to call")
    else:
        gms_fast.set_backend(args.backend)
    for shape, dtype in itertools.product(SHAPES, DTYPES):
        call_all(shape, dtype, "cpu" if args.rehearse else "cuda")
    if not args.rehearse:
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
