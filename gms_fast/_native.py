"""The compiled module: the only importer of `_C`. Marshals tensors to raw pointers; arguments arrive checked."""

import torch
from torch import Tensor

from gms_fast.arguments import Fitting, Noise, Stepping

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
_ABSENT = (0, 0)


def instruction_set() -> str | None:
    """The CPU instruction set in use: "avx512", "avx2" or "baseline"; None without the compiled module."""
    return _C.instruction_set() if available else None


def instruction_sets() -> tuple[str, ...]:
    """The ones this processor runs, widest first."""
    return _C.instruction_sets() if available else ()


def set_instruction_set(name: str) -> None:
    """Use one of `instruction_sets`; results do not depend on it, to the bit."""
    _C.set_instruction_set(name)


def _buffer(tensor: Tensor | None) -> tuple[int, int]:
    return _ABSENT if tensor is None else (tensor.data_ptr(), _DTYPES[tensor.dtype])


def _shape(x: Tensor) -> tuple[int, int]:
    return x.shape[0], x.numel() // max(x.shape[0], 1)


def _fit(fit: Fitting) -> tuple:
    return (_FITS[fit.fit], fit.weight, fit.iterations, fit.lr, fit.eps)


def _noise(noise: Noise) -> tuple:
    pointers = [0 if t is None else t.data_ptr() for t in (noise.seeds, noise.z, noise.u)]
    return (noise.seed, pointers[0], noise.sample_offset, noise.step, *pointers[1:], noise.element)


def _call(op: str, buffers: tuple[Tensor | None, ...], like: Tensor, *arguments: object) -> None:
    """`_C.op` on CPU tensors, `_C.cuda_op` on the current stream of a CUDA tensor's device."""
    pointers = [_buffer(t) for t in buffers]
    if like.is_cuda:
        with torch.cuda.device(like.device):
            stream = torch.cuda.current_stream().cuda_stream
            getattr(_C, f"cuda_{op}")(*pointers, *_shape(like), stream, *arguments)
    else:
        getattr(_C, op)(*pointers, *_shape(like), torch.get_num_threads(), *arguments)


def gms_step(
    x: Tensor, e1: Tensor, e2: Tensor | None, e3: Tensor | None, out: Tensor, step: Stepping, fit: Fitting, noise: Noise
) -> None:
    scheme = (*step.coefficients, step.lo, step.hi), _MOMENTS[step.moments], step.central
    _call("gms_step", (x, e1, e2, e3, out), x, *scheme, _fit(fit), _noise(noise))


def sample_mixture(
    mean: Tensor, var: Tensor, third: Tensor, out: Tensor, floor: float, fit: Fitting, noise: Noise
) -> None:
    _call("sample_mixture", (mean, var, third, out), mean, floor, _fit(fit), _noise(noise))


def fit_mixture(mean: Tensor, var: Tensor, third: Tensor, out: tuple[Tensor, ...], floor: float, fit: Fitting) -> None:
    _call("fit_mixture", (mean, var, third, *out), mean, floor, _fit(fit))


def philox(out: Tensor, noise: Noise, stream: int, normal: bool) -> None:
    _call("philox", (out,), out, _noise(noise), stream, normal)
