"""Find NaN and infinity and name their place, without extra passes or waiting for a GPU."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from gms_fast.ops import plain
from gms_fast.ops.types import WRITTEN, Watch

NOTHING = 2**31 - 1  # no NaN or infinity so far
BEFORE = -1  # code of NaN or infinity before the first step
_OF_A_PLACE = WRITTEN + 1  # number of codes per index of the plan


def recorded(tensor: Tensor) -> bool:
    """Tell whether no values exist yet: under torch.compile, or in a CUDA graph capture."""
    return torch.compiler.is_compiling() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def place_of(code: int) -> tuple[int, int]:
    """Return (index in the plan, number of the tensor as `Watch` counts) of a code."""
    return divmod(code, _OF_A_PLACE)


class FiniteCheck:
    """One int32 on the device in which a run's kernels note the first NaN or infinity.

    `look` reads it on a CPU and raises the error; `report` does so on any device. While a CUDA graph is
    captured no value exists yet. The check then becomes part of the graph, which resets it at every replay,
    and a `report` after the replay reads it. Under torch.compile nothing is checked.

    Args:
        explain: Callable (code, whether the network returns moments) -> error message. The code is one
            that `place_of` reads, or `BEFORE`.

    Attributes:
        made: Last tensor written by a kernel with a check.
        of_moments: Whether the network returns moments.
    """

    def __init__(self, explain: Callable[[int, bool], str]) -> None:
        self._explain = explain
        self._first: Tensor | None = None
        self._on_host: np.ndarray | None = None
        self._noted: list[Tensor] = []
        self.made: Tensor | None = None
        self.of_moments = False

    def begin(self, like: Tensor) -> None:
        """Start checking, on the device of `like`."""
        if torch.compiler.is_compiling() or peek_interpreter_stack() is not None:  # as under torch.func
            return
        self._noted = []
        self._first = torch.full((1,), NOTHING, dtype=torch.int32, device=like.device)
        self._on_host = self._first.numpy() if like.is_cpu and not recorded(like) else None

    def watch(self, place: int) -> Watch | None:
        """Return the kernels' part of the check at an index of the plan."""
        return None if self._first is None else Watch(self._first, _OF_A_PLACE * place)

    def see(self, tensor: Tensor | None, code: int) -> None:
        """Check a tensor that no kernel has checked."""
        if self._first is None or tensor is None or not tensor.numel():
            return
        if self._on_host is None:
            plain.look(Watch(self._first, code), 0, tensor)
        elif not all(map(math.isfinite, torch.stack(tensor.aminmax()).tolist())):
            raise ValueError(self._explain(code, self.of_moments))

    def look(self) -> None:
        """Raise the error if there is one on a CPU; a GPU is not waited for."""
        if self._on_host is not None and self._on_host[0] != NOTHING:
            self.report()

    def note(self, number: Tensor) -> None:
        """Keep a number () on the device until `report` copies it to the host."""
        self._noted.append(number)

    def report(self) -> list[float]:
        """Return the numbers noted since the last report. Raises ValueError for NaN or infinity."""
        noted, self._noted = self._noted, []
        if self._first is None or recorded(self._first):
            return []
        bits = [number.float().view(torch.int32) for number in noted]
        found = torch.stack([self._first[0], *bits]).cpu()  # waits for a GPU once
        if (code := int(found[0])) != NOTHING:
            raise ValueError(self._explain(code, self.of_moments))
        return found[1:].view(torch.float32).tolist()
