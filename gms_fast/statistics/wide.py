"""float64 where a device may have none: on the CPU, by conversions that happen there."""

from typing import Any

import torch
from torch import Tensor


def on_cpu(values: Any) -> Tensor:
    """`values`, of a tensor anywhere or numbers, as a float64 tensor on the CPU."""
    if isinstance(values, Tensor):
        return values.detach().cpu().double()
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def wide(x: Tensor) -> Tensor:
    """`x` in float64: where it is, or on the CPU where its device may have none."""
    return x.double() if x.is_cpu or x.is_cuda else x.cpu().double()


def beside(number: Tensor, x: Tensor) -> Tensor:
    """A float64 tensor () of the CPU where `x` is; in float32 where that may have no float64."""
    return number.to(x.device) if x.is_cpu or x.is_cuda else number.float().to(x.device)
