"""Check of the classes y, one per sample, that a network takes."""

import torch
from torch import Tensor


def check_classes(y: object, rows: int, num_classes: int, no_class: int | None) -> None:
    """Raise ValueError unless y holds valid classes, integers (rows,) or (1,).

    Valid are 0 .. num_classes - 1, and `no_class` if there is one. Values on a GPU are not checked, as that would wait
    for the GPU.
    """
    whole = isinstance(y, Tensor) and not (y.is_floating_point() or y.is_complex() or y.dtype == torch.bool)
    if not isinstance(y, Tensor) or not whole or y.ndim != 1 or len(y) not in (1, rows):
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"y must be an integer tensor ({rows},), one class per sample: got {got}")
    if torch.compiler.is_compiling() or not y.is_cpu or not len(y):
        return
    low, high = (int(v) for v in y.aminmax())
    if low < 0 or high >= num_classes + (no_class is not None):
        none = "" if no_class is None else f", or be {no_class} for no class"
        raise ValueError(f"y must lie in 0 .. {num_classes - 1}{none}: got {low} .. {high}")
