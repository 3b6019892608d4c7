"""NaN and infinity are errors that name their place, and looking for them costs no pass and makes no host wait."""

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack

from gms_fast.ops import plain
from gms_fast.ops.types import WRITTEN, Watch

NOTHING = 2**31 - 1  # seen
BEFORE = -1  # code of what was wrong before the first step
_OF_A_PLACE = WRITTEN + 1  # codes


def recorded(tensor: Tensor) -> bool:
    """Tell whether the caller is compiled, or on the tensor's device captured in a CUDA graph: no value exists yet."""
    return torch.compiler.is_compiling() or (tensor.is_cuda and torch.cuda.is_current_stream_capturing())


def place_of(code: int) -> tuple[int, int]:
    """(place in the plan, number of the tensor there as `Watch` counts them) of a code."""
    return divmod(code, _OF_A_PLACE)


class FiniteCheck:
    """One int32 on the device that the kernels of a run note the first NaN or infinity in.

    explain  the error of a code, `place_of` it or `BEFORE`, and of whether the network gives moments
    made     the last tensor that a kernel which looked has made

    It is read, and the error raised, by `look` where that waits for nobody, else by `report`. While a CUDA graph is
    captured no value exists yet: it becomes part of the graph, which sets it anew at every replay, for a `report` after
    that. While the caller is compiled nothing is looked at.
    """

    def __init__(self, explain: Callable[[int, bool], str]) -> None:
        self._explain = explain
        self._first: Tensor | None = None
        self._on_host: np.ndarray | None = None
        self._noted: list[Tensor] = []
        self.made: Tensor | None = None
        self.of_moments = False

    def begin(self, like: Tensor) -> None:
        """Start to look, on the device of `like`."""
        if torch.compiler.is_compiling() or peek_interpreter_stack() is not None:  # as under torch.func
            return
        self._noted = []
        self._first = torch.full((1,), NOTHING, dtype=torch.int32, device=like.device)
        self._on_host = self._first.numpy() if like.is_cpu and not recorded(like) else None

    def watch(self, place: int) -> Watch | None:
        """The look-out for kernels at a place of the plan."""
        return None if self._first is None else Watch(self._first, _OF_A_PLACE * place)

    def see(self, tensor: Tensor | None, code: int) -> None:
        """Look at a tensor that no kernel looked at."""
        if self._first is None or tensor is None or not tensor.numel():
            return
        if self._on_host is None:
            plain.look(Watch(self._first, code), 0, tensor)
        elif not all(map(math.isfinite, torch.stack(tensor.aminmax()).tolist())):
            raise ValueError(self._explain(code, self.of_moments))

    def look(self) -> None:
        """Raise the error of what was seen on a CPU; a GPU is not waited for."""
        if self._on_host is not None and self._on_host[0] != NOTHING:
            self.report()

    def note(self, number: Tensor) -> None:
        """Have `report` bring a number () to the host."""
        self._noted.append(number)

    def report(self) -> list[float]:
        """The numbers noted since the last report. Raises ValueError for the first NaN or infinity."""
        noted, self._noted = self._noted, []
        if self._first is None or recorded(self._first):
            return []
        bits = [number.float().view(torch.int32) for number in noted]
        found = torch.stack([self._first[0], *bits]).cpu()  # a GPU is waited for once
        if (code := int(found[0])) != NOTHING:
            raise ValueError(self._explain(code, self.of_moments))
        return found[1:].view(torch.float32).tolist()
