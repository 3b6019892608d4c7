"""Inputs of the ops in every dtype and layout."""

import pytest
import torch

import gms_fast
from gms_fast import ops
from gms_fast.ops import native
from gms_fast.schedules import VPLinear

STEP = gms_fast.StepCoefficients.between(VPLinear(), 400, 300)
# Only the compiled kernels promise equal bits: plain torch rounds by the alignment of its vectors.
compiled = pytest.mark.skipif(not native.available, reason="the compiled module was not built (GMS_FAST_PURE=1)")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
LAYOUTS = {
    "contiguous": lambda t: t,
    "channels_last": lambda t: t.contiguous(memory_format=torch.channels_last),
    "strided": lambda t: torch.stack([t, t], dim=-1)[..., 0],
    "expanded": lambda t: t[:, :1].expand(-1, 3, -1, -1),
    "channels": lambda t: torch.cat([t, t], dim=1)[:, :3],  # as from a network with more outputs
    "transposed": lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
    "no_samples": lambda t: t[:0],
    "no_elements": lambda t: t[:, :0],
}


def tensors(count, dtype=torch.float32, layout="contiguous", shape=(2, 3, 4, 5)):
    generator = torch.Generator().manual_seed(0)
    return [LAYOUTS[layout](torch.rand(shape, generator=generator).to(dtype)) for _ in range(count)]


def gms_step(x, e1, e2, e3, step=STEP, **options):
    return ops.gms_step(x, e1, e2, e3, step, **options)


def by_element(terms, like, dtype=torch.float32):
    """Return weights per element of a sample: of x, of the terms, and of the noise."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn((terms + 2, *like.shape[1:]), generator=generator).to(dtype)
