"""Tensor layouts for backends that read any of them without copying."""

from collections.abc import Sequence

from torch import Tensor

DIMENSIONS = 3  # inside a sample; enough for channels_last, slices of channels, and expanded tensors

Layout = tuple[tuple[int, ...], tuple[tuple[int, ...] | None, ...]]


def layout_of(tensors: Sequence[Tensor | None]) -> Layout | None:
    """Return (sizes inside a sample, strides of each tensor), or None for a layout too complex.

    Strides are that of the sample, then those of the sizes, in logical order. Neighbouring dimensions that merge for
    all tensors are one. The strides are None for a dense tensor and for no tensor. The whole layout is None if more
    than `DIMENSIONS` remain.
    """
    given = [t for t in tensors if t is not None]
    sizes, *strides = _merged(given[0].shape[1:], [t.stride()[1:] for t in given])
    if len(sizes) > DIMENSIONS:
        return None
    missing = DIMENSIONS - len(sizes)
    inner = iter(strides)
    places = [None if t is None else (t.stride(0), *[0] * missing, *next(inner)) for t in tensors]
    return (*[1] * missing, *sizes), tuple(
        None if t is None or t.is_contiguous() else place for t, place in zip(tensors, places, strict=True)
    )


def _merged(shape: Sequence[int], strides: list[Sequence[int]]) -> list[list[int]]:
    """Return sizes and each tensor's strides, outermost first, with as few entries as possible."""
    sizes: list[int] = []
    merged: list[list[int]] = [[] for _ in strides]
    for d in range(len(shape) - 1, -1, -1):
        if shape[d] == 1:
            continue
        if sizes and all(s[d] == m[0] * sizes[0] for s, m in zip(strides, merged, strict=True)):
            sizes[0] *= shape[d]
            continue
        sizes.insert(0, shape[d])
        for s, m in zip(strides, merged, strict=True):
            m.insert(0, s[d])
    return [sizes, *merged]
