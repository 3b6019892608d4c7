"""The "torch" backend: the reference on any device, in float64 for float64 inputs and in float32 for all others."""

import torch
from torch import Tensor

from gms_fast import reference
from gms_fast.arguments import Fitting, Noise, Stepping

_NORMALS, _UNIFORMS = 0, 1


def _keys(noise: Noise, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Key (B,) and sample index (B,) of every sample."""
    if noise.seeds is not None:
        return noise.seeds, torch.zeros_like(noise.seeds)
    seed = noise.seed - (1 << 64) if noise.seed >> 63 else noise.seed  # as int64 bits
    index = torch.arange(samples, dtype=torch.int64, device=device) + noise.sample_offset
    return torch.full_like(index, seed), index


def _draws(noise: Noise, x: Tensor) -> tuple[Tensor, Tensor]:
    """z like x, and u like x or (B, 1, ..)."""
    z, u = noise.z, noise.u
    keys, elements = _keys(noise, x.shape[0], x.device), x[0].numel() if x.shape[0] else 0
    if z is None:
        z = reference.philox_normal(*keys, noise.step, _NORMALS, elements, x.dtype).reshape(x.shape)
    if u is None:
        u = reference.philox_uniform(*keys, noise.step, _UNIFORMS, elements if noise.element else 1, x.dtype)
    u = u.reshape(x.shape) if noise.element else u.reshape(-1, *[1] * (x.ndim - 1))
    return z.to(x.dtype), u.to(x.dtype)


def _working(out: Tensor, *tensors: Tensor | None) -> list[Tensor | None]:
    wide = any(t is not None and t.dtype == torch.float64 for t in (out, *tensors))
    return [None if t is None else t.to(torch.float64 if wide else torch.float32) for t in tensors]


def gms_step(
    x: Tensor, e1: Tensor, e2: Tensor | None, e3: Tensor | None, out: Tensor, step: Stepping, fit: Fitting, noise: Noise
) -> None:
    x, e1, e2, e3 = _working(out, x, e1, e2, e3)
    clip = None if step.lo == -torch.inf and step.hi == torch.inf else (step.lo, step.hi)
    options = {"moments": step.moments, "central": step.central, "clip": clip, **fit._asdict()}
    out.copy_(reference.gms_step(x, e1, e2, e3, step.coefficients, *_draws(noise, x), **options))


def sample_mixture(
    mean: Tensor, var: Tensor, third: Tensor, out: Tensor, floor: float, fit: Fitting, noise: Noise
) -> None:
    mean, var, third = _working(out, mean, var, third)
    out.copy_(reference.sample_mixture(mean, var, third, floor, *_draws(noise, mean), *fit))


def fit_mixture(mean: Tensor, var: Tensor, third: Tensor, out: tuple[Tensor, ...], floor: float, fit: Fitting) -> None:
    mean, var, third = _working(out[0], mean, var, third)
    base, excess = reference.split_variance(var, floor)
    for target, value in zip(out, reference.fit_mixture(mean, base, excess, third, *fit), strict=True):
        target.copy_(value)


def philox(out: Tensor, noise: Noise, stream: int, normal: bool) -> None:
    generate = reference.philox_normal if normal else reference.philox_uniform
    dtype = torch.float64 if out.dtype == torch.float64 else torch.float32
    elements = out.numel() // max(out.shape[0], 1)
    keys = _keys(noise, out.shape[0], out.device)
    out.copy_(generate(*keys, noise.step, stream, elements, dtype).reshape(out.shape))
