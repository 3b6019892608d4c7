"""The "torch" backend: the reference on any device, in float64 for float64 inputs and in float32 for all others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gms_fast.ops import reference
from gms_fast.ops.layout import Layout
from gms_fast.ops.types import Fitting, Noise, Stepping

_NORMALS, _UNIFORMS = 0, 1


def _keys(noise: Noise, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Key (B,) and sample index (B,) of every sample."""
    if noise.seeds is not None and noise.seeds.ndim:
        return noise.seeds, torch.zeros_like(noise.seeds)
    index = torch.arange(samples, dtype=torch.int64, device=device) + noise.sample_offset
    if noise.seeds is not None:
        return noise.seeds.expand(samples), index
    seed = noise.seed - (1 << 64) if noise.seed >> 63 else noise.seed  # as int64 bits
    return torch.full_like(index, seed), index


def _step(noise: Noise) -> int | Tensor:
    return noise.step if noise.step_at is None else noise.step_at


def _draws(noise: Noise, x: Tensor) -> tuple[Tensor, Tensor]:
    """z like x, and u like x or (B, 1, ..)."""
    z, u = noise.z, noise.u
    keys, elements = _keys(noise, x.shape[0], x.device), x[0].numel() if x.shape[0] else 0
    if z is None:
        z = reference.philox_normal(*keys, _step(noise), _NORMALS, elements, x.dtype).reshape(x.shape)
    if u is None:
        u = reference.philox_uniform(*keys, _step(noise), _UNIFORMS, elements if noise.element else 1, x.dtype)
    u = u.reshape(x.shape) if noise.element else u.reshape(-1, *[1] * (x.ndim - 1))
    return z.to(x.dtype), u.to(x.dtype)


def _working(tensors: Sequence[Tensor | None], outputs: int = 1) -> list[Tensor | None]:
    """The inputs, dense, in float64 if any tensor is, else in float32. (torch rounds otherwise where strides are.)"""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    dtype = torch.float64 if wide else torch.float32
    return [None if t is None else t.to(dtype).contiguous() for t in tensors[:-outputs]]


def _stored(fit: Fitting, dtype: torch.dtype) -> Fitting:
    """The fit of the weight that a mixture in this dtype stores: with it a closed fit has the right moments."""
    if fit.fit == "adan":
        return fit
    return fit._replace(weight=torch.tensor(fit.weight, dtype=dtype, device="cpu").item())


def _coefficients(step: Stepping, numbers: Tensor | None, dtype: torch.dtype) -> Sequence[float | Tensor]:
    """(alpha_t, sigma_t, A, B, c, var_max) back from the kernels' numbers."""
    inv_alpha, r, _, _, A, B, _, c, var_max, _ = step.numbers if numbers is None else numbers.to(dtype)
    return 1 / inv_alpha, r / inv_alpha, A, B, c, var_max


def gms_step(
    tensors: Sequence[Tensor | None],
    layout: Layout | None,
    step: Stepping,
    numbers: Tensor | None,
    fit: Fitting,
    noise: Noise,
) -> None:
    x, e1, e2, e3 = _working(tensors)
    clip = None if step.lo == -torch.inf and step.hi == torch.inf else (step.lo, step.hi)
    options = {"moments": step.moments, "central": step.central, "clip": clip, **_stored(fit, x.dtype)._asdict()}
    coefficients = _coefficients(step, numbers, x.dtype)
    tensors[-1].copy_(reference.gms_step(x, e1, e2, e3, coefficients, *_draws(noise, x), **options))


def sample_mixture(tensors: Sequence[Tensor], layout: Layout | None, floor: float, fit: Fitting, noise: Noise) -> None:
    mean, var, third = _working(tensors)
    fit = _stored(fit, mean.dtype)
    tensors[-1].copy_(reference.sample_mixture(mean, var, third, floor, *_draws(noise, mean), *fit))


def fit_mixture(tensors: Sequence[Tensor], layout: Layout | None, floor: float, fit: Fitting) -> None:
    mean, var, third = _working(tensors, outputs=4)
    moments = mean, *reference.split_variance(var, floor, fit.fit), third
    fitted = reference.fit_mixture(*moments, *_stored(fit, mean.dtype))
    for target, value in zip(tensors[3:], fitted, strict=True):
        target.copy_(value)


def affine_noise(
    tensors: Sequence[Tensor],
    layout: Layout | None,
    weights: Sequence[float],
    numbers: Tensor | None,
    noisy: bool,
    noise: Noise,
) -> None:
    x, *terms = _working(tensors)
    *weights, std = weights
    constant = 0.0
    if numbers is not None:
        *weights, last = numbers.to(x.dtype)
        std, constant = (last, constant) if numbers.ndim == 1 else (std, last)
    z = _draws(noise, x)[0] if noisy else torch.zeros_like(x)
    tensors[-1].copy_(reference.affine_noise(x, terms, weights, std, z, constant))


def philox(out: Tensor, noise: Noise, stream: int, normal: bool) -> None:
    generate = reference.philox_normal if normal else reference.philox_uniform
    dtype = torch.promote_types(out.dtype, torch.float32)
    elements = out.numel() // max(out.shape[0], 1)
    keys = _keys(noise, out.shape[0], out.device)
    out.copy_(generate(*keys, _step(noise), stream, elements, dtype).reshape(out.shape))
