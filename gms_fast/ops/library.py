"""The ops as `torch.ops.gms_fast.*`: schemas, checks, fakes and the one place that picks a backend.

Every implementation checks its arguments (compiled backends work on raw pointers), makes them contiguous in logical
order, allocates the output and hands over. All ops are forward only.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gms_fast import _native, dispatch
from gms_fast.arguments import Fitting, Noise, Stepping
from gms_fast.ops import plain

FITS = ("exact", "free", "adan", "gaussian")
MOMENTS = ("cumulant", "released")
COMPONENTS = ("sample", "element")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_FIT = 'str fit="exact", float weight=0.3333333333333333, int iterations=70, float lr=0.06, float eps=1e-8'
_NOISE = 'int seed=0, Tensor? seeds=None, int step=0, int sample_offset=0, str component="element"'
_DRAWS = "Tensor? z=None, Tensor? u=None"
_STEP = (
    "Tensor x, Tensor e1, Tensor? e2, Tensor? e3, float[] coefficients, *, "
    f'{_FIT}, {_NOISE}, str moments="cumulant", bool central=False, float? lo=-1.0, float? hi=1.0, {_DRAWS}'
)
_MIXTURE = "Tensor mean, Tensor var, Tensor third, float floor=0.0"
_SHAPE = "int[] shape, *, int seed=0, Tensor? seeds=None, int step=0, int stream=0, int sample_offset=0"
SCHEMAS = (
    f"fit_mixture({_MIXTURE}, *, {_FIT}) -> (Tensor, Tensor, Tensor, Tensor)",
    f"sample_mixture({_MIXTURE}, *, {_FIT}, {_NOISE}, {_DRAWS}) -> Tensor",
    f"gms_step({_STEP}) -> Tensor",
    f"gms_step_out({_STEP}, Tensor(a!) out) -> ()",
    f"philox_normal({_SHAPE}, ScalarType? dtype=None, Device? device=None) -> Tensor",
    f"philox_uniform({_SHAPE}, ScalarType? dtype=None, Device? device=None) -> Tensor",
)


def _backend(device: torch.device, *tensors: Tensor | None) -> object:
    """The module whose functions take these tensors."""
    if any(t is not None and t.dtype == torch.float64 for t in tensors):
        return plain  # float64 is the reference path
    name = dispatch.chosen(device.type)
    if name == "triton":
        from gms_fast.ops import triton

        return triton
    return plain if name == "torch" else _native


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}: got {value!r}")


def check_sample_offset(sample_offset: int, samples: int) -> None:
    """Raise ValueError unless the indices of `samples` samples from `sample_offset` on fit in 56 bits."""
    if not 0 <= sample_offset <= (1 << 56) - samples:
        raise ValueError(f"sample_offset must lie in [0, 2^56 - {samples}]: got {sample_offset}")


def _check_tensor(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    if tensor.shape != like.shape:
        raise ValueError(f"{name} must match {like_name}: got {tuple(tensor.shape)}, want {tuple(like.shape)}")
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like_name}'s device: got {tensor.device}, want {like.device}")
    _check_dtype(name, tensor.dtype)


def _check_dtype(name: str, dtype: torch.dtype) -> None:
    if dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64: got {dtype}")


def _check_inputs(**tensors: Tensor | None) -> None:
    """The first tensor sets shape and device; None passes. Asking for a gradient is an error."""
    (first_name, first), *_ = tensors.items()
    if first is None:
        raise TypeError(f"{first_name} must be a tensor: got None")
    if first.ndim == 0:
        raise ValueError(f"{first_name} must be (B, *) with at least one dimension: got a scalar")
    for name, tensor in tensors.items():
        if tensor is None:
            if name in ("e2", "e3"):
                continue
            raise TypeError(f"{name} must be a tensor: got None")
        _check_tensor(name, tensor, first, first_name)
        if tensor.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"gms_fast ops are forward only, but {name} requires a gradient: detach it or use torch.no_grad()"
            )


def _fitting(
    fit: str = "exact", weight: float = 1 / 3, iterations: int = 70, lr: float = 0.06, eps: float = 1e-8
) -> Fitting:
    check_choice("fit", fit, FITS)
    if not 0 < weight < 1:
        raise ValueError(f"weight must lie in (0, 1): got {weight}")
    if weight == 0.5 and fit in ("exact", "free"):
        raise ValueError("weight must not be 1/2: a symmetric mixture has no third moment")
    if iterations < 0:
        raise ValueError(f"iterations must not be negative: got {iterations}")
    return Fitting(fit, weight, iterations, lr, eps)


def _noise(
    samples: int,
    device: torch.device,
    seed: int = 0,
    seeds: Tensor | None = None,
    step: int = 0,
    sample_offset: int = 0,
    component: str = "element",
    z: Tensor | None = None,
    u: Tensor | None = None,
    like: Tensor | None = None,
) -> Noise:
    check_choice("component", component, COMPONENTS)
    if not 0 <= step < 1 << 32:
        raise ValueError(f"step must lie in [0, 2^32): got {step}")
    check_sample_offset(sample_offset, samples)
    if seeds is not None:
        if seeds.shape != (samples,) or seeds.dtype != torch.int64 or seeds.device != device:
            got = f"{tuple(seeds.shape)} {seeds.dtype} on {seeds.device}"
            raise ValueError(f"seeds must be ({samples},) int64 on {device}, one per sample: got {got}")
        seeds = seeds.contiguous()
    if z is not None:
        _check_tensor("noise z", z, like, "the output")
        z = _as_draws(z, like)
    if u is not None:
        if component == "element":
            _check_tensor("noise u", u, like, "the output")
        elif u.numel() != samples:
            raise ValueError(f'noise u must hold one uniform per sample for component="sample": got {tuple(u.shape)}')
        u = _as_draws(u, like).reshape(like.shape if component == "element" else (samples,))
    return Noise(seed & (1 << 64) - 1, seeds, sample_offset, step, z, u, component == "element")


def _as_draws(draws: Tensor, like: Tensor) -> Tensor:
    return draws.to(torch.float64 if like.dtype == torch.float64 else torch.float32).contiguous()


def _stepping(
    coefficients: Sequence[float], moments: str, central: bool, lo: float | None, hi: float | None
) -> Stepping:
    check_choice("moments", moments, MOMENTS)
    if len(coefficients) != 6 or not all(map(math.isfinite, coefficients[:5])):
        raise ValueError(f"coefficients must be (alpha_t, sigma_t, A, B, c, var_max), finite: got {coefficients}")
    if coefficients[0] == 0 or coefficients[4] < 0 or not coefficients[5] >= 0:
        raise ValueError(f"coefficients must have alpha_t != 0, c >= 0 and var_max >= 0: got {coefficients}")
    lo, hi = -math.inf if lo is None else lo, math.inf if hi is None else hi
    if not lo < hi:
        raise ValueError(f"clip must be (lo, hi) with lo < hi: got ({lo}, {hi})")
    return Stepping(tuple(coefficients), moments, central, lo, hi)


def _check_floor(floor: float) -> None:
    if not 0 <= floor < math.inf:
        raise ValueError(f"floor must be finite and not negative: got {floor}")


def _contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    return [None if t is None else t.detach().contiguous() for t in tensors]


def _new(like: Tensor) -> Tensor:
    return torch.empty_like(like, memory_format=torch.contiguous_format, requires_grad=False)


# The dispatcher leaves out arguments that equal the schema's defaults, so `_fitting` and `_noise` repeat them.


def fit_mixture(mean, var, third, floor=0.0, **fit):
    _check_inputs(mean=mean, var=var, third=third)
    _check_floor(floor)
    fitting = _fitting(**fit)
    out = tuple(_new(mean) for _ in range(4))
    if mean.numel():
        _backend(mean.device, mean, var, third).fit_mixture(*_contiguous(mean, var, third), out, floor, fitting)
    return out


def sample_mixture(mean, var, third, floor=0.0, **options):
    _check_inputs(mean=mean, var=var, third=third)
    _check_floor(floor)
    fit, counters = _split(options)
    fitting = _fitting(**fit)
    noise = _noise(len(mean), mean.device, **counters, like=mean)
    out = _new(mean)
    if mean.numel():
        _backend(mean.device, mean, var, third).sample_mixture(
            *_contiguous(mean, var, third), out, floor, fitting, noise
        )
    return out


def gms_step(x, e1, e2, e3, coefficients, **options):
    out = _new(x)
    _gms_step(x, e1, e2, e3, coefficients, out, **options)
    return out


def gms_step_out(x, e1, e2, e3, coefficients, *, out, **options):
    _check_inputs(x=x, out=out)
    if out.dtype != x.dtype:
        raise TypeError(f"out must have x's dtype: got {out.dtype}, want {x.dtype}")
    if out.is_contiguous() and not any(_overlaps(out, t) for t in (x, e1, e2, e3)):
        _gms_step(x, e1, e2, e3, coefficients, out, **options)
    else:
        out.copy_(gms_step(x, e1, e2, e3, coefficients, **options))


def _overlaps(out: Tensor, tensor: Tensor | None) -> bool:
    """Whether writing out[i] may change another element of `tensor` before it is read; out may be `tensor` itself."""
    if tensor is None or tensor.untyped_storage().data_ptr() != out.untyped_storage().data_ptr():
        return False
    return tensor.data_ptr() != out.data_ptr() or not tensor.is_contiguous() or tensor.dtype != out.dtype


def _gms_step(x, e1, e2, e3, coefficients, out, *, moments="cumulant", central=False, lo=-1.0, hi=1.0, **options):
    _check_inputs(x=x, e1=e1, e2=e2, e3=e3)
    fit, counters = _split(options)
    fitting = _fitting(**fit)
    stepping = _stepping(coefficients, moments, central, lo, hi)
    for name, tensor in (("e2", e2), ("e3", e3)):
        if tensor is None and fitting.fit != "gaussian":
            raise ValueError(f"{name} must be given for fit={fitting.fit!r}: got None")
    if moments == "released" and e2 is None:
        raise ValueError('e2 must be given for moments="released": got None')
    noise = _noise(len(x), x.device, **counters, like=x)
    if x.numel():
        _backend(x.device, x, e1, e2, e3).gms_step(*_contiguous(x, e1, e2, e3), out, stepping, fitting, noise)


def _split(options: dict[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """The options of the fit, and those of the draws."""
    fit = {k: v for k, v in options.items() if k in Fitting._fields}
    return fit, {k: v for k, v in options.items() if k not in fit}


def _philox(normal: bool):
    def philox(shape, *, stream=0, dtype=None, device=None, **counters):
        out = _new_of_shape(shape, dtype, device)
        if not 0 <= stream < 256:
            raise ValueError(f"stream must lie in [0, 256): got {stream}")
        noise = _noise(shape[0], out.device, **counters)
        if out.numel():
            _backend(out.device, out).philox(out, noise, stream, normal)
        return out

    return philox


def _new_of_shape(shape: Sequence[int], dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    if not shape or any(n < 0 for n in shape):
        raise ValueError(f"shape must be (B, *), without negative sizes: got {tuple(shape)}")
    dtype = dtype or torch.float32
    _check_dtype("dtype", dtype)
    return torch.empty(shape, dtype=dtype, device=device or "cpu")


def _fake(n: int = 1, **tensors: Tensor | None) -> list[Tensor]:
    """n outputs without data, for tensors that pass the checks."""
    _check_inputs(**tensors)
    return [_new(next(iter(tensors.values()))) for _ in range(n)]


def _fake_out(x, e1, e2, e3, *args, out, **kwargs):
    _fake(0, x=x, e1=e1, e2=e2, e3=e3, out=out)


def _register() -> torch.library.Library:
    library = torch.library.Library("gms_fast", "DEF")
    for schema in SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for op in (fit_mixture, sample_mixture, gms_step, gms_step_out):
        for key in ("CPU", "CUDA"):
            library.impl(op.__name__, op, key)
    fakes = {
        "fit_mixture": lambda mean, var, third, *args, **kwargs: tuple(_fake(mean=mean, var=var, third=third, n=4)),
        "sample_mixture": lambda mean, var, third, *args, **kwargs: _fake(mean=mean, var=var, third=third)[0],
        "gms_step": lambda x, e1, e2, e3, *args, **kwargs: _fake(x=x, e1=e1, e2=e2, e3=e3)[0],
        "gms_step_out": _fake_out,
    }
    for name, normal in (("philox_normal", True), ("philox_uniform", False)):
        library.impl(name, _philox(normal), "CompositeExplicitAutograd")
        fakes[name] = lambda shape, *, dtype=None, device=None, **kwargs: _new_of_shape(shape, dtype, device)
    for name, fake in fakes.items():
        torch.library.register_fake(f"gms_fast::{name}", fake, lib=library)
    return library


LIBRARY = _register()
