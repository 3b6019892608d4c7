"""Checks of the ops' arguments, with errors that name the argument, and values for backends."""

import functools
import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from gms_fast.ops.types import ADDED, COLUMNS, Draws, Fit, Linear, Stepping
from gms_fast.steps import kernel_numbers

FITS = ("exact", "free", "adan", "gaussian")
MOMENTS = ("cumulant", "released")
COMPONENTS = ("sample", "element")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
MAX_RESULTS = 3  # of a linear step with weights by element
MAX_TERMS = 8  # of affine_noise, besides x
NUMBERS = 10  # of StepCoefficients.as_tensor
OPTIONAL = ("e2", "e3", "output", "unconditional")  # may be None
LEAST_EPS = 1e-20  # of fit="adan": smaller gradients have squares that are zero in float32


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Raise ValueError unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}: got {value!r}")


def check_sample_offset(sample_offset: int, samples: int) -> None:
    """Raise ValueError unless the indices of all samples fit in 56 bits."""
    if not 0 <= sample_offset <= (1 << 56) - samples:
        raise ValueError(f"sample_offset must lie in [0, 2^56 - {samples}]: got {sample_offset}")


def check_tensor(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """Raise unless a tensor has the shape and device of another and a dtype that the ops take."""
    if tensor.shape != like.shape:
        raise ValueError(f"{name} must match {like_name}: got {tuple(tensor.shape)}, want {tuple(like.shape)}")
    check_place(name, tensor, like, like_name)


def check_place(name: str, tensor: Tensor, like: Tensor, like_name: str) -> None:
    """Raise unless a tensor is dense, on the right device and of a dtype that the ops take."""
    if tensor.device != like.device:
        raise ValueError(f"{name} must be on {like_name}'s device: got {tensor.device}, want {like.device}")
    check_dtype(name, tensor.dtype)
    if tensor.layout is not torch.strided:
        raise TypeError(f"{name} must be a dense tensor, of layout torch.strided: got {tensor.layout}")
    _check_forward_only(name, tensor)


def _check_forward_only(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad and torch.is_grad_enabled():
        raise RuntimeError(
            f"gms_fast ops are forward only, but {name} requires a gradient: detach it or use torch.no_grad()"
        )


def check_dtype(name: str, dtype: torch.dtype) -> None:
    """Raise TypeError unless the ops take the dtype."""
    if dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, bfloat16, float16 or float64: got {dtype}")


def check_inputs(names: Sequence[str], tensors: Sequence[Tensor | None]) -> None:
    """Raise unless all tensors have the first one's shape and device and ask for no gradient.

    Those named in `OPTIONAL` may be None.
    """
    first = tensors[0]
    if isinstance(first, Tensor):
        shape, device = first.shape, first.device
        for t in tensors:
            if (
                not isinstance(t, Tensor)
                or t.shape != shape
                or t.device != device
                or t.dtype not in DTYPES
                or t.layout is not torch.strided
                or t.requires_grad
            ):
                break
        else:
            if shape:
                return
    _explain(names, tensors)


def _explain(names: Sequence[str], tensors: Sequence[Tensor | None]) -> None:
    """Raise the error that says what is wrong with the tensors, if anything is."""
    first = a_tensor(names[0], tensors[0])
    if first.ndim == 0:
        raise ValueError(f"{names[0]} must be (B, *) with at least one dimension: got a scalar")
    for name, tensor in zip(names, tensors, strict=True):
        if tensor is not None or name not in OPTIONAL:
            check_tensor(name, a_tensor(name, tensor), first, names[0])


def a_tensor(name: str, value: object) -> Tensor:
    """Return the value of an argument. Raises TypeError if it is not a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor: got {described(value)}")
    return value


def number(name: str, value: Any) -> float:
    """Return `value` as a float, reading a tensor or an array of one element. Raises TypeError."""
    if is_dynamo_compiling():  # dynamo traces no more than this
        return float(value)
    if type(value) is float:
        return value
    try:
        if isinstance(value, (str, bytes)):
            raise TypeError
        return float(value.item() if hasattr(value, "item") else value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise TypeError(f"{name} must be a number: got {described(value)}") from None


def integer(name: str, value: Any) -> int:
    """Return `value` as an integer, as `number` does. Raises TypeError."""
    if type(value) is int or is_dynamo_compiling():
        return value  # type: ignore[no-any-return]  # dynamo's own integers pass for Python's
    try:
        return int(operator.index(value.item() if hasattr(value, "item") else value))
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"{name} must be an integer: got {described(value)}") from None


def described(value: Any) -> str:
    """Describe a value for an error message: a tensor or an array by its shape and dtype."""
    shape = getattr(value, "shape", ())
    return f"{type(value).__name__} {tuple(shape)} {value.dtype}" if shape else repr(value)


def checked_fit(fit: Fit) -> Fit:
    """Return the fit with Python numbers, checked. Raises ValueError or TypeError.

    Equal fits are returned as one object, because kernels find their parameters by identity.
    """
    kind, weight, iterations, lr, eps = fit
    if not (type(weight) is type(lr) is type(eps) is float and type(iterations) is int):
        fit = Fit(
            kind, number("weight", weight), integer("iterations", iterations), number("lr", lr), number("eps", eps)
        )
    if not isinstance(kind, str):
        check_choice("fit", kind, FITS)
    return _known_fit(fit)


@functools.lru_cache(1024)
def _known_fit(fit: Fit) -> Fit:
    kind, weight, iterations, lr, eps = fit
    check_choice("fit", kind, FITS)
    if not 0 < weight < 1:
        raise ValueError(f"weight must lie in (0, 1): got {weight}")
    if not 1e-6 <= weight <= 1 - 1e-6:
        raise ValueError(f"weight must lie in [1e-6, 1 - 1e-6], distinct from 0 and 1 in float32: got {weight}")
    if abs(weight - 0.5) < 2**-24 and kind in ("exact", "free"):
        raise ValueError(
            f"weight must not be 1/2, nor within 2^-24 of it: a symmetric mixture has no third moment: got {weight}"
        )
    if iterations < 0:
        raise ValueError(f"iterations must not be negative: got {iterations}")
    if iterations >= 1 << 31:
        raise ValueError(f"iterations must be below 2^31: got {iterations}")
    for name, value in (("lr", lr), ("eps", eps)):
        if not 0 <= value < math.inf:
            raise ValueError(f"{name} must be finite and not negative: got {value}")
    if eps < LEAST_EPS:
        raise ValueError(f"eps must be at least {LEAST_EPS}, or float32 divides zero by zero: got {eps}")
    return fit


def checked_draws(draws: Draws, like: Tensor, samples: int) -> Draws:
    """Return the draws, checked for a tensor like `like` of so many samples.

    Given normals and uniforms are made dense.
    """
    check_choice("component", draws.component, COMPONENTS)
    seed, step, sample_offset, component, _, _ = draws
    if type(sample_offset) is not int:
        sample_offset = integer("sample_offset", sample_offset)
    check_sample_offset(sample_offset, samples)
    if isinstance(step, Tensor):
        step = on_device("step index", step, [()], torch.int64, like.device)
    else:
        step = integer("step index", step)
        if not 0 <= step < 1 << 32:
            raise ValueError(f"step index must lie in [0, 2^32): got {step}")
    if isinstance(seed, Tensor):
        seed = on_device("seeds", seed, [(samples,), ()], torch.int64, like.device)
    z, u = draws.noise()
    if z is not None:
        check_tensor("noise z", z, like, "the output")
        z = _as_draws(z, like)
    if u is not None:
        u = _checked_uniforms(u, like, samples, component)
    return Draws(seed, step, sample_offset, component, z, u)


def _checked_uniforms(u: Tensor, like: Tensor, samples: int, component: str) -> Tensor:
    if component == "element":
        check_tensor("noise u", u, like, "the output")
        return _as_draws(u, like).reshape(like.shape)
    if u.numel() != samples:
        raise ValueError(f'noise u must hold one uniform per sample for component="sample": got {tuple(u.shape)}')
    check_place("noise u", u, like, "the output")
    return _as_draws(u, like).reshape((samples,))


def on_device(
    name: str, tensor: Tensor, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return a tensor that kernels read numbers from, contiguous. Raises ValueError."""
    if tuple(tensor.shape) not in shapes or tensor.dtype != dtype or tensor.device != device:
        want = f"{' or '.join(map(str, shapes))} {str(dtype).removeprefix('torch.')} on {device}"
        raise ValueError(f"{name} must be {want}: got {tuple(tensor.shape)} {tensor.dtype} on {tensor.device}")
    _check_forward_only(name, tensor)
    return tensor.resolve_neg().contiguous()


def _as_draws(draws: Tensor, like: Tensor) -> Tensor:
    wide = torch.promote_types(like.dtype, torch.float32)
    return draws.detach().resolve_neg().to(wide).contiguous()


@functools.lru_cache(4096)
def stepping_of(
    coefficients: tuple[float, ...],
    moments: str,
    central: bool,
    lo: float | None,
    hi: float | None,
    guidance: float = 1.0,
) -> Stepping:
    """Return a step's numbers and clipping for a kernel, checked. Raises ValueError."""
    check_choice("moments", moments, MOMENTS)
    lo, hi = -math.inf if lo is None else lo, math.inf if hi is None else hi
    if not lo < hi or math.isinf(lo) != math.isinf(hi):
        raise ValueError(f"clip must be (lo, hi) with lo < hi, or None, and both finite: got ({lo}, {hi})")
    if not coefficients:
        return Stepping((0.0,) * NUMBERS, moments, central, lo, hi, guidance)
    if len(coefficients) != 6 or not all(map(math.isfinite, coefficients[:5])):
        raise ValueError(f"coefficients must be (alpha_t, sigma_t, A, B, c, var_max), finite: got {coefficients}")
    if coefficients[0] == 0 or coefficients[4] < 0 or not coefficients[5] >= 0:
        raise ValueError(f"coefficients must have alpha_t != 0, c >= 0 and var_max >= 0: got {coefficients}")
    try:
        numbers = kernel_numbers(*coefficients)
    except OverflowError:
        raise ValueError(f"coefficients must have sigma_t/alpha_t whose cube is finite: got {coefficients}") from None
    return Stepping(numbers, moments, central, lo, hi, guidance)


def not_negative(name: str, value: object) -> float:
    """Return `value` as a finite number >= 0. Raises ValueError."""
    found = value if type(value) is float else number(name, value)
    if not 0 <= found < math.inf:
        raise ValueError(f"{name} must be finite and not negative: got {found}")
    return found


def check_moments(e2: Tensor | None, e3: Tensor | None, fit: str, moments: str) -> None:
    """Raise ValueError if a moment is missing that the fit reads."""
    for name, tensor in (("e2", e2), ("e3", e3)):
        if tensor is None and fit != "gaussian":
            raise ValueError(f"{name} must be given for fit={fit!r}: got None")
    if moments == "released" and e2 is None:
        raise ValueError('e2 must be given for moments="released": got None')


def linear_names(terms: int) -> tuple[str, ...]:
    """Return the names of a linear step's inputs in messages."""
    return "x", "output", "unconditional", *(f"terms[{i}]" for i in range(terms))


def rows_of(results: int, columns: Iterable[int]) -> int:
    """Return `Linear.present` of weights by element.

    Each result then has weights for x, for these columns, and a constant that is added.
    """
    own = sum(1 << column for column in (0, *columns, ADDED))
    return sum(own << COLUMNS * result for result in range(results))


def check_weights(terms: int, weights: Sequence[float] | None, own: int) -> None:
    """Raise ValueError unless there is a weight for x, E[x_0|x_t] and each term.

    own: 1 for x alone, 2 for x and E[x_0|x_t]. With weights=None a tensor holds them.
    """
    if terms > MAX_TERMS:
        raise ValueError(f"terms must be at most {MAX_TERMS} tensors: got {terms}")
    wanted, of = terms + own, ("x", "x, E[x_0|x_t]")[own - 1]
    if weights is not None and len(weights) != wanted:
        raise ValueError(f"weights must be {wanted} numbers, for {of} and each term: got {len(weights)}")
    if weights is not None and not all(map(math.isfinite, weights)):
        raise ValueError(f"weights must be finite: got {tuple(weights)}")


def check_linear(step: Linear, output: object) -> None:
    """Raise ValueError unless the parts of a linear step are consistent.

    Kernels read as many numbers as the step announces.
    """
    read = step.reading is not None
    if read != (output is not None):
        raise ValueError(f"reading must be given with an output, and only then: got {step.reading}")
    if step.keeps and not read:
        raise ValueError("keeps must be False without an output: there is no E[x_0|x_t]")
    wanted = step.terms + 2 + read
    if len(step.weights) != wanted and (step.results or step.noisy):
        raise ValueError(f"weights must be {wanted} numbers, for x, the inputs and the noise: got {len(step.weights)}")
    if not 0 <= step.results <= (MAX_RESULTS if step.present else 1) or not step.results + step.keeps:
        most = f"{MAX_RESULTS} with weights by element, else 1"
        raise ValueError(f"results must be at most {most}, and at least 1 without keeps: got {step.results}")
    if step.terms > MAX_TERMS or step.present >> COLUMNS * step.results:
        raise ValueError(f"terms must be at most {MAX_TERMS}, and present have no bits beyond the results: got {step}")
    known = {0, *([1] if read else []), *range(2, 2 + step.terms), ADDED}
    for result in range(step.results if step.present else 0):
        columns = step.columns(result)
        if not known.issuperset(columns) or not set(columns) - {ADDED}:
            raise ValueError(f"present must name given inputs, at least one for every result: got columns {columns}")


def weights_of(numbers: Tensor, inputs: Sequence[Tensor | None], step: Linear) -> Tensor:
    """Return a tensor of weights, checked against a linear step.

    It holds `of_x` and `of_output` of the reading, the weights of the inputs and the noise's std; or weights by
    element.
    """
    given = [t for t in inputs if t is not None]
    by_element = numbers.ndim > 1
    if by_element:
        shape = (step.present.bit_count(), *given[0].shape[1:])
    else:
        shape = (len(step.weights) + (2 if step.reading is not None else 0),)
    wide = (
        by_element
        and numbers.dtype == torch.float64
        and any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in given)
    )
    return on_device("weights", numbers, [shape], torch.float64 if wide else torch.float32, given[0].device)


def check_out(out: Tensor, like: Tensor) -> None:
    """Raise unless results can be written to `out`."""
    check_inputs(("x", "out"), (like, out))
    if out.is_neg():
        raise ValueError("out must not be a lazy negation: give out.resolve_neg()")
    room = 1
    for stride, size in sorted(zip(out.stride(), out.shape, strict=True)) if out.numel() else ():
        if size > 1 and stride < room:
            raise ValueError(
                "out must have its own memory for every element: got "
                f"strides {tuple(out.stride())} for the shape {tuple(out.shape)}, with which elements may share memory"
            )
        room += stride * (size - 1)


def apart_from(
    out: Tensor, like: Tensor, inputs: Sequence[Tensor | None], numbers: Tensor | None, draws: Draws
) -> tuple[Sequence[Tensor | None], Tensor | None, Draws]:
    """Return what a kernel reads, copied where writing to `out` would change it too early.

    `out` may be an input itself: each element is read before it is written.
    """
    check_out(out, like)
    if not (out.is_cpu or out.is_cuda):  # plain torch reads everything before it writes
        return inputs, numbers, draws
    extent = _extent(out)

    def apart(value: Any, may_coincide: bool = False) -> Any:
        if not isinstance(value, Tensor):
            return value
        begin, end = _extent(value)
        if end <= extent[0] or extent[1] <= begin:
            return value
        same = value.data_ptr() == out.data_ptr() and value.stride() == out.stride() and value.dtype == out.dtype
        return value if same and may_coincide else value.clone()

    return [apart(t, True) for t in inputs], apart(numbers), Draws(*map(apart, draws))


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Return the addresses of a tensor's first byte and of the first byte after it."""
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True)) if tensor.numel() else -1
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
