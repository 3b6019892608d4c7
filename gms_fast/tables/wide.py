"""float64 on the CPU, for devices that may lack it."""

from typing import Any

import torch
from torch import Tensor

from gms_fast.schedules.base import as_float64


def home(device: torch.device) -> torch.device:
    """Return the device that computes in float64 for tensors of `device`.

    CUDA tensors stay there, because a CUDA graph can copy nothing from the CPU.
    """
    return device if device.type in ("cpu", "cuda") else torch.device("cpu")


def wide(x: Tensor) -> Tensor:
    """Return `x` in float64, on a device that has it."""
    return x.to(home(x.device)).double()


def beside(number: Tensor, x: Tensor) -> Tensor:
    """Return a float64 tensor () of the CPU on the device of `x`, as float32 if need be."""
    return number.to(x.device) if home(x.device) == x.device else number.float().to(x.device)


def on_cpu(values: Any) -> Tensor:
    """Return `values`, a tensor anywhere or numbers, as a float64 tensor on the CPU."""
    return as_float64(values).detach()
