"""Corrections that make Triton's interpreter compute as a GPU does.

`replacements()` returns them as (object, name, value), to be set as attributes. Without them fma rounds twice, scalar
arguments are Python's float64, bfloat16 is truncated instead of rounded, and its subnormal numbers are misread.
"""

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_handle, _convert = interpreter.TensorHandle, interpreter._implicit_cvt
_truncate, _extend = interpreter.InterpreterBuilder.create_fp_trunc, interpreter.InterpreterBuilder.create_fp_ext


def replacements() -> list[tuple[object, str, object]]:
    builder = interpreter.InterpreterBuilder
    return [
        (interpreter, "_implicit_cvt", _argument),
        (builder, "create_fma", _create_fma),
        (builder, "create_fp_trunc", _create_fp_trunc),
        (builder, "create_fp_ext", _create_fp_ext),
    ]


def _argument(value: object) -> object:
    if isinstance(value, tuple):
        return type(value)(*map(_argument, value)) if hasattr(value, "_fields") else tuple(map(_argument, value))
    if isinstance(value, float):
        return tl.tensor(_handle(np.array([value], np.float32), tl.float32), tl.float32)
    return _convert(value)


def _create_fma(_builder: object, x: object, y: object, z: object) -> object:
    return _handle(_fused(x.data, y.data, z.data), z.dtype.scalar)


def _fused(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Return fl(x y + z) of float32 arrays, rounded once.

    The product is exact in float64. The sum is rounded to odd there: an inexact one has its last bit set. Rounding it
    again to float32 is then correct.
    """
    product, z = x.astype(np.float64) * y, z.astype(np.float64)
    total = product + z
    part = total - product
    error = (product - (total - part)) + (z - part)
    bits = np.ascontiguousarray(total).view(np.int64)
    even = (error != 0) & np.isfinite(total) & (bits & 1 == 0)
    odd = np.where(even, np.where((error > 0) == (total > 0), bits + 1, bits - 1), bits)
    return odd.view(np.float64).astype(np.float32)


def _create_fp_trunc(builder: object, value: object, dtype: object) -> object:
    if dtype.scalar != tl.bfloat16 or value.get_element_ty() != tl.float32:
        return _truncate(builder, value, dtype)
    bits = np.ascontiguousarray(value.data).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # round to nearest, ties to even
    return _handle(np.where(np.isnan(value.data), 0x7FC0, rounded).astype(np.uint16), dtype.scalar)


def _create_fp_ext(builder: object, value: object, dtype: object) -> object:
    if value.get_element_ty() != tl.bfloat16 or dtype.scalar != tl.float32:
        return _extend(builder, value, dtype)
    return _handle((np.ascontiguousarray(value.data).astype(np.uint32) << 16).view(np.float32), dtype.scalar)
