"""The launchers: arguments arrive checked and grouped (gms_fast.ops), the output allocated.

`step`, `fit` and `draws` are the values of gms_fast/ops/types.py; `layout` is that of gms_fast/ops/layout.py.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gms_fast.kernels.direct import run as _run
from gms_fast.kernels.mixture import FitParameters
from gms_fast.kernels.moments import StepCoefficients
from gms_fast.kernels.step import affine_kernel, fit_kernel, philox_kernel, sample_kernel, step_kernel

_MAX_BLOCK = 1024  # elements
_MOST_SAMPLES = 65535  # as the second size of a grid


class Launch(NamedTuple):
    """A kernel with all it is called with, so that it can be compiled without being run."""

    kernel: object
    grid: tuple[int, int]
    arguments: tuple
    switches: dict[str, object]  # follow the arguments, in the order of the kernel's parameters
    options: dict[str, object]  # follow from the switches
    key: tuple  # all that Triton compiles a kernel for: launches of one key on one device run the same


class _Plan(NamedTuple):
    """The part of a launch that many calls have in common, made once: that takes longer than the rest of it."""

    kernel: object
    grid: tuple[int, int]
    elements: int  # of a sample
    floats: tuple  # arguments
    switches: dict[str, object]
    options: dict[str, object]
    key: tuple  # kernel, which itself Triton hashes slowly, and switches


def gms_step(tensors, layout, step, numbers, fit, draws) -> None:
    """Noise moments to x_s; tensors: x, e1, e2, e3, out, where e2, e3 = None stand for zeros."""
    plan = _step_plan(tensors[0].shape, step, fit, draws.component == "element")
    rest = numbers, *_counters(draws), draws.z, draws.u
    _run(_launch(plan, tensors, layout, plan.floats, rest), tensors[0])


def sample_mixture(tensors, layout, floor, fit, draws) -> None:
    """Fit and draw; tensors: mean, var, third, out."""
    plan = _sample_plan(tensors[0].shape, floor, fit, draws.component == "element")
    _run(_launch(plan, tensors, layout, plan.floats, (*_counters(draws), draws.z, draws.u)), tensors[0])


def fit_mixture(tensors, layout, floor, fit) -> None:
    """The fit alone; tensors: mean, var, third, weight, mean_a, mean_b, var."""
    plan = _fit_plan(tensors[0].shape, floor, fit)
    _run(_launch(plan, tensors, layout, plan.floats, ()), tensors[0])


def affine_noise(tensors, layout, weights, numbers, noisy, draws) -> None:
    """w_0 x + sum_i w_i term_i + std z; tensors: x, terms, out."""
    floats, read, kind = (tuple(map(float, weights)),), (), "given"
    if numbers is not None and numbers.ndim == 1:
        floats, read, kind = (), ((numbers,),), "on device"
    elif numbers is not None:
        floats, read, kind = (), ((numbers, float(weights[-1])),), "by element"
    plan = _affine_plan(tensors[0].shape, len(tensors) - 2, noisy, kind)
    _run(_launch(plan, tensors, layout, floats, (*read, *_counters(draws), draws.z)), tensors[0])


def philox(out, draws, stream, normal) -> None:
    """Normals or uniforms of one stream."""
    kernel, grid, elements, _, switches, options, variant = _philox_plan(out.shape, normal)
    rest = *_counters(draws), stream
    key = variant, elements, *map(_seen, (out, *rest))
    _run(Launch(kernel, grid, (out, elements, *rest), switches, options, key), out)


def _launch(plan: _Plan, tensors: Sequence[Tensor | None], layout, floats: tuple, rest: tuple) -> Launch:
    """Of a kernel that takes tensors with their strides, sizes, elements of a sample, floats, and the rest."""
    kernel, grid, elements, _, switches, options, variant = plan
    if layout is None:
        sizes, places = None, tuple([(t, None) for t in tensors])
    else:
        sizes, places = layout[0], tuple(zip(tensors, layout[1], strict=True))
    key = variant, elements, layout, *map(_seen, (*tensors, *rest))
    return Launch(kernel, grid, (places, sizes, elements, *floats, *rest), switches, options, key)


def _seen(value: object) -> object:
    """Describe a value that varies as far as Triton compiles a kernel for it: its type, a pointer's alignment too."""
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
    return _plan(step_kernel, shape, (k, _fit_parameters(fit)), switches)


@lru_cache(4096)
def _sample_plan(shape: tuple[int, ...], floor: float, fit, element: bool) -> _Plan:
    floats = float(floor), _fit_parameters(fit)
    return _plan(sample_kernel, shape, floats, {**_fit_switches(fit), "ELEMENT": element})


@lru_cache(4096)
def _fit_plan(shape: tuple[int, ...], floor: float, fit) -> _Plan:
    return _plan(fit_kernel, shape, (float(floor), _fit_parameters(fit)), _fit_switches(fit))


@lru_cache(4096)
def _affine_plan(shape: tuple[int, ...], terms: int, noisy: bool, kind: str) -> _Plan:
    return _plan(affine_kernel, shape, (), {"TERMS": terms, "NOISY": noisy, "WEIGHTS": kind})


@lru_cache(4096)
def _philox_plan(shape: tuple[int, ...], normal: bool) -> _Plan:
    return _plan(philox_kernel, shape, (), {"NORMAL": normal})


def _plan(kernel, shape: tuple[int, ...], floats: tuple, switches: dict[str, object]) -> _Plan:
    elements = shape[1:].numel()
    # Elements of a warp: of one Philox call a thread where registers are short, else of two.
    warp = 32 * (4 if switches.get("FIT") == "adan" else 8)
    block = min(max(triton.next_power_of_2(elements), warp), _MAX_BLOCK)
    # enable_fp_fusion=False: only the fma that the source spells out, as in the C++ build.
    options = {"num_warps": block // warp, "enable_fp_fusion": False}
    blocks, many = triton.cdiv(elements, block), shape[0] > _MOST_SAMPLES
    grid = (shape[0], blocks) if many else (blocks, shape[0])
    switches = {**switches, "BLOCK": block, "WHOLE": elements % block == 0, "MANY": many}
    return _Plan(kernel, grid, elements, floats, switches, options, (kernel.fn, *switches.values()))


def _fit_switches(fit) -> dict[str, object]:
    """Of the fits only "adan" counts iterations: the others are compiled once for all counts."""
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


def _word(value: int) -> int:
    """The low 32 bits as int32: one type whatever the value, so that no value compiles the kernel anew."""
    return (value + (1 << 31) & 0xFFFFFFFF) - (1 << 31)
