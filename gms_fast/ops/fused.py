"""The ops on grouped arguments: called by solvers, and by the public ops after grouping.

Each `.._here` checks its arguments, because compiled backends work on raw pointers. It allocates the output and makes
one pass on the backend of its tensors, in the usual case by one call of the compiled module. The op without `_here`
calls it directly, or through `torch.ops.gms_fast.*` where something watches the dispatcher, as torch.compile does.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch._C._functorch import peek_interpreter_stack
from torch.autograd.graph import increment_version
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from gms_fast.ops import dispatch, native, plain
from gms_fast.ops.checks import (
    NUMBERS,
    OPTIONAL,
    a_tensor,
    apart_from,
    check_dtype,
    check_inputs,
    check_moments,
    check_weights,
    checked_draws,
    checked_fit,
    integer,
    linear_names,
    not_negative,
    number,
    on_device,
    rows_of,
    stepping_of,
)
from gms_fast.ops.checks import (
    weights_of as _weights_of,
)
from gms_fast.ops.layout import layout_of
from gms_fast.ops.types import WRITTEN, Draws, Fit, Linear, Reading, Sizes, Stepping, Watch
from gms_fast.steps import StepCoefficients
from gms_fast.types import as_range

UNIT = (-1.0, 1.0)  # known to be a range
_MIXTURE = ("mean", "var", "third")
_STEP = ("x", "e1", "e2", "e3", "unconditional")
_OneTensor = Literal["sample_mixture", "gms_step", "affine_noise", "philox_normal", "philox_uniform"]


def fit_mixture(mean: Tensor, var: Tensor, third: Tensor, floor: float, fit: Fit) -> tuple[Tensor, ...]:
    """Return (weight, mean_a, mean_b, V), as `gms_fast.ops.fit_mixture`."""
    if watched("mean", mean):
        return dispatched("fit_mixture", mean, var, third, floor=floor, **fit.flat())
    return fit_mixture_here(mean, var, third, floor, fit)


def fit_mixture_here(mean: Tensor, var: Tensor, third: Tensor, floor: float, fit: Fit) -> tuple[Tensor, ...]:
    """`fit_mixture` without the dispatcher."""
    inputs, floor, fit = (mean, var, third), not_negative("floor", floor), checked_fit(fit)
    place = _at_once(mean)
    if place is not None:
        made = native.compiled.new_fit_mixture(*place, inputs, native.scheme(fit, floor))
        if made is not None:
            return made
    alike = _alike(_MIXTURE, inputs)
    out = tuple(torch.empty_like(mean, requires_grad=False) for _ in range(4))
    _run("fit_mixture", inputs, out, floor, fit, alike=alike)
    return out


def sample_mixture(mean: Tensor, var: Tensor, third: Tensor, floor: float, fit: Fit, draws: Draws) -> Tensor:
    """Fit and draw, as `gms_fast.ops.sample_mixture`."""
    if watched("mean", mean):
        return dispatched("sample_mixture", mean, var, third, floor=floor, **fit.flat(), **draws.given().flat())
    return sample_mixture_here(mean, var, third, floor, fit, draws)


def sample_mixture_here(mean: Tensor, var: Tensor, third: Tensor, floor: float, fit: Fit, draws: Draws) -> Tensor:
    """`sample_mixture` without the dispatcher."""
    inputs, floor, fit = (mean, var, third), not_negative("floor", floor), checked_fit(fit)
    place = _at_once(mean)
    if place is not None:
        made = native.compiled.new_sample_mixture(*place, inputs, native.scheme(fit, floor), draws)
        if made is not None:
            return made
    alike = _alike(_MIXTURE, inputs)
    draws = checked_draws(draws, mean, alike or mean.size(0))
    out = torch.empty_like(mean, requires_grad=False)
    _run("sample_mixture", inputs, (out,), floor, fit, draws, alike=alike)
    return out


def gms_step(
    x: Tensor,
    e1: Tensor,
    e2: Tensor | None,
    e3: Tensor | None,
    step: StepCoefficients | Tensor,
    fit: Fit,
    draws: Draws,
    *,
    moments: str = "cumulant",
    central: bool = False,
    clip: tuple[float, float] | None = UNIT,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    out: Tensor | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Return x_s from noise moments, as `gms_fast.ops.gms_step`."""
    lo, hi = UNIT if clip is UNIT else (None, None) if clip is None else as_range(clip)
    if watched("x", x):
        coefficients, numbers = step_numbers(step)
        made = dispatched(
            "gms_step", x, e1, e2, e3, coefficients, numbers=numbers, moments=moments, central=central, lo=lo, hi=hi,
            unconditional=unconditional, guidance=guidance, out=out, **fit.flat(), **draws.given().flat(),
        )  # fmt: skip
        _look_at(watch, (e1, e2, e3, unconditional), (made,))
        return made
    stepping, numbers = _stepping(step, moments, central, lo, hi, guidance)
    return gms_step_here((x, e1, e2, e3, unconditional), stepping, numbers, checked_fit(fit), draws, out, watch)


def gms_step_here(
    inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None],
    step: Stepping,
    numbers: Tensor | None,
    fit: Fit,
    draws: Draws,
    out: Tensor | None,
    watch: Watch | None = None,
) -> Tensor:
    """`gms_step` without the dispatcher; its step and fit are in the kernels' form.

    inputs: x, e1, e2, e3, unconditional.
    """
    x, _, e2, e3, unconditional = inputs
    if unconditional is None and step.guidance != 1:
        raise _unguided(step.guidance)
    place = _at_once(x) if out is numbers is None else None
    if place is not None:
        made = native.compiled.new_gms_step(*place, inputs, native.scheme(fit, 0.0, step), draws, watch)
        if made is not None:
            return made
    alike = _alike(_STEP, inputs)
    if numbers is not None:
        numbers = on_device("step", numbers, [(NUMBERS,)], torch.float32, x.device)
    if e2 is None or e3 is None:
        check_moments(e2, e3, fit.kind, step.moments)
    read, numbers, draws, out, alike = _prepared(inputs, numbers, draws, out, alike)
    _run("gms_step", read, (out,), step, numbers, fit, draws, watch, alike=alike)
    return out


def linear_step(
    x: Tensor,
    output: Tensor | None,
    terms: Sequence[Tensor],
    step: Linear,
    draws: Draws,
    *,
    numbers: Tensor | None = None,
    unconditional: Tensor | None = None,
    watch: Watch | None = None,
) -> Sequence[Tensor]:
    """Return the results of `step`, followed by E[x_0|x_t] if the step keeps it.

    `numbers` may hold the weights in a tensor.
    """
    if watched("x", x):
        drawn = _wanted(draws, noisy=step.noisy).flat()
        del drawn["component"], drawn["u"]
        made = dispatched(
            "linear_step", x, output, unconditional, terms, step.reading or (), step.weights, numbers=numbers,
            results=step.results, keeps=step.keeps, noisy=step.noisy, present=step.present, **drawn,
        )  # fmt: skip
        _look_at(watch, (output, None, None, unconditional), made)
        return made
    return linear_step_here((x, output, unconditional, *terms), step, numbers, draws, watch=watch)


def linear_step_here(
    inputs: tuple[Tensor | None, ...],
    step: Linear,
    numbers: Tensor | None,
    draws: Draws,
    out: Tensor | None = None,
    watch: Watch | None = None,
) -> Sequence[Tensor]:
    """`linear_step` without the dispatcher.

    inputs: x, output, unconditional, terms. `out` receives the only result.
    """
    x = a_tensor("x", inputs[0])
    if step.reading is not None and step.reading.guidance != 1 and inputs[2] is None:
        raise _unguided(step.reading.guidance)
    draws = _wanted(draws, noisy=step.noisy)
    if numbers is not None:
        numbers = _weights_of(numbers, inputs, step)
    place = _at_once(x) if out is None and (numbers is None or numbers.dtype is torch.float32) else None
    if place is not None:
        made = native.compiled.new_linear_step(*place, inputs, native.linear(step), numbers, draws, watch)
        if made is not None:
            return made
    alike = _alike(linear_names(step.terms), inputs)
    read, numbers, draws, first, alike = _prepared(inputs, numbers, draws, out, alike)
    outs = first, *(torch.empty_like(x) for _ in range(step.results + step.keeps - 1))
    _run("linear_step", read, outs, step, numbers, draws, watch, alike=alike)
    return outs


def linear_of(
    data: tuple[float, float] | None,
    clip: tuple[float, float] | None,
    guidance: float,
    terms: int,
    weights: Sequence[float],
    noise_std: float,
    numbers: Tensor | None,
) -> Linear:
    """Return the checked step for `gms_fast.ops.linear_step`. Raises ValueError or TypeError."""
    on_device = _last_is_std(numbers)
    if (data is None) != on_device:
        raise ValueError(f"data must be (p, q), or None with a tensor of weights, which holds them: got {data!r}")
    if on_device and number("noise_std", noise_std):
        raise ValueError(f"noise_std must not be given with a tensor of weights, which holds it: got {noise_std}")
    check_weights(terms, None if numbers is not None else weights, 2)
    p, q = (0.0, 0.0) if data is None else _pair("data", data)
    lo, hi = (-math.inf, math.inf) if clip is None else as_range(clip)
    noise_std = not_negative("noise_std", noise_std)
    return Linear(
        reading=Reading(p, q, lo, hi, number("guidance", guidance)),
        weights=(*([0.0] * (terms + 2) if numbers is not None else weights), noise_std),
        terms=terms,
        keeps=True,
        noisy=noise_std > 0 or on_device,
        present=rows_of(1, range(1, terms + 2)) if numbers is not None and numbers.ndim > 1 else 0,
    )


def _pair(name: str, values: Any) -> tuple[float, float]:
    try:
        p, q = values
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (p, q), two numbers: got {values!r}") from None
    return number(name, p), number(name, q)


def _unguided(guidance: float) -> ValueError:
    return ValueError(f"unconditional must be given where guidance is not 1: got None and guidance = {guidance:g}")


def affine_noise(
    x: Tensor,
    terms: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    noise_std: float,
    draws: Draws,
    *,
    out: Tensor | None = None,
) -> Tensor:
    """Return w_0 x + sum_i w_i term_i + noise_std z, as `gms_fast.ops.affine_noise`."""
    numbers, weights = (weights, ()) if isinstance(weights, Tensor) else (None, weights)
    if watched("x", x):
        drawn = _wanted(draws, noisy=noise_std != 0 or _last_is_std(numbers)).flat()
        del drawn["component"], drawn["u"]
        options = {"noise_std": noise_std, "numbers": numbers, "out": out, **drawn}
        return dispatched("affine_noise", x, terms, weights, **options)
    return affine_noise_here(x, terms, weights, noise_std, numbers, draws, out)


def affine_noise_here(
    x: Tensor,
    terms: Sequence[Tensor],
    weights: Sequence[float],
    noise_std: float,
    numbers: Tensor | None,
    draws: Draws,
    out: Tensor | None,
) -> Tensor:
    """`affine_noise` without the dispatcher: a linear step that reads no network output.

    `numbers` holds the weights, or is None.
    """
    check_weights(len(terms), weights if numbers is None else None, 1)
    noise_std, count = not_negative("noise_std", noise_std), len(terms)
    by_element = numbers is not None and numbers.ndim > 1
    step = Linear(
        reading=None,
        weights=(*(weights if numbers is None else (0.0,) * (count + 1)), noise_std),
        terms=count,
        noisy=noise_std > 0 or _last_is_std(numbers),
        present=rows_of(1, range(2, count + 2)) if by_element else 0,
    )
    return linear_step_here((x, None, None, *terms), step, numbers, draws, out)[0]


def _prepared(
    inputs: Sequence[Tensor | None], numbers: Tensor | None, draws: Draws, out: Tensor | None, alike: int
) -> tuple[Sequence[Tensor | None], Tensor | None, Draws, Tensor, int]:
    """Return inputs, numbers and draws, checked, the output, and whether all lie alike.

    The output is a new tensor, or the given one; what is read is then copied where it overlaps.
    """
    x = a_tensor("x", inputs[0])
    draws = checked_draws(draws, x, alike or x.size(0))
    if out is None:
        return inputs, numbers, draws, torch.empty_like(x), alike
    read, numbers, draws = apart_from(out, x, inputs, numbers, draws)
    increment_version(out)
    return read, numbers, draws, out, 0


def _wanted(draws: Draws, *, noisy: bool) -> Draws:
    """Return the draws with normals alone; a function that gives noise is called only if noisy."""
    if callable(draws.z):
        draws = draws.given() if noisy else draws._replace(z=None)
    return draws if draws.u is None else draws._replace(u=None)


def _last_is_std(numbers: Tensor | None) -> bool:
    """Return True if the weights in a tensor end with noise_std."""
    return numbers is not None and numbers.ndim == 1


def philox(
    normal: bool,
    shape: Sizes,
    draws: Draws,
    stream: int,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> Tensor:
    """Draw normals or uniforms, as `gms_fast.ops.philox_normal` and `philox_uniform`."""
    if _watching():
        drawn = draws.flat()
        del drawn["component"], drawn["z"], drawn["u"]
        op: _OneTensor = "philox_normal" if normal else "philox_uniform"
        return dispatched(op, shape, stream=stream, dtype=dtype, device=device, **drawn)
    return philox_here(normal, shape, draws, stream, dtype, device)


def philox_here(
    normal: bool,
    shape: Sizes,
    draws: Draws,
    stream: int,
    dtype: torch.dtype | None,
    device: torch.device | None,
) -> Tensor:
    """`philox` without the dispatcher."""
    out = new_of_shape(shape, dtype, device)
    if not 0 <= stream < 256:
        raise ValueError(f"stream must lie in [0, 256): got {stream}")
    draws = checked_draws(draws, out, out.size(0))
    if out.numel() and not out.is_meta:
        backend_of(out, out.dtype == torch.float64).philox(out, draws, stream, normal)
    return out


def new_of_shape(shape: Sizes, dtype: torch.dtype | None, device: torch.device | None) -> Tensor:
    """Return the output of `philox`, not yet written."""
    if not shape or any(n < 0 for n in shape):
        raise ValueError(f"shape must be (B, *), without negative sizes: got {tuple(shape)}")
    dtype = dtype or torch.float32
    check_dtype("dtype", dtype)
    return torch.empty(shape, dtype=dtype, device=device or "cpu")


def _look_at(watch: Watch | None, given: Sequence[Tensor | None], made: Sequence[Tensor]) -> None:
    """Look for values that are not finite where no kernel did.

    given: e1, e2, e3, and e1 without a condition.
    """
    for which, tensor in (*zip((0, 1, 2, 0), given, strict=True), *((WRITTEN, t) for t in made)):
        plain.look(watch, which, tensor)


# --- a step for a kernel ---

_steppings: dict[tuple[object, ...], tuple[StepCoefficients, Stepping]] = {}


def _stepping(
    step: StepCoefficients | Tensor,
    moments: str,
    central: bool,
    lo: float | None,
    hi: float | None,
    guidance: float,
) -> tuple[Stepping, Tensor | None]:
    """Return the step in the kernels' form, and its tensor of numbers or None.

    A step is found by its identity, because hashing it costs more than keeping it.
    """
    key = id(step), moments, central, lo, hi, guidance
    found = _steppings.get(key)
    if found is None:
        coefficients, numbers = step_numbers(step)
        stepping = stepping_of(tuple(coefficients), moments, central, lo, hi, guidance)
        if not isinstance(step, StepCoefficients):
            return stepping, numbers
        if len(_steppings) >= 4096:
            _steppings.clear()
        found = _steppings[key] = step, stepping
    return found[1], None


def step_numbers(step: StepCoefficients | Tensor) -> tuple[list[float], Tensor | None]:
    """Return (coefficients or [], the tensor that holds them or None)."""
    if isinstance(step, StepCoefficients):
        return step.as_list(), None
    if isinstance(step, Tensor):
        return [], step
    raise TypeError(f"step must be StepCoefficients, or its tensor: got {type(step).__name__}")


# --- the way to a backend ---


def watched(name: str, first: Tensor) -> bool:
    """Return True if a mode or a transform must see the op in the dispatcher.

    The dispatcher costs as much as a small kernel, so ops avoid it otherwise. Raises TypeError if `first`, the op's
    first argument called `name`, is not a tensor.
    """
    if type(first) is not Tensor or not (first.is_cuda or first.is_cpu):
        return isinstance(a_tensor(name, first), Tensor)
    return _watching()


def _watching() -> bool:
    if torch.compiler.is_compiling() or is_in_torch_dispatch_mode() or torch._C._is_tracing():
        return True
    return peek_interpreter_stack() is not None  # a torch.func transform


_KINDS: dict[str, Callable[[str, object], float]] = {
    **dict.fromkeys(("floor", "weight", "lr", "eps", "noise_std", "guidance"), number),
    **dict.fromkeys(("iterations", "sample_offset"), integer),
}


@overload
def dispatched(name: Literal["fit_mixture"], *arguments: object, **options: Any) -> tuple[Tensor, ...]: ...
@overload
def dispatched(name: Literal["linear_step"], *arguments: object, **options: Any) -> list[Tensor]: ...
@overload
def dispatched(name: _OneTensor, *arguments: object, **options: Any) -> Tensor: ...
def dispatched(name: str, *arguments: object, out: Tensor | None = None, **options: Any) -> Any:
    """Call the op through the dispatcher, which takes Python numbers only."""
    options = {key: _KINDS[key](key, value) if key in _KINDS else value for key, value in options.items()}
    if out is None:
        return getattr(torch.ops.gms_fast, name)(*arguments, **options)
    getattr(torch.ops.gms_fast, f"{name}_out")(*arguments, **options, out=out)
    return out


def backend_of(like: Tensor, wide: bool) -> dispatch.Backend:
    """Return the backend for tensors on the device of `like`; float64 runs the reference."""
    device = "cuda" if like.is_cuda else "cpu" if like.is_cpu else like.device.type
    name = "torch" if wide else dispatch.chosen(device)
    if name == "triton":
        from gms_fast import kernels

        return kernels
    return plain if name == "torch" else native


def _at_once(first: Tensor) -> tuple[bool, int] | None:
    """Return `native.where` of an op's first tensor if the compiled kernels run it, else None.

    `native.compiled.new_..` then makes the output in one call. It returns None where tensors or draws need a closer
    look.
    """
    try:
        backend = backend_of(first, False)
    except RuntimeError:  # a forced backend does not run there; float64 does not need it
        return None
    return native.where(first) if backend is native else None


def _alike(names: Sequence[str], inputs: tuple[Tensor | None, ...]) -> int:
    """Return `native.alike` of the inputs that are given; where it is 0, check them."""
    given = [t for name, t in zip(names, inputs, strict=True) if t is not None or name not in OPTIONAL]
    samples = native.alike(tuple(given))
    if not samples:
        check_inputs(names, inputs)
    return samples


def _run(op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], *arguments: object, alike: int) -> None:
    """Call the backend on the tensors in place, or on contiguous copies.

    Copies are made where kernels cannot address the layout. `alike` is the result of `native.alike` for all tensors.
    """
    tensors, layout, dense, wide = (*inputs, *outputs), None, True, False
    if alike:
        getattr(backend_of(outputs[0], False), op)(tensors, None, *arguments)
        return
    if not outputs[0].numel():
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
    getattr(backend_of(outputs[0], wide), op)(tensors, layout, *arguments)


def _run_on_copies(op: str, inputs: Sequence[Tensor | None], outputs: Sequence[Tensor], *arguments: object) -> None:
    dense = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in outputs]
    _run(op, [None if t is None else t.contiguous() for t in inputs], dense, *arguments, alike=0)
    for out, result in zip(outputs, dense, strict=True):
        out.copy_(result)
