"""float64 where a device may have none: on the CPU, by conversions that happen there."""

from typing import Any

import torch
from torch import Tensor

from gms_fast.schedules.base import as_float64


def home(device: torch.device) -> torch.device:
    """The device that computes in float64 for tensors of `device`. A CUDA graph can copy nothing from the CPU."""
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def wide(x: Tensor) -> Tensor:
    """`x` in float64, where that is computed."""
    return x.to(home(x.device)).double()


def beside(number: Tensor, x: Tensor) -> Tensor:
    """A float64 tensor () of the CPU where `x` is; in float32 where there may be no float64."""
    return number.to(x.device) if home(x.device) == x.device else number.float().to(x.device)


def on_cpu(values: Any) -> Tensor:
    """`values`, a tensor anywhere or numbers, as a float64 tensor on the CPU."""
    return as_float64(values).detach()
