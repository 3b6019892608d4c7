"""The compiled module: the only importer of `_C`. Arguments arrive checked."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

from gms_fast.ops.layout import Layout
from gms_fast.ops.types import Fitting, Noise, Stepping


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
    _C, reason = None, why_not(error)
else:
    reason = ""

available = _C is not None
with_cuda = available and _C.with_cuda
cuda_architectures = tuple(filter(None, _C.cuda_architectures.split(","))) if available else ()

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_FITS = {"exact": 0, "free": 1, "adan": 2, "gaussian": 3}
_MOMENTS = {"cumulant": 0, "released": 1}
_NO_STEP = Stepping((0.0,) * 10, "cumulant", False, 0.0, 0.0)


def instruction_set() -> str | None:
    """The CPU instruction set in use: "avx512", "avx2" or "baseline"; None without the compiled module."""
    return _C.instruction_set() if available else None


def instruction_sets() -> tuple[str, ...]:
    """The ones this processor runs, widest first."""
    return _C.instruction_sets() if available else ()


def set_instruction_set(name: str) -> None:
    """Use one of `instruction_sets`; results do not depend on it, to the bit."""
    _C.set_instruction_set(name)


_schemes: dict[tuple[int, float, int], tuple[Fitting, Stepping, object]] = {}


def _scheme(fit: Fitting, floor: float = 0.0, step: Stepping = _NO_STEP):
    """Fit and step as the kernels take them, prepared once for many calls.

    Found by the identity of `fit` and `step`, which are made once too and cost more to hash than to keep.
    """
    key = id(fit), floor, id(step)
    found = _schemes.get(key)
    if found is None:
        if len(_schemes) > 1024:
            _schemes.clear()
        numbers = (*step.numbers, step.lo, step.hi)
        scheme = _C.Scheme((_FITS[fit.fit], *fit[1:]), floor, numbers, _MOMENTS[step.moments], step.central)
        found = _schemes[key] = fit, step, scheme
    return found[2]


def introduce(module: object) -> None:
    """Tell a build of the compiled module what tensors and their dtypes are."""
    module.set_torch(torch, Tensor, tuple(_DTYPES))


if available:
    introduce(_C)


def alike(tensors: tuple[Tensor, ...]) -> int:
    """The number of samples, if tensors can be read as they lie: plain, dense, not empty, of one shape and device, of
    dtypes that kernels take, asking for no gradient. 0 where they may still pass other checks, or there is no module.
    """
    return _C.alike(tensors) if available else 0


def _call(op: Callable[..., object], tensors: tuple[Tensor | None, ...], *arguments: object) -> object:
    """An op of `_C` on the threads of the CPU, or on the current stream of the tensors' GPU."""
    first = tensors[0]
    if not first.is_cuda:
        return op(False, torch.get_num_threads(), tensors, *arguments)
    index = first.get_device()
    stream = torch._C._cuda_getCurrentRawStream(index)
    if index == torch._C._cuda_getDevice():
        return op(True, stream, tensors, *arguments)
    with torch.cuda.device(index):
        return op(True, stream, tensors, *arguments)


def gms_step(
    tensors: tuple[Tensor | None, ...],
    layout: Layout | None,
    step: Stepping,
    numbers: Tensor | None,
    fit: Fitting,
    noise: Noise,
) -> None:
    _call(_C.gms_step, tensors, layout, _scheme(fit, 0.0, step), numbers, noise)


def sample_mixture(
    tensors: tuple[Tensor, ...], layout: Layout | None, floor: float, fit: Fitting, noise: Noise
) -> None:
    _call(_C.sample_mixture, tensors, layout, _scheme(fit, floor), noise)


def fit_mixture(tensors: tuple[Tensor, ...], layout: Layout | None, floor: float, fit: Fitting) -> None:
    _call(_C.fit_mixture, tensors, layout, _scheme(fit, floor))


def affine_noise(
    tensors: tuple[Tensor, ...],
    layout: Layout | None,
    weights: tuple[float, ...],
    numbers: Tensor | None,
    noisy: bool,
    noise: Noise,
) -> None:
    _call(_C.affine_noise, tensors, layout, weights, numbers, noisy, noise)


def philox(out: Tensor, noise: Noise, stream: int, normal: bool) -> None:
    _call(_C.philox, (out,), None, noise, stream, normal)


# The same into a new tensor, in one call of `_C`. Tensors and draws (the arguments of `checks.noise_of` in order) are
# not yet checked: None where something about them is wrong, or only unusual.


def new_gms_step(tensors: tuple[Tensor | None, ...], step: Stepping, fit: Fitting, draws: tuple) -> Tensor | None:
    return _call(_C.new_gms_step, tensors, _scheme(fit, 0.0, step), draws)


def new_sample_mixture(tensors: tuple[Tensor, ...], floor: float, fit: Fitting, draws: tuple) -> Tensor | None:
    return _call(_C.new_sample_mixture, tensors, _scheme(fit, floor), draws)


def new_affine_noise(tensors: tuple[Tensor, ...], weights: tuple[float, ...], draws: tuple) -> Tensor | None:
    return _call(_C.new_affine_noise, tensors, weights, draws)
