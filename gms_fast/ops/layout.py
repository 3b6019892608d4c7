"""Layouts of tensors, for backends that take any of them without copying."""

from collections.abc import Sequence

from torch import Tensor

DIMENSIONS = 3  # inside a sample; enough for channels_last, slices of channels, and expanded tensors

Layout = tuple[tuple[int, ...], tuple[tuple[int, ...] | None, ...]]


def layout_of(tensors: Sequence[Tensor | None]) -> Layout | None:
    """(sizes inside a sample, strides of each tensor: of the sample, then of those sizes), in logical order.

    Neighbouring dimensions that merge for all tensors are one. The strides are None for a dense tensor (and no
    tensor). The layout is None where more than `DIMENSIONS` are left.
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
    """The sizes, and for each tensor its strides, outermost first, as few of them as there can be."""
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
