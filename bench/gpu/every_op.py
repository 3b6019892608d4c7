"""Call every op of a GPU backend with every kind of memory access, for compute-sanitizer.

    python -m bench.gpu.every_op

All runs make the same calls in the same order. Inputs are made on the CPU, so that the tools see few kernels of torch.
"""

import argparse
import itertools

import torch
from torch import Tensor

import gms_fast
from bench.speed.cases import STEP
from gms_fast import ops
from gms_fast.ops import fused
from gms_fast.ops.checks import rows_of
from gms_fast.ops.types import DEFAULT, Draws, Linear, Reading, Watch

# elements a sample: 315 is no multiple of four or of a block; 512 gives whole 16-byte accesses; 1548 gives these and a
# nearly empty last block; 3 gives many small samples
SHAPES = ((3, 5, 7, 9), (40, 8, 8, 8), (3, 3, 12, 43), (5000, 1, 1, 3))
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
READING = Reading(1.1, -0.4, -1.0, 1.0, 2.0)


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
            ops.gms_step(x, a, b, c * torch.inf, STEP, fit=fit, component=component)  # all recomputed
            ops.gms_step(x, a, b, c, STEP, fit=fit, component=component, moments="released", central=True, out=x)
    ops.gms_step(x, a, None, None, STEP, fit="gaussian", noise=b)
    ops.gms_step(x, a, b, c, STEP, out=torch.empty_like(x, dtype=torch.bfloat16))
    ops.affine_noise(x, (a, b), (0.9, 0.1, -0.2), 0.3)
    ops.affine_noise(x, (a, b), weights, 0.3)
    call_linear(x, a, b, c, weights)
    ops.gms_step(x, a, b, c, numbers, seed=seeds[1], step_index=seeds[2])
    ops.gms_step(x, *(t.to(memory_format=torch.channels_last) for t in (a, b, c)), STEP)
    ops.gms_step(x, *(torch.stack([t, t], dim=-1)[..., 0] for t in (a, b, c)), STEP)
    for draw in (ops.philox_normal, ops.philox_uniform):
        draw(shape, seed=1, device=device, dtype=dtype)


def call_linear(x: Tensor, a: Tensor, b: Tensor, c: Tensor, weights: Tensor) -> None:
    """Call linear steps and steps with guidance, with and without a watch."""
    watch = Watch(torch.zeros(1, dtype=torch.int32, device=x.device), 0)
    kept = Linear(READING, (0.0,) * 5, 2, 2, keeps=True, noisy=True, present=rows_of(2, [1]))
    for seen in (None, watch):
        for terms in ((), (b,), (b, c), (b, c, a), (b, c, a, b)):
            step = Linear(READING, (0.1,) * (len(terms) + 2) + (0.3,), len(terms), keeps=True, noisy=True)
            fused.linear_step(x, a, terms, step, Draws(), unconditional=c, watch=seen)
        rows = torch.cat([weights, weights[:2]])
        fused.linear_step(x, a, (b, c), kept, Draws(), numbers=rows, unconditional=c, watch=seen)
        for bad in (c, c * torch.inf):
            fused.gms_step(x, a, b, bad, STEP, DEFAULT, Draws(), unconditional=c, guidance=2.0, watch=seen)
    ops.linear_step(x, a, (b,), torch.ones(6, device=x.device))
    strided = a.to(memory_format=torch.channels_last)
    ops.linear_step(x, strided, (b,), (0.9, 0.1, 0.2), data=(1.1, -0.4))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--backend", default="cuda", choices=("cuda", "triton"), help="backend to call (default: %(default)s)"
    )
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
