"""The "torch" backend: the reference on any device.

It computes in float64 for float64 inputs and in float32 for all others.
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from gms_fast.ops import reference
from gms_fast.ops.layout import Layout
from gms_fast.ops.types import ADDED, WRITTEN, Draws, Fit, Linear, Stepping, StepTensors, Tensors, Watch

T = TypeVar("T", Tensor, Tensor | None)
_NORMALS, _UNIFORMS = 0, 1


def _keys(draws: Draws, samples: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return key (B,) and sample index (B,) of every sample."""
    seed = draws.seed
    if isinstance(seed, Tensor) and seed.ndim:
        return seed, torch.zeros_like(seed)
    index = torch.arange(samples, dtype=torch.int64, device=device) + draws.sample_offset
    if isinstance(seed, Tensor):
        return seed.expand(samples), index
    return torch.full_like(index, (seed + (1 << 63)) % (1 << 64) - (1 << 63)), index  # as int64 bits


def _drawn(draws: Draws, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return z like x, and u like x or (B, 1, ..)."""
    _, step, _, component, z, u = draws
    element = component == "element"
    keys, elements = _keys(draws, x.shape[0], x.device), x[0].numel() if x.shape[0] else 0
    if not isinstance(z, Tensor):
        z = reference.philox_normal(*keys, step, _NORMALS, elements, x.dtype).reshape(x.shape)
    if u is None:
        u = reference.philox_uniform(*keys, step, _UNIFORMS, elements if element else 1, x.dtype)
    u = u.reshape(x.shape) if element else u.reshape(-1, *[1] * (x.ndim - 1))
    return z.to(x.dtype), u.to(x.dtype)


def _working_dtype(tensors: Sequence[Tensor | None]) -> torch.dtype:
    """Return float64 if any tensor is float64, else float32."""
    return torch.float64 if any(t is not None and t.dtype == torch.float64 for t in tensors) else torch.float32


def _dense(tensors: Sequence[T], dtype: torch.dtype) -> list[T]:
    """Return the tensors in a dtype, contiguous: torch rounds differently on strided ones."""
    return [None if t is None else t.to(dtype).contiguous() for t in tensors]


def _stored(fit: Fit, dtype: torch.dtype) -> Fit:
    """Return the fit with its weight rounded to the dtype in which a mixture stores it.

    With that weight, a closed fit has the right moments.
    """
    if fit.kind == "adan":
        return fit
    return fit._replace(weight=torch.tensor(fit.weight, dtype=dtype, device="cpu").item())


def _coefficients(step: Stepping, numbers: Tensor | None, dtype: torch.dtype) -> Sequence[float | Tensor]:
    """Recover (alpha_t, sigma_t, A, B, c, var_max) from the kernels' numbers."""
    inv_alpha, r, _, _, A, B, _, c, var_max, _ = step.numbers if numbers is None else numbers.to(dtype)
    return 1 / inv_alpha, r / inv_alpha, A, B, c, var_max


def gms_step(
    tensors: StepTensors,
    layout: Layout | None,
    step: Stepping,
    numbers: Tensor | None,
    fit: Fit,
    draws: Draws,
    watch: Watch | None,
) -> None:
    out, dtype = tensors[5], _working_dtype(tensors)
    (x, e1), (e2, e3, without) = _dense(tensors[:2], dtype), _dense(tensors[2:5], dtype)
    for which, given in ((0, e1), (1, e2), (2, e3), (0, without)):
        look(watch, which, given)
    to = e1 if without is None else reference.led(e1, without, step.guidance)
    clip = None if step.lo == -torch.inf and step.hi == torch.inf else (step.lo, step.hi)
    x_s = reference.gms_step(
        x, e1, e2, e3, _coefficients(step, numbers, dtype), *_drawn(draws, x), to=to,
        moments=step.moments, central=step.central, clip=clip, **_stored(fit, dtype).flat(),
    )  # fmt: skip
    _write(out, x_s, watch)


def sample_mixture(tensors: Sequence[Tensor], layout: Layout | None, floor: float, fit: Fit, draws: Draws) -> None:
    *moments, out = tensors
    mean, var, third = _dense(moments, _working_dtype(tensors))
    z, u = _drawn(draws, mean)
    out.copy_(reference.sample_mixture(mean, var, third, floor, z, u, *_stored(fit, mean.dtype)))


def fit_mixture(tensors: Sequence[Tensor], layout: Layout | None, floor: float, fit: Fit) -> None:
    mean, var, third = _dense(tensors[:3], _working_dtype(tensors))
    base, excess = reference.split_variance(var, floor, fit.kind)
    fitted = reference.fit_mixture(mean, base, excess, third, *_stored(fit, mean.dtype))
    for target, value in zip(tensors[3:], fitted, strict=True):
        target.copy_(value)


def linear_step(
    tensors: Tensors,
    layout: Layout | None,
    step: Linear,
    numbers: Tensor | None,
    draws: Draws,
    watch: Watch | None,
) -> None:
    given: list[Any] = _dense(tensors[: 3 + step.terms], _working_dtype(tensors))
    x, output, without, *terms = given
    outs = list(tensors[3 + step.terms :])
    read, weights, rows = _numbers_of(step, numbers, x.dtype)
    m = None
    if step.reading is not None:
        look(watch, 0, output)
        look(watch, 0, without)
        led = output if without is None else reference.led(output, without, step.reading.guidance)
        m = reference.data_estimate(x, led, read[0], read[1], step.reading.lo, step.reading.hi)
        if step.keeps:
            _write(outs.pop(), m, watch)
    inputs = [x, m, *terms]
    for result, out in enumerate(outs):
        row = dict(zip(step.columns(result), rows, strict=False)) if step.present else _row(inputs, weights)
        total = reference.linear_step(inputs, [row.get(column) for column in range(len(inputs))], row.get(ADDED))
        if step.noisy and result == 0:
            total += weights[-1] * _drawn(draws, x)[0]
        _write(out, total, watch)


def _numbers_of(
    step: Linear, numbers: Tensor | None, dtype: torch.dtype
) -> tuple[Sequence[float | Tensor], Sequence[float | Tensor], Iterator[Tensor]]:
    """Return (of_x and of_output of the reading, weights, rows of weights by element)."""
    read = step.reading[:2] if step.reading is not None else ()
    if numbers is None:
        return read, step.weights, iter(())
    if numbers.ndim > 1:
        return read, step.weights, iter(numbers.to(dtype))
    values = list(numbers.to(dtype))
    return values[: len(read)], values[len(read) :], iter(())


def _row(inputs: Sequence[Tensor | None], weights: Sequence[float | Tensor]) -> dict[int, float | Tensor]:
    """Return the weights of the given inputs, by column."""
    return dict(zip((column for column, t in enumerate(inputs) if t is not None), weights, strict=False))


def _write(out: Tensor, result: Tensor, watch: Watch | None) -> None:
    out.copy_(result)
    look(watch, WRITTEN, out)


def look(watch: Watch | None, which: int, tensor: Tensor | None) -> None:
    """Record tensor number `which` of a step if it is not finite."""
    if watch is None or tensor is None:
        return
    first, code = watch
    first.copy_(torch.where(tensor.isfinite().all(), first, first.clamp(max=code + which)))


def philox(out: Tensor, draws: Draws, stream: int, normal: bool) -> None:
    generate = reference.philox_normal if normal else reference.philox_uniform
    dtype = torch.promote_types(out.dtype, torch.float32)
    elements = out.numel() // max(out.shape[0], 1)
    keys = _keys(draws, out.shape[0], out.device)
    out.copy_(generate(*keys, draws.step, stream, elements, dtype).reshape(out.shape))
