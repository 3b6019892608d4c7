"""Call the formulas of user-defined schedules with tensors, and check their results.

The library passes times as numbers, lists or tensors. A plain formula such as `1 - t**2` needs a tensor.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

Times = float | Sequence[float] | np.ndarray | Tensor
METHODS = ("alpha", "sigma", "log_alpha", "log_snr", "inverse_log_snr", "angle", "network_time", "from_network_time",
           "clock", "from_clock")  # fmt: skip


def as_float64(values: Times) -> Tensor:
    """Return `values` as a float64 tensor on the CPU."""
    values = values.cpu() if isinstance(values, Tensor) else values  # before the cast: devices may lack float64
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def convert(kind: type) -> None:
    """Let the formulas that a class itself defines take and return float64 tensors."""
    for name in METHODS:
        method = vars(kind).get(name)
        if inspect.isfunction(method):
            setattr(kind, name, _converted(method))


def _converted(formula: Callable[[Any, Tensor], Any]) -> Callable[[Any, Times], Tensor]:
    @functools.wraps(formula)
    def of_times(self: Any, t: Times) -> Tensor:
        times = as_float64(t)
        where = f"{type(self).__name__}.{formula.__name__}"
        try:
            return _tensor(formula(self, times), times, where)
        except (RuntimeError, TypeError, ValueError):
            if times.numel() < 2:
                raise
        # formulas with `math` or `if` take one time only
        return torch.stack([_tensor(formula(self, each), each, where) for each in times.flatten()]).view(times.shape)

    return of_times


def _tensor(values: Any, times: Tensor, where: str) -> Tensor:
    """Return the result of a formula as a tensor like the times.

    Raises TypeError or ValueError that names the formula.
    """
    try:
        found = as_float64(values)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{where} must return a number for each time: got {values!r}") from error
    if found.numel() not in (1, times.numel()):
        raise ValueError(f"{where} must return a number for each of {times.numel()} times: got {found.numel()} numbers")
    return found.expand_as(times) if found.numel() == 1 else found.view(times.shape)
