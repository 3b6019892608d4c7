"""The ops as `torch.ops.gms_fast.*`: schemas, fakes and the one place that picks a backend.

Every implementation checks its arguments (compiled backends work on raw pointers), allocates the output and hands
over. All ops are forward only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from gms_fast.ops import dispatch, native, plain
from gms_fast.ops.checks import (
    NUMBERS,
    affine_names,
    apart_from,
    check_affine,
    check_dtype,
    check_inputs,
    check_moments,
    check_out,
    fitting_of,
    noise_of,
    not_negative,
    on_device,
    stepping_of,
    weights_of,
)
from gms_fast.ops.layout import layout_of
from gms_fast.ops.types import Fitting, Stepping

_FIT = 'str fit="exact", float weight=0.3333333333333333, int iterations=70, float lr=0.06, float eps=1e-8'
_COUNTERS = "int seed=0, Tensor? seeds=None, int step=0, Tensor? step_at=None, int sample_offset=0"
_NOISE = f'{_COUNTERS}, str component="element", Tensor? z=None, Tensor? u=None'
_STEP = (
    "Tensor x, Tensor e1, Tensor? e2, Tensor? e3, float[] coefficients, *, Tensor? numbers=None, "
    f'{_FIT}, {_NOISE}, str moments="cumulant", bool central=False, float? lo=-1.0, float? hi=1.0'
)
_AFFINE = (
    "Tensor x, Tensor[] terms, float[] weights, float noise_std=0.0, *, Tensor? numbers=None, "
    f"{_COUNTERS}, Tensor? z=None"
)
_MIXTURE = "Tensor mean, Tensor var, Tensor third, float floor=0.0"
_SHAPE = f"int[] shape, *, {_COUNTERS}, int stream=0, ScalarType? dtype=None, Device? device=None"
SCHEMAS = (
    f"fit_mixture({_MIXTURE}, *, {_FIT}) -> (Tensor, Tensor, Tensor, Tensor)",
    f"sample_mixture({_MIXTURE}, *, {_FIT}, {_NOISE}) -> Tensor",
    f"gms_step({_STEP}) -> Tensor",
    f"gms_step_out({_STEP}, Tensor(a!) out) -> ()",
    f"affine_noise({_AFFINE}) -> Tensor",
    f"affine_noise_out({_AFFINE}, Tensor(a!) out) -> ()",
    f"philox_normal({_SHAPE}) -> Tensor",
    f"philox_uniform({_SHAPE}) -> Tensor",
)


def _backend(like: Tensor, wide: bool) -> object:
    """The module whose functions take tensors where `like` is; float64 is the reference path."""
    device = "cuda" if like.is_cuda else "cpu" if like.is_cpu else like.device.type
    name = "torch" if wide else dispatch.chosen(device)
    if name == "triton":
        from gms_fast import kernels

        return kernels
    return plain if name == "torch" else native


def _run(
    op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], *arguments: object, alike: int | None = 0
) -> None:
    """Call the backend: on the tensors where they lie if kernels can address them, else on contiguous copies.

    alike: what `native.alike` says of all of them.
    """
    tensors, layout, dense, wide = (*inputs, *outputs), None, True, False
    if alike:
        getattr(_backend(tensors[0], False), op)(tensors, None, *arguments)
        return
    if not tensors[-1].numel():
        return
    for t in tensors:
        if t is not None:
            wide = wide or t.dtype is torch.float64
            dense = dense and t.is_contiguous() and not t.is_neg()
    if not dense:
        inputs = [None if t is None else t.resolve_neg() for t in inputs]
        tensors = (*inputs, *outputs)
        layout = layout_of(tensors)
        if layout is None:
            _run_on_copies(op, inputs, outputs, *arguments)
            return
    getattr(_backend(tensors[0], wide), op)(tensors, layout, *arguments)


def _run_on_copies(op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], *arguments: object) -> None:
    dense = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in outputs]
    _run(op, [None if t is None else t.contiguous() for t in inputs], dense, *arguments)
    for out, result in zip(outputs, dense, strict=True):
        out.copy_(result)


def _at_once(op: str, inputs: tuple[Tensor | None, ...], *arguments: object) -> Tensor | None:
    """The op's output, if the compiled kernels run it and can without a closer look at its tensors and draws."""
    try:
        backend = _backend(inputs[0], False)
    except RuntimeError:  # of a forced backend that does not run there: float64 does not need it
        return None
    return getattr(native, op)(inputs, *arguments) if backend is native else None


# The dispatcher leaves out arguments that equal the schema's defaults, so the functions repeat them.


def fit_mixture(mean, var, third, floor=0.0, **fit):
    inputs = mean, var, third
    alike = native.alike(inputs) or check_inputs(("mean", "var", "third"), inputs)
    floor = not_negative("floor", floor)
    fitting = fitting_of(**fit)
    out = tuple(torch.empty_like(mean, requires_grad=False) for _ in range(4))
    _run("fit_mixture", inputs, out, floor, fitting, alike=alike)
    return out


def sample_mixture(
    mean, var, third, floor=0.0, *, fit="exact", weight=1 / 3, iterations=70, lr=0.06, eps=1e-8,
    seed=0, seeds=None, step=0, step_at=None, sample_offset=0, component="element", z=None, u=None,
):  # fmt: skip
    inputs = mean, var, third
    floor = not_negative("floor", floor)
    fitting = fitting_of(fit, weight, iterations, lr, eps)
    draws = seed, seeds, step, step_at, sample_offset, component, z, u
    made = _at_once("new_sample_mixture", inputs, floor, fitting, draws)
    if made is not None:
        return made
    alike = native.alike(inputs) or check_inputs(("mean", "var", "third"), inputs)
    noise = noise_of(mean, alike or mean.size(0), *draws)
    out = torch.empty_like(mean, requires_grad=False)
    _run("sample_mixture", inputs, (out,), floor, fitting, noise, alike=alike)
    return out


def gms_step(
    x, e1, e2, e3, coefficients, *, numbers=None, fit="exact", weight=1 / 3, iterations=70, lr=0.06, eps=1e-8,
    seed=0, seeds=None, step=0, step_at=None, sample_offset=0, component="element", z=None, u=None,
    moments="cumulant", central=False, lo=-1.0, hi=1.0, out=None,
):  # fmt: skip
    fitting = fitting_of(fit, weight, iterations, lr, eps)
    stepping = stepping_of(tuple(coefficients) if numbers is None else (), moments, central, lo, hi)
    draws = seed, seeds, step, step_at, sample_offset, component, z, u
    return take_step((x, e1, e2, e3), fitting, stepping, numbers, draws, out)


def take_step(
    inputs: tuple[Tensor | None, ...],
    fitting: Fitting,
    stepping: Stepping,
    numbers: Tensor | None,
    draws: tuple,
    out: Tensor | None,
) -> Tensor:
    """gms_step, its choices grouped; inputs: x, e1, e2, e3; draws: the arguments of `noise_of` in order."""
    x, e1, e2, e3 = inputs
    if out is numbers is None:
        made = _at_once("new_gms_step", inputs, stepping, fitting, draws)
        if made is not None:
            return made
    given = inputs if e2 is not None and e3 is not None else (x, e1, *(t for t in (e2, e3) if t is not None))
    alike = native.alike(given) or check_inputs(("x", "e1", "e2", "e3"), inputs)
    if numbers is not None:
        numbers = on_device("step", numbers, [(NUMBERS,)], torch.float32, x.device)
    if e2 is None or e3 is None:
        check_moments(e2, e3, fitting.fit, stepping.moments)
    noise = noise_of(x, alike or x.size(0), *draws)
    if out is not None:
        inputs, numbers, noise = apart_from(out, x, inputs, numbers, noise)
        increment_version(out)
        alike = 0
    else:
        out = torch.empty_like(x)
    _run("gms_step", inputs, (out,), stepping, numbers, fitting, noise, alike=alike)
    return out


def affine_noise(
    x, terms, weights, noise_std=0.0, *, numbers=None,
    seed=0, seeds=None, step=0, step_at=None, sample_offset=0, z=None, out=None,
):  # fmt: skip
    inputs = x, *terms
    check_affine(terms, weights if numbers is None else None)
    noise_std = not_negative("noise_std", noise_std)
    draws = seed, seeds, step, step_at, sample_offset, "element", z
    if out is numbers is None:
        made = _at_once("new_affine_noise", inputs, (*weights, noise_std), (*draws, None))
        if made is not None:
            return made
    alike = native.alike(inputs) or check_inputs(affine_names(terms), inputs)
    noisy = noise_std > 0
    if numbers is not None:
        numbers, weights = weights_of(numbers, inputs), (0.0,) * len(inputs)
        noisy = noisy or numbers.ndim == 1  # its last number is noise_std
    noise = noise_of(x, alike or x.size(0), *draws)
    if out is None:
        out = torch.empty_like(x)
    else:
        inputs, numbers, noise = apart_from(out, x, inputs, numbers, noise)
        increment_version(out)
        alike = 0
    _run("affine_noise", inputs, (out,), (*weights, noise_std), numbers, noisy, noise, alike=alike)
    return out


def gms_step_out(*arguments, out, **options):
    gms_step(*arguments, out=out, **options)


def affine_noise_out(*arguments, out, **options):
    affine_noise(*arguments, out=out, **options)


def _philox(normal: bool):
    def philox(shape, *, stream=0, dtype=None, device=None, **counters):
        out = _new_of_shape(shape, dtype, device)
        if not 0 <= stream < 256:
            raise ValueError(f"stream must lie in [0, 256): got {stream}")
        noise = noise_of(out, shape[0], **counters)
        if out.numel() and not out.is_meta:
            _backend(out, out.dtype == torch.float64).philox(out, noise, stream, normal)
        return out

    philox.__name__ = "philox_normal" if normal else "philox_uniform"
    return philox


philox_normal, philox_uniform = _philox(True), _philox(False)


def _new_of_shape(shape: Sequence[int], dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    if not shape or any(n < 0 for n in shape):
        raise ValueError(f"shape must be (B, *), without negative sizes: got {tuple(shape)}")
    dtype = dtype or torch.float32
    check_dtype("dtype", dtype)
    return torch.empty(shape, dtype=dtype, device=device or "cpu")


def _fake_mixture(mean, var, third, *args, **kwargs) -> Tensor:
    check_inputs(("mean", "var", "third"), (mean, var, third))
    return torch.empty_like(mean, requires_grad=False)


def _fake_step(x, e1, e2, e3, *args, **kwargs) -> Tensor:
    check_inputs(("x", "e1", "e2", "e3"), (x, e1, e2, e3))
    return torch.empty_like(x, requires_grad=False)


def _fake_affine(x, terms, *args, **kwargs) -> Tensor:
    check_inputs(affine_names(terms), (x, *terms))
    return torch.empty_like(x, requires_grad=False)


def _fake_out(x, *args, out, **kwargs) -> None:
    check_out(out, x)


def _register() -> torch.library.Library:
    library = torch.library.Library("gms_fast", "DEF")
    for schema in SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    ops = fit_mixture, sample_mixture, gms_step, gms_step_out, affine_noise, affine_noise_out
    for op in (*ops, philox_normal, philox_uniform):
        library.impl(op.__name__, op, "CompositeExplicitAutograd")  # every device; the fakes come before it
    fakes = {
        "fit_mixture": lambda *args, **kwargs: tuple(_fake_mixture(*args, **kwargs) for _ in range(4)),
        "sample_mixture": _fake_mixture,
        "gms_step": _fake_step,
        "gms_step_out": _fake_out,
        "affine_noise": _fake_affine,
        "affine_noise_out": _fake_out,
    }
    for name in ("philox_normal", "philox_uniform"):
        fakes[name] = lambda shape, *, dtype=None, device=None, **kwargs: _new_of_shape(shape, dtype, device)
    for name, fake in fakes.items():
        torch.library.register_fake(f"gms_fast::{name}", fake, lib=library)
    return library


LIBRARY = _register()
