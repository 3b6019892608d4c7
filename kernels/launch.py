"""The launchers: arguments arrive checked and grouped (gms_fast.ops), the output allocated.

`step`, `fit` and `noise` are the tuples of gms_fast/arguments.py; `layout` is that of gms_fast/layout.py.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from gms_fast.kernels.mixture import FitParameters
from gms_fast.kernels.moments import StepCoefficients
from gms_fast.kernels.step import affine_kernel, fit_kernel, philox_kernel, sample_kernel, step_kernel

_MAX_BLOCK = 1024  # elements


class Launch(NamedTuple):
    """A kernel with all it is called with, so that it can be compiled without being run."""

    kernel: object
    grid: tuple[int]
    arguments: tuple
    switches: dict[str, object]
    options: dict[str, object]


def gms_step(tensors, layout, step, numbers, fit, noise) -> None:
    """Noise moments to x_s; tensors: x, e1, e2, e3, out, where e2, e3 = None stand for zeros."""
    k = StepCoefficients(*step.numbers, step.lo, step.hi)
    switches = {**_fit_switches(fit), "MOMENTS": step.moments, "CENTRAL": step.central, "ELEMENT": noise.element}
    numbers_and_draws = numbers, *_counters(noise), noise.z, noise.u
    arguments = (*_places(tensors, layout), k, _fit_parameters(fit), *numbers_and_draws)
    _run(_launch(step_kernel, tensors[0], arguments, switches), tensors[0])


def sample_mixture(tensors, layout, floor, fit, noise) -> None:
    """Fit and draw; tensors: mean, var, third, out."""
    arguments = (*_places(tensors, layout), float(floor), _fit_parameters(fit), *_counters(noise), noise.z, noise.u)
    _run(_launch(sample_kernel, tensors[0], arguments, {**_fit_switches(fit), "ELEMENT": noise.element}), tensors[0])


def fit_mixture(tensors, layout, floor, fit) -> None:
    """The fit alone; tensors: mean, var, third, weight, mean_a, mean_b, var."""
    arguments = (*_places(tensors, layout), float(floor), _fit_parameters(fit))
    _run(_launch(fit_kernel, tensors[0], arguments, _fit_switches(fit)), tensors[0])


def affine_noise(tensors, layout, weights, numbers, noisy, noise) -> None:
    """w_0 x + sum_i w_i term_i + std z; tensors: x, terms, out."""
    weights, kind = tuple(map(float, weights)), "given"
    if numbers is not None:
        weights, kind = ((numbers,), "on device") if numbers.ndim == 1 else ((numbers, weights[-1]), "by element")
    switches = {"TERMS": len(tensors) - 2, "NOISY": noisy, "WEIGHTS": kind}
    arguments = (*_places(tensors, layout), weights, *_counters(noise), noise.z)
    _run(_launch(affine_kernel, tensors[0], arguments, switches), tensors[0])


def philox(out, noise, stream, normal) -> None:
    """Normals or uniforms of one stream."""
    elements = out.numel() // out.shape[0]
    _run(_launch(philox_kernel, out, (out, elements, *_counters(noise), stream), {"NORMAL": normal}), out)


def _places(tensors: Sequence[Tensor | None], layout) -> tuple:
    """(tensors with their strides, sizes, elements per sample)."""
    sizes, strides = layout or (None, (None,) * len(tensors))
    return tuple(zip(tensors, strides, strict=True)), sizes, tensors[0].numel() // tensors[0].shape[0]


def _launch(kernel, like: Tensor, arguments: tuple, switches: dict[str, object]) -> Launch:
    elements = like.numel() // like.shape[0]
    # Elements of a warp: of one Philox call a thread where registers are short, else of two.
    warp = 32 * (4 if switches.get("FIT") == "adan" else 8)
    block = min(max(triton.next_power_of_2(elements), warp), _MAX_BLOCK)
    # enable_fp_fusion=False: only the fma that the source spells out, as in the C++ build.
    options = {"num_warps": block // warp, "enable_fp_fusion": False}
    return Launch(
        kernel, (like.shape[0] * triton.cdiv(elements, block),), arguments, {**switches, "BLOCK": block}, options
    )


def _run(launch: Launch, like: Tensor) -> None:
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        launch.kernel[launch.grid](*launch.arguments, **launch.switches, **launch.options)


def _fit_switches(fit) -> dict[str, object]:
    """Of the fits only "adan" counts iterations: the others are compiled once for all counts."""
    return {"FIT": fit.fit, "ITERATIONS": fit.iterations if fit.fit == "adan" else 0}


def _fit_parameters(fit) -> FitParameters:
    weight = fit.weight
    spread = weight * (1 - weight)
    skew = spread * (1 - 2 * weight)
    inv_skew = 1 / skew if skew else float("inf")  # only fits that do not use it take w = 1/2
    return FitParameters(*map(float, (weight, spread, 1 / spread, inv_skew, fit.lr, fit.eps)))


def _counters(noise) -> tuple:
    shared = noise.seeds is not None and noise.seeds.ndim == 0
    keys = (None, noise.seeds) if shared else (noise.seeds, None)
    return (*keys, noise.step_at, _word(noise.seed), _word(noise.seed >> 32), noise.sample_offset, _word(noise.step))


def _word(value: int) -> int:
    """The low 32 bits as int32: one type whatever the value, so that no value compiles the kernel anew."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low
