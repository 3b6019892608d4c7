"""Types of the compiled module, which csrc/bindings.cpp defines; `gms_fast.ops.native` is its only caller.

gpu     whether tensors lie there
where   the stream on it, or else the number of threads
given   tensors, or None, in an op's order, its result last
layout  as `gms_fast.ops.layout` describes how they lie; None where all are dense
draws   a `Draws` of gms_fast/ops/types.py, checked; of the ops that make their result, unchecked
"""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from gms_fast.ops.types import Draws, Watch

_Tensors = tuple[Tensor | None, ...]
_Layout = tuple[tuple[int, int, int], Sequence[tuple[int, int, int, int] | None]] | None

with_cuda: bool
cuda_architectures: str

class Scheme:
    """Which fit and which step, prepared for many calls."""

    def __init__(
        self,
        fit: tuple[int, float, int, float, float],
        floor: float,
        numbers: Sequence[float],
        moments: int,
        central: bool,
        guidance: float,
        /,
    ) -> None: ...

class Linear:
    """Which linear step, prepared for many calls."""

    def __init__(
        self,
        reading: tuple[float, ...] | None,
        weights: Sequence[float],
        terms: int,
        results: int,
        keeps: bool,
        noisy: bool,
        present: int,
        /,
    ) -> None: ...

def set_torch(module: ModuleType, tensor: type[Tensor], dtypes: tuple[torch.dtype, ...], /) -> None: ...
def alike(given: _Tensors, /) -> int: ...
def gms_step(
    gpu: bool,
    where: int,
    given: _Tensors,
    layout: _Layout,
    scheme: Scheme,
    numbers: Tensor | None,
    draws: Draws,
    watch: Watch | None,
    /,
) -> None: ...
def new_gms_step(
    gpu: bool, where: int, given: _Tensors, scheme: Scheme, draws: Draws, watch: Watch | None, /
) -> Tensor | None: ...
def sample_mixture(
    gpu: bool, where: int, given: _Tensors, layout: _Layout, scheme: Scheme, draws: Draws, /
) -> None: ...
def new_sample_mixture(gpu: bool, where: int, given: _Tensors, scheme: Scheme, draws: Draws, /) -> Tensor | None: ...
def fit_mixture(gpu: bool, where: int, given: _Tensors, layout: _Layout, scheme: Scheme, /) -> None: ...
def new_fit_mixture(
    gpu: bool, where: int, given: _Tensors, scheme: Scheme, /
) -> tuple[Tensor, Tensor, Tensor, Tensor] | None: ...
def linear_step(
    gpu: bool,
    where: int,
    given: _Tensors,
    layout: _Layout,
    step: Linear,
    numbers: Tensor | None,
    draws: Draws,
    watch: Watch | None,
    /,
) -> None: ...
def new_linear_step(
    gpu: bool,
    where: int,
    given: _Tensors,
    step: Linear,
    numbers: Tensor | None,
    draws: Draws,
    watch: Watch | None,
    /,
) -> tuple[Tensor, ...] | None: ...
def philox(
    gpu: bool, where: int, given: _Tensors, layout: _Layout, draws: Draws, stream: int, normal: bool, /
) -> None: ...
def elementary(name: str, x: float, /) -> float: ...
def instruction_set() -> str: ...
def set_instruction_set(name: str, /) -> None: ...
def instruction_sets() -> tuple[str, ...]: ...
