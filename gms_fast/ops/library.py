"""Registration as `torch.ops.gms_fast.*`: flat schemas and fakes. All ops are forward only."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from gms_fast.ops import fused
from gms_fast.ops.checks import check_inputs, check_linear, check_out, checked_fit, linear_names, stepping_of
from gms_fast.ops.types import DEFAULT, Draws, Fit, Linear, Reading

_FIT = ", ".join(
    f"{kind} {name}={json.dumps(value)}"
    for kind, (name, value) in zip(("str", "float", "int", "float", "float"), DEFAULT.flat().items(), strict=True)
)
_COUNTERS = "int seed=0, Tensor? seeds=None, int step=0, Tensor? step_at=None, int sample_offset=0"
_NOISE = f'{_COUNTERS}, str component="element", Tensor? z=None, Tensor? u=None'
_STEP = (
    "Tensor x, Tensor e1, Tensor? e2, Tensor? e3, float[] coefficients, *, Tensor? numbers=None, "
    f'{_FIT}, {_NOISE}, str moments="cumulant", bool central=False, float? lo=-1.0, float? hi=1.0, '
    "Tensor? unconditional=None, float guidance=1.0"
)
_LINEAR = (
    "Tensor x, Tensor? output, Tensor? unconditional, Tensor[] terms, float[] reading, float[] weights, *, "
    "Tensor? numbers=None, int results=1, bool keeps=False, bool noisy=False, int present=0, "
    f"{_COUNTERS}, Tensor? z=None"
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
    f"linear_step({_LINEAR}) -> Tensor[]",
    f"affine_noise({_AFFINE}) -> Tensor",
    f"affine_noise_out({_AFFINE}, Tensor(a!) out) -> ()",
    f"philox_normal({_SHAPE}) -> Tensor",
    f"philox_uniform({_SHAPE}) -> Tensor",
)


# The dispatcher omits arguments equal to the schema's defaults, which are those of `Fit` and `Draws`.


_FIT_FIELDS = dict(zip(DEFAULT.flat(), Fit._fields, strict=True))
_DRAWN = Draws()


def _values(flat: dict[str, Any]) -> tuple[Fit, Draws]:
    """Return the fit and the draws that flat keywords describe; missing ones are the defaults."""
    if not flat:
        return DEFAULT, _DRAWN
    fit = {_FIT_FIELDS[name]: value for name, value in flat.items() if name in _FIT_FIELDS}
    draws = {name: value for name, value in flat.items() if name in Draws._fields}
    for tensor, field in (("seeds", "seed"), ("step_at", "step")):
        if flat.get(tensor) is not None:
            draws[field] = flat[tensor]
    return Fit(**fit), Draws(**draws)


def fit_mixture(mean: Tensor, var: Tensor, third: Tensor, floor: float = 0.0, **flat: Any) -> tuple[Tensor, ...]:
    return fused.fit_mixture_here(mean, var, third, floor, _values(flat)[0])


def sample_mixture(mean: Tensor, var: Tensor, third: Tensor, floor: float = 0.0, **flat: Any) -> Tensor:
    return fused.sample_mixture_here(mean, var, third, floor, *_values(flat))


def gms_step(
    x: Tensor,
    e1: Tensor,
    e2: Tensor | None,
    e3: Tensor | None,
    coefficients: Sequence[float],
    *,
    numbers: Tensor | None = None,
    moments: str = "cumulant",
    central: bool = False,
    lo: float | None = -1.0,
    hi: float | None = 1.0,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    out: Tensor | None = None,
    **flat: Any,
) -> Tensor:
    fit, draws = _values(flat)
    step = stepping_of(tuple(coefficients) if numbers is None else (), moments, central, lo, hi, guidance)
    return fused.gms_step_here((x, e1, e2, e3, unconditional), step, numbers, checked_fit(fit), draws, out)


def linear_step(
    x: Tensor,
    output: Tensor | None,
    unconditional: Tensor | None,
    terms: Sequence[Tensor],
    reading: Sequence[float],
    weights: Sequence[float],
    *,
    numbers: Tensor | None = None,
    results: int = 1,
    keeps: bool = False,
    noisy: bool = False,
    present: int = 0,
    **flat: Any,
) -> list[Tensor]:
    step = Linear(Reading(*reading) if reading else None, tuple(weights), len(terms), results, keeps, noisy, present)
    check_linear(step, output)
    return list(fused.linear_step_here((x, output, unconditional, *terms), step, numbers, _values(flat)[1]))


def affine_noise(
    x: Tensor,
    terms: Sequence[Tensor],
    weights: Sequence[float],
    noise_std: float = 0.0,
    *,
    numbers: Tensor | None = None,
    out: Tensor | None = None,
    **flat: Any,
) -> Tensor:
    return fused.affine_noise_here(x, terms, weights, noise_std, numbers, _values(flat)[1], out)


def gms_step_out(*arguments: Any, out: Tensor, **options: Any) -> None:
    gms_step(*arguments, out=out, **options)


def affine_noise_out(*arguments: Any, out: Tensor, **options: Any) -> None:
    affine_noise(*arguments, out=out, **options)


def _philox(
    normal: bool,
    shape: Sequence[int],
    *,
    stream: int = 0,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **flat: Any,
) -> Tensor:
    return fused.philox_here(normal, shape, _values(flat)[1], stream, dtype, device)


def philox_normal(shape: Sequence[int], **options: Any) -> Tensor:
    return _philox(True, shape, **options)


def philox_uniform(shape: Sequence[int], **options: Any) -> Tensor:
    return _philox(False, shape, **options)


def _fake_mixture(mean: Tensor, var: Tensor, third: Tensor, *args: object, **kwargs: object) -> Tensor:
    check_inputs(("mean", "var", "third"), (mean, var, third))
    return torch.empty_like(mean, requires_grad=False)


def _fake_step(x: Tensor, e1: Tensor, e2: Tensor | None, e3: Tensor | None, *args: object, **kwargs: object) -> Tensor:
    check_inputs(("x", "e1", "e2", "e3"), (x, e1, e2, e3))
    return torch.empty_like(x, requires_grad=False)


def _fake_affine(x: Tensor, terms: Sequence[Tensor], *args: object, **kwargs: object) -> Tensor:
    check_inputs(linear_names(len(terms)), (x, None, None, *terms))
    return torch.empty_like(x, requires_grad=False)


def _fake_linear(
    x: Tensor,
    output: Tensor | None,
    unconditional: Tensor | None,
    terms: Sequence[Tensor],
    *args: object,
    results: int = 1,
    keeps: bool = False,
    **kwargs: object,
) -> list[Tensor]:
    check_inputs(linear_names(len(terms)), (x, output, unconditional, *terms))
    return [torch.empty_like(x, requires_grad=False) for _ in range(results + keeps)]


def _fake_out(x: Tensor, *args: object, out: Tensor, **kwargs: object) -> None:
    check_out(out, x)


def _fake_philox(
    shape: Sequence[int],
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    **kwargs: object,
) -> Tensor:
    return fused.new_of_shape(shape, dtype, device)


def _register() -> torch.library.Library:
    library = torch.library.Library("gms_fast", "DEF")
    for schema in SCHEMAS:
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    ops = fit_mixture, sample_mixture, gms_step, gms_step_out, linear_step, affine_noise, affine_noise_out
    for op in (*ops, philox_normal, philox_uniform):
        library.impl(op.__name__, op, "CompositeExplicitAutograd")  # for every device; fakes take precedence
    fakes: dict[str, Callable[..., object]] = {
        "fit_mixture": lambda *args, **kwargs: tuple(_fake_mixture(*args, **kwargs) for _ in range(4)),
        "sample_mixture": _fake_mixture,
        "gms_step": _fake_step,
        "gms_step_out": _fake_out,
        "linear_step": _fake_linear,
        "affine_noise": _fake_affine,
        "affine_noise_out": _fake_out,
        "philox_normal": _fake_philox,
        "philox_uniform": _fake_philox,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"gms_fast::{name}", fake, lib=library)
    return library


LIBRARY = _register()
