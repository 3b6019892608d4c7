"""The compiled module: the only importer of `_C`. Marshals tensors to raw pointers; arguments arrive checked."""

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from gms_fast.arguments import Fitting, Noise, Stepping
from gms_fast.layout import Layout

try:
    from gms_fast import _C
except ImportError as error:
    _C = None
    reason = f"the compiled module is missing ({error}); reinstall gms_fast with a C++17 compiler"
else:
    reason = ""

available = _C is not None
with_cuda = available and _C.with_cuda

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


@functools.lru_cache(1024)
def _scheme(fit: Fitting, floor: float = 0.0, step: Stepping = _NO_STEP):
    """Fit and step as the kernels take them, prepared once for many calls."""
    numbers = (*step.numbers, step.lo, step.hi)
    return _C.Scheme((_FITS[fit.fit], *fit[1:]), floor, numbers, _MOMENTS[step.moments], step.central)


def _address(tensor: Tensor | None) -> int:
    """Where the data of a tensor lies; 0 for no tensor, which a tensor without data must not be taken for."""
    if tensor is None:
        return 0
    address = tensor.data_ptr()
    if not address:
        raise RuntimeError(f"a tensor without data reached the kernels: {type(tensor).__name__} on {tensor.device}")
    return address


def _noise(noise: Noise) -> tuple:
    seed, seeds, sample_offset, step, step_at, z, u, element = noise
    if seeds is step_at is z is u is None:
        return seed, 0, False, sample_offset, step, 0, 0, 0, element
    shared = seeds is not None and seeds.ndim == 0
    return seed, _address(seeds), shared, sample_offset, step, _address(step_at), _address(z), _address(u), element


def _call(op: str, tensors: Sequence[Tensor | None], layout: Layout | None, *arguments: object) -> None:
    """`_C.op` on the threads of the CPU, or on the current stream of the tensors' GPU."""
    buffers: list[int] = []
    for t in tensors:
        buffers += (0, 0) if t is None else (t.data_ptr() or _address(t), _DTYPES[t.dtype])
    first = tensors[0]
    samples = first.shape[0]
    elements = first.numel() // samples
    if first.is_cuda:
        with torch.cuda.device(first.device):
            stream = torch.cuda.current_stream().cuda_stream
            getattr(_C, op)(True, stream, buffers, samples, elements, layout, *arguments)
    else:
        getattr(_C, op)(False, torch.get_num_threads(), buffers, samples, elements, layout, *arguments)


def gms_step(
    tensors: tuple[Tensor | None, ...],
    layout: Layout | None,
    step: Stepping,
    numbers: Tensor | None,
    fit: Fitting,
    noise: Noise,
) -> None:
    _call("gms_step", tensors, layout, _scheme(fit, 0.0, step), _address(numbers), _noise(noise))


def sample_mixture(
    tensors: tuple[Tensor, ...], layout: Layout | None, floor: float, fit: Fitting, noise: Noise
) -> None:
    _call("sample_mixture", tensors, layout, _scheme(fit, floor), _noise(noise))


def fit_mixture(tensors: tuple[Tensor, ...], layout: Layout | None, floor: float, fit: Fitting) -> None:
    _call("fit_mixture", tensors, layout, _scheme(fit, floor))


def affine_noise(
    tensors: tuple[Tensor, ...],
    layout: Layout | None,
    weights: tuple[float, ...],
    numbers: Tensor | None,
    noisy: bool,
    noise: Noise,
) -> None:
    by_element = numbers is not None and numbers.ndim > 1
    _call("affine_noise", tensors, layout, weights, _address(numbers), by_element, noisy, _noise(noise))


def philox(out: Tensor, noise: Noise, stream: int, normal: bool) -> None:
    _call("philox", (out,), None, _noise(noise), stream, normal)
