"""The compiled module `gms_fast._C`, imported by this file alone, and its ops.

The ops take checked arguments.
"""

import functools
from collections.abc import Callable
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from gms_fast.ops.layout import Layout
from gms_fast.ops.types import Draws, Fit, Linear, Stepping, StepTensors, Tensors, Watch


def why_not(error: ImportError) -> str:
    """Return the reason why the compiled module is missing, and how to get it."""
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
    """Return the CPU instruction set in use: "avx512", "avx2" or "baseline".

    None without the compiled module.
    """
    return compiled.instruction_set() if available else None


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that this processor runs, widest first."""
    return compiled.instruction_sets() if available else ()


def set_instruction_set(name: str) -> None:
    """Use one of `instruction_sets`; all of them give the same bits."""
    compiled.set_instruction_set(name)


_schemes: dict[tuple[int, float, int], tuple[Fit, Stepping, "compiled.Scheme"]] = {}


def scheme(fit: Fit, floor: float = 0.0, step: Stepping = _NO_STEP) -> "compiled.Scheme":
    """Return fit and step in the kernels' form, prepared once for many calls.

    They are found by the identity of `fit` and `step`, which are also made once and cost more to hash than to keep.
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
    """Return a linear step in the kernels' form, prepared once for many calls."""
    reading = None if step.reading is None else (*step.reading[:2], step.reading.guidance, *step.reading[2:4])
    return compiled.Linear(reading, step.weights, *step[2:])


def introduce(module: ModuleType) -> None:
    """Tell a build of the compiled module the classes of tensors and dtypes."""
    module.set_torch(torch, Tensor, tuple(_DTYPES))


if available:
    introduce(compiled)


def alike(tensors: tuple[Tensor | None, ...]) -> int:
    """Return the number of samples if kernels can read all tensors in place, else 0.

    Such tensors are plain, dense and not empty, of one shape and device, of dtypes that kernels take, and ask for no
    gradient. With 0 they may still pass other checks. It is always 0 without the compiled module.
    """
    return compiled.alike(tensors) if available else 0


def where(first: Tensor) -> tuple[bool, int] | None:
    """Return (on a GPU?, the current stream there or the number of CPU threads).

    None for a tensor on a GPU other than the current one.
    """
    if not first.is_cuda:
        return False, torch.get_num_threads()
    index = first.get_device()
    return (True, torch._C._cuda_getCurrentRawStream(index)) if index == torch._C._cuda_getDevice() else None


def _call(op: Callable[..., None], first: Tensor, *arguments: object) -> None:
    """Run an op of `compiled` on the device of its first tensor."""
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
