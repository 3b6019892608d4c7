"""The "torch" backend: the reference on any device, in float64 for float64 inputs and in float32 for all others."""

from collections.abc import Sequence

import torch
from torch import Tensor

from gms_fast.ops import reference
from gms_fast.ops.layout import Layout
from gms_fast.ops.types import Draws, Fit, Stepping

_NORMALS, _UNIFORMS = 0, 1


def _keys(draws: Draws, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Key (B,) and sample index (B,) of every sample."""
    seed = draws.seed
    if isinstance(seed, Tensor) and seed.ndim:
        return seed, torch.zeros_like(seed)
    index = torch.arange(samples, dtype=torch.int64, device=device) + draws.sample_offset
    if isinstance(seed, Tensor):
        return seed.expand(samples), index
    return torch.full_like(index, (seed + (1 << 63)) % (1 << 64) - (1 << 63)), index  # as int64 bits


def _drawn(draws: Draws, x: Tensor) -> tuple[Tensor, Tensor]:
    """z like x, and u like x or (B, 1, ..)."""
    _, step, _, component, z, u = draws
    element = component == "element"
    keys, elements = _keys(draws, x.shape[0], x.device), x[0].numel() if x.shape[0] else 0
    if not isinstance(z, Tensor):
        z = reference.philox_normal(*keys, step, _NORMALS, elements, x.dtype).reshape(x.shape)
    if u is None:
        u = reference.philox_uniform(*keys, step, _UNIFORMS, elements if element else 1, x.dtype)
    u = u.reshape(x.shape) if element else u.reshape(-1, *[1] * (x.ndim - 1))
    return z.to(x.dtype), u.to(x.dtype)


def _working(tensors: Sequence[Tensor | None], outputs: int = 1) -> list[Tensor | None]:
    """The inputs, dense, in float64 if any tensor is, else in float32. (torch rounds otherwise where strides are.)"""
    wide = any(t is not None and t.dtype == torch.float64 for t in tensors)
    dtype = torch.float64 if wide else torch.float32
    return [None if t is None else t.to(dtype).contiguous() for t in tensors[:-outputs]]


def _stored(fit: Fit, dtype: torch.dtype) -> Fit:
    """The fit of the weight that a mixture in this dtype stores: with it a closed fit has the right moments."""
    if fit.kind == "adan":
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
    fit: Fit,
    draws: Draws,
) -> None:
    x, e1, e2, e3 = _working(tensors)
    clip = None if step.lo == -torch.inf and step.hi == torch.inf else (step.lo, step.hi)
    options = {"moments": step.moments, "central": step.central, "clip": clip, **_stored(fit, x.dtype).flat()}
    coefficients = _coefficients(step, numbers, x.dtype)
    tensors[-1].copy_(reference.gms_step(x, e1, e2, e3, coefficients, *_drawn(draws, x), **options))


def sample_mixture(tensors: Sequence[Tensor], layout: Layout | None, floor: float, fit: Fit, draws: Draws) -> None:
    mean, var, third = _working(tensors)
    fit = _stored(fit, mean.dtype)
    tensors[-1].copy_(reference.sample_mixture(mean, var, third, floor, *_drawn(draws, mean), *fit))


def fit_mixture(tensors: Sequence[Tensor], layout: Layout | None, floor: float, fit: Fit) -> None:
    mean, var, third = _working(tensors, outputs=4)
    moments = mean, *reference.split_variance(var, floor, fit.kind), third
    fitted = reference.fit_mixture(*moments, *_stored(fit, mean.dtype))
    for target, value in zip(tensors[3:], fitted, strict=True):
        target.copy_(value)


def affine_noise(
    tensors: Sequence[Tensor],
    layout: Layout | None,
    weights: Sequence[float],
    numbers: Tensor | None,
    noisy: bool,
    draws: Draws,
) -> None:
    x, *terms = _working(tensors)
    *weights, std = weights
    constant = 0.0
    if numbers is not None:
        *weights, last = numbers.to(x.dtype)
        std, constant = (last, constant) if numbers.ndim == 1 else (std, last)
    z = _drawn(draws, x)[0] if noisy else torch.zeros_like(x)
    tensors[-1].copy_(reference.affine_noise(x, terms, weights, std, z, constant))


def philox(out: Tensor, draws: Draws, stream: int, normal: bool) -> None:
    generate = reference.philox_normal if normal else reference.philox_uniform
    dtype = torch.promote_types(out.dtype, torch.float32)
    elements = out.numel() // max(out.shape[0], 1)
    keys = _keys(draws, out.shape[0], out.device)
    out.copy_(generate(*keys, draws.step, stream, elements, dtype).reshape(out.shape))
