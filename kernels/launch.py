"""Launchers of the kernels, for checked and grouped arguments and an allocated output.

`step`, `fit` and `draws` are the values of gms_fast/ops/types.py; `layout` is that of gms_fast/ops/layout.py.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gms_fast.kernels.direct import run as _run
from gms_fast.kernels.mixture import FitParameters
from gms_fast.kernels.moments import StepCoefficients
from gms_fast.kernels.step import fit_kernel, linear_kernel, philox_kernel, sample_kernel, step_kernel

_MAX_BLOCK = 1024  # elements
_MOST_SAMPLES = 65535  # as the second size of a grid


class Launch(NamedTuple):
    """Kernel with all its arguments, so that it can be compiled without being run."""

    kernel: object
    grid: tuple[int, int]
    arguments: tuple
    switches: dict[str, object]  # follow the arguments, in the order of the kernel's parameters
    options: dict[str, object]  # follow from the switches
    key: tuple  # all that Triton compiles a kernel for: launches of one key on one device run the same


class _Plan(NamedTuple):
    """Part of a launch that many calls share, made once because it takes longer than the rest."""

    kernel: object
    grid: tuple[int, int]
    elements: int  # of a sample
    floats: tuple  # arguments
    switches: dict[str, object]
    options: dict[str, object]
    key: tuple  # kernel, which itself Triton hashes slowly, and switches


def gms_step(tensors, layout, step, numbers, fit, draws, watch) -> None:
    """Launch the step from noise moments to x_s.

    tensors: x, e1, e2, e3, e1 without condition, out. None stands for zeros, or for no guidance.
    """
    plan = _step_plan(tensors[0].shape, step, fit, draws.component == "element")
    rest = numbers, *_counters(draws), draws.z, draws.u, *_looking(watch)
    _run(_launch(plan, tensors, layout, plan.floats, rest), tensors[0])


def sample_mixture(tensors, layout, floor, fit, draws) -> None:
    """Launch fit and draw; tensors: mean, var, third, out."""
    plan = _sample_plan(tensors[0].shape, floor, fit, draws.component == "element")
    _run(_launch(plan, tensors, layout, plan.floats, (*_counters(draws), draws.z, draws.u)), tensors[0])


def fit_mixture(tensors, layout, floor, fit) -> None:
    """Launch the fit alone; tensors: mean, var, third, weight, mean_a, mean_b, var."""
    plan = _fit_plan(tensors[0].shape, floor, fit)
    _run(_launch(plan, tensors, layout, plan.floats, ()), tensors[0])


def linear_step(tensors, layout, step, numbers, draws, watch) -> None:
    """Launch a linear step.

    tensors: x, output or None, the same without condition or None, terms, results, and E[x_0|x_t] if it is kept.
    """
    kind = "given" if numbers is None else "on device" if numbers.ndim == 1 else "by element"
    plan = _linear_plan(tensors[0].shape, step, kind)
    read = {"given": (), "on device": ((numbers,),), "by element": ((numbers, float(step.weights[-1])),)}[kind]
    rest = *read, *_counters(draws), draws.z, *_looking(watch)
    _run(_launch(plan, tensors, layout, plan.floats, rest), tensors[0])


def philox(out, draws, stream, normal) -> None:
    """Launch a kernel that draws normals or uniforms of one stream."""
    kernel, grid, elements, _, switches, options, variant = _philox_plan(out.shape, normal)
    rest = *_counters(draws), stream
    key = variant, elements, *map(_seen, (out, *rest))
    _run(Launch(kernel, grid, (out, elements, *rest), switches, options, key), out)


def _launch(plan: _Plan, tensors: Sequence[Tensor | None], layout, floats: tuple, rest: tuple) -> Launch:
    """Return the launch of a kernel.

    Its arguments are tensors with strides, sizes, the elements of a sample, floats, and the rest.
    """
    kernel, grid, elements, _, switches, options, variant = plan
    if layout is None:
        sizes, places = None, tuple([(t, None) for t in tensors])
    else:
        sizes, places = layout[0], tuple(zip(tensors, layout[1], strict=True))
    key = variant, elements, layout, *map(_seen, (*tensors, *rest))
    return Launch(kernel, grid, (places, sizes, elements, *floats, *rest), switches, options, key)


def _seen(value: object) -> object:
    """Return what Triton compiles a kernel for, of a value: its type, and a pointer's alignment."""
    if value is None:
        return None
    if isinstance(value, int):
        return -1 <= value >> 31 <= 0  # else of 64 bits: words are below 2^31, sample offsets below 2^56
    if isinstance(value, Tensor):
        return value.dtype, value.data_ptr() % 16 == 0
    return tuple(map(_seen, value)) if isinstance(value, tuple) else type(value)


@lru_cache(4096)
def _step_plan(shape: tuple[int, ...], step, fit, element: bool) -> _Plan:
    k = StepCoefficients(*map(float, (*step.numbers, step.lo, step.hi)))
    switches = {**_fit_switches(fit), "MOMENTS": step.moments, "CENTRAL": step.central, "ELEMENT": element}
    return _plan(step_kernel, shape, (k, _fit_parameters(fit), float(step.guidance)), switches)


@lru_cache(4096)
def _sample_plan(shape: tuple[int, ...], floor: float, fit, element: bool) -> _Plan:
    floats = float(floor), _fit_parameters(fit)
    return _plan(sample_kernel, shape, floats, {**_fit_switches(fit), "ELEMENT": element})


@lru_cache(4096)
def _fit_plan(shape: tuple[int, ...], floor: float, fit) -> _Plan:
    return _plan(fit_kernel, shape, (float(floor), _fit_parameters(fit)), _fit_switches(fit))


@lru_cache(4096)
def _linear_plan(shape: tuple[int, ...], step, kind: str) -> _Plan:
    reading = None if step.reading is None else tuple(map(float, step.reading))
    floats = (reading, tuple(map(float, step.weights))) if kind == "given" else (reading,)
    before = 2 if kind == "on device" and reading is not None else 0  # numbers of the reading
    switches = {
        "SUMS": tuple(_places(step, before)),
        "TERMS": step.terms,
        "KEEPS": step.keeps,
        "STD": before + len(step.weights) - 1 if step.noisy else -1,
        "WEIGHTS": kind,
    }
    return _plan(linear_kernel, shape, floats, switches)


def _places(step, before: int) -> Iterator[tuple[int, ...]]:
    """Return for each result the places of the weights, -1 where there is none.

    The weights are those of x, E[x_0|x_t] and the terms, and the constant that is added.
    """
    inputs = range(step.terms + 2)
    for result in range(step.results):
        present = step.columns(result) if step.present else [c for c in inputs if c != 1 or step.reading is not None]
        places = {column: before + i for i, column in enumerate(present)}
        before += len(present)
        yield *(places.pop(column, -1) for column in inputs), *(places.values() or (-1,))


@lru_cache(4096)
def _philox_plan(shape: tuple[int, ...], normal: bool) -> _Plan:
    return _plan(philox_kernel, shape, (), {"NORMAL": normal})


def _plan(kernel, shape: tuple[int, ...], floats: tuple, switches: dict[str, object]) -> _Plan:
    elements = shape[1:].numel()
    # Elements per warp: one Philox call per thread where registers are scarce, else two.
    warp = 32 * (4 if switches.get("FIT") == "adan" else 8)
    block = min(max(triton.next_power_of_2(elements), warp), _MAX_BLOCK)
    # enable_fp_fusion=False: only the fma that the source spells out, as in the C++ build.
    options = {"num_warps": block // warp, "enable_fp_fusion": False}
    blocks, many = triton.cdiv(elements, block), shape[0] > _MOST_SAMPLES
    grid = (shape[0], blocks) if many else (blocks, shape[0])
    switches = {**switches, "BLOCK": block, "WHOLE": elements % block == 0, "MANY": many}
    return _Plan(kernel, grid, elements, floats, switches, options, (kernel.fn, *switches.values()))


def _fit_switches(fit) -> dict[str, object]:
    """Return the fit's constants; only "adan" counts iterations, so others compile once for all."""
    return {"FIT": fit.kind, "ITERATIONS": fit.iterations if fit.kind == "adan" else 0}


def _fit_parameters(fit) -> FitParameters:
    weight = torch.tensor(fit.weight, dtype=torch.float32, device="cpu").item()  # the one that a mixture stores
    spread = weight * (1 - weight)
    skew = spread * (1 - 2 * weight)
    inv_skew = 1 / skew if skew else float("inf")  # only fits that do not use it take w = 1/2
    return FitParameters(*map(float, (weight, spread, 1 / spread, inv_skew, fit.lr, fit.eps)))


def _counters(draws) -> tuple:
    seed, step, sample_offset, *_ = draws
    keys, step_at = (None, None), None
    if isinstance(seed, Tensor):
        keys, seed = (seed, None) if seed.ndim else (None, seed), 0
    if isinstance(step, Tensor):
        step_at, step = step, 0
    return (*keys, step_at, _word(seed), _word(seed >> 32), sample_offset, _word(step))


def _looking(watch) -> tuple[Tensor | None, int]:
    return (None, 0) if watch is None else tuple(watch)


def _word(value: int) -> int:
    """Return the low 32 bits as int32: one type for all values, so none recompiles the kernel."""
    return (value + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
