"""The compiled module `gms_fast._C`, which this file alone imports, and its ops on checked arguments."""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from gms_fast.ops.layout import Layout
from gms_fast.ops.types import Draws, Fit, Linear, Stepping, StepTensors, Tensors, Watch


def why_not(error: ImportError) -> str:
    """Reason for the missing compiled module, and how to get one."""
    if find_spec("gms_fast._C") is None:
        return (
            "the compiled module was not built for this Python (GMS_FAST_PURE=1 leaves it out): reinstall gms_fast "
            "with a C++17 compiler, and without GMS_FAST_PURE"
        )
    return f"the compiled module is there, but cannot be loaded ({error}): reinstall gms_fast with a C++17 compiler"


try:
    from gms_fast import _C
except ImportError as error:
    reason = why_not(error)
else:
    compiled = _C
    reason = ""

available = not reason  # else there is no `compiled`
with_cuda = available and compiled.with_cuda
cuda_architectures = tuple(filter(None, compiled.cuda_architectures.split(","))) if available else ()

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FITS = {"exact": 0, "free": 1, "adan": 2, "gaussian": 3}
_MOMENTS = {"cumulant": 0, "released": 1}
_NO_STEP = Stepping((0.0,) * 10, "cumulant", False, 0.0, 0.0)


def instruction_set() -> str | None:
    """The CPU instruction set in use: "avx512", "avx2" or "baseline"; None without the compiled module."""
    return compiled.instruction_set() if available else None


def instruction_sets() -> tuple[str, ...]:
    """The ones this processor runs, widest first."""
    return compiled.instruction_sets() if available else ()


def set_instruction_set(name: str) -> None:
    """Use one of `instruction_sets`; results do not depend on it, to the bit."""
    compiled.set_instruction_set(name)


_schemes: dict[tuple[int, float, int], tuple[Fit, Stepping, "compiled.Scheme"]] = {}


def scheme(fit: Fit, floor: float = 0.0, step: Stepping = _NO_STEP) -> "compiled.Scheme":
    """Fit and step as the kernels take them, prepared once for many calls.

    Found by the identity of `fit` and `step`, which are made once too and cost more to hash than to keep.
    """
    key = id(fit), floor, id(step)
    found = _schemes.get(key)
    if found is None:
        if len(_schemes) > 1024:
            _schemes.clear()
        numbers = (*step.numbers, step.lo, step.hi)
        made = compiled.Scheme(
            (_FITS[fit.kind], *fit[1:]), floor, numbers, _MOMENTS[step.moments], step.central, step.guidance
        )
        found = _schemes[key] = fit, step, made
    return found[2]


@functools.lru_cache(4096)
def linear(step: Linear) -> "compiled.Linear":
    """A linear step as the kernels take it, prepared once for many calls."""
    reading = None if step.reading is None else (*step.reading[:2], step.reading.guidance, *step.reading[2:4])
    return compiled.Linear(reading, step.weights, *step[2:])


def introduce(module: ModuleType) -> None:
    """Tell a build of the compiled module what tensors and their dtypes are."""
    module.set_torch(torch, Tensor, tuple(_DTYPES))


if available:
    introduce(compiled)


def alike(tensors: tuple[Tensor | None, ...]) -> int:
    """The number of samples, if tensors can be read as they lie: plain, dense, not empty, of one shape and device, of
    dtypes that kernels take, asking for no gradient. 0 where they may still pass other checks, or there is no module.
    """
    return compiled.alike(tensors) if available else 0


def where(first: Tensor) -> tuple[bool, int] | None:
    """(whether a tensor is on a GPU, the current stream there or the threads of the CPU); None on another GPU."""
    if not first.is_cuda:
        return False, torch.get_num_threads()
    index = first.get_device()
    return (True, torch._C._cuda_getCurrentRawStream(index)) if index == torch._C._cuda_getDevice() else None


def _call(op: Callable[..., None], first: Tensor, *arguments: object) -> None:
    """Run an op of `compiled` where its first tensor is."""
    place = where(first)
    if place is not None:
        op(*place, *arguments)
        return
    index = first.get_device()
    with torch.cuda.device(index):
        op(True, torch._C._cuda_getCurrentRawStream(index), *arguments)


def gms_step(
    tensors: StepTensors,
    layout: Layout | None,
    step: Stepping,
    numbers: Tensor | None,
    fit: Fit,
    draws: Draws,
    watch: Watch | None,
) -> None:
    _call(compiled.gms_step, tensors[0], tensors, layout, scheme(fit, 0.0, step), numbers, draws, watch)


def sample_mixture(tensors: tuple[Tensor, ...], layout: Layout | None, floor: float, fit: Fit, draws: Draws) -> None:
    _call(compiled.sample_mixture, tensors[0], tensors, layout, scheme(fit, floor), draws)


def fit_mixture(tensors: tuple[Tensor, ...], layout: Layout | None, floor: float, fit: Fit) -> None:
    _call(compiled.fit_mixture, tensors[0], tensors, layout, scheme(fit, floor))


def linear_step(
    tensors: Tensors,
    layout: Layout | None,
    step: Linear,
    numbers: Tensor | None,
    draws: Draws,
    watch: Watch | None,
) -> None:
    _call(compiled.linear_step, tensors[0], tensors, layout, linear(step), numbers, draws, watch)


def philox(out: Tensor, draws: Draws, stream: int, normal: bool) -> None:
    _call(compiled.philox, out, (out,), None, draws, stream, normal)
