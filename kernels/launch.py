"""The launchers: arguments arrive checked and contiguous (gms_fast.ops), the output allocated."""

from contextlib import nullcontext

import torch
import triton
from torch import Tensor

from gms_fast.kernels.mixture import FitParameters
from gms_fast.kernels.moments import StepCoefficients
from gms_fast.kernels.step import fit_kernel, philox_kernel, sample_kernel, step_kernel

_A_WARP = 32 * 4  # elements: each thread takes those of one Philox call, which keeps the fits in registers
_MAX_BLOCK = 1024


def gms_step(
    x: Tensor,
    e1: Tensor,
    e2: Tensor | None,
    e3: Tensor | None,
    out: Tensor,
    coefficients: tuple[float, ...],
    lo: float,
    hi: float,
    fit: str,
    weight: float,
    iterations: int,
    lr: float,
    eps: float,
    moments: str,
    central: bool,
    seed: int,
    seeds: Tensor | None,
    sample_offset: int,
    step: int,
    z: Tensor | None,
    u: Tensor | None,
    element: bool,
) -> None:
    """Noise moments to x_s. coefficients = (alpha_t, sigma_t, A, B, c, var_max); e2, e3 = None stand for zeros."""
    alpha, sigma, *rest = coefficients
    k = StepCoefficients(*map(float, (1 / alpha, sigma / alpha, *rest, lo, hi)))
    p = _fit_parameters(weight, lr, eps)
    counters = _counters(seed, seeds, sample_offset, step)
    switches = {**_fit_switches(fit, iterations), "MOMENTS": moments, "CENTRAL": central, "ELEMENT": element}
    _launch(step_kernel, x, (x, e1, e2, e3, out), (k, p, *counters, z, u), switches)


def sample_mixture(
    mean: Tensor,
    var: Tensor,
    third: Tensor,
    out: Tensor,
    floor: float,
    fit: str,
    weight: float,
    iterations: int,
    lr: float,
    eps: float,
    seed: int,
    seeds: Tensor | None,
    sample_offset: int,
    step: int,
    z: Tensor | None,
    u: Tensor | None,
    element: bool,
) -> None:
    """Fit and draw."""
    p = _fit_parameters(weight, lr, eps)
    counters = _counters(seed, seeds, sample_offset, step)
    switches = {**_fit_switches(fit, iterations), "ELEMENT": element}
    _launch(sample_kernel, mean, (mean, var, third, out), (float(floor), p, *counters, z, u), switches)


def fit_mixture(
    mean: Tensor,
    var: Tensor,
    third: Tensor,
    weight_out: Tensor,
    mean_a: Tensor,
    mean_b: Tensor,
    var_out: Tensor,
    floor: float,
    fit: str,
    weight: float,
    iterations: int,
    lr: float,
    eps: float,
) -> None:
    """The fit alone, into weight_out, mean_a, mean_b and var_out."""
    p = _fit_parameters(weight, lr, eps)
    tensors = (mean, var, third, weight_out, mean_a, mean_b, var_out)
    _launch(fit_kernel, mean, tensors, (float(floor), p), _fit_switches(fit, iterations))


def philox(
    out: Tensor, seed: int, seeds: Tensor | None, sample_offset: int, step: int, stream: int, normal: bool
) -> None:
    """Normals or uniforms of one stream."""
    _launch(philox_kernel, out, (out,), (*_counters(seed, seeds, sample_offset, step), stream), {"NORMAL": normal})


def _launch(kernel, like: Tensor, tensors: tuple, scalars: tuple, switches: dict[str, object]) -> None:
    if like.numel() == 0:
        return
    elements = like.numel() // like.shape[0]
    block = min(max(triton.next_power_of_2(elements), _A_WARP), _MAX_BLOCK)
    grid = (like.shape[0] * triton.cdiv(elements, block),)
    # enable_fp_fusion=False: only the fma that the source spells out, as in the C++ build.
    options = {"BLOCK": block, "num_warps": block // _A_WARP, "enable_fp_fusion": False}
    with torch.cuda.device(like.device) if like.is_cuda else nullcontext():
        kernel[grid](*tensors, elements, *scalars, **switches, **options)


def _fit_switches(fit: str, iterations: int) -> dict[str, object]:
    """Of the fits only "adan" counts iterations: the others are compiled once for all counts."""
    return {"FIT": fit, "ITERATIONS": iterations if fit == "adan" else 0}


def _fit_parameters(weight: float, lr: float, eps: float) -> FitParameters:
    spread = weight * (1 - weight)
    skew = spread * (1 - 2 * weight)
    inv_skew = 1 / skew if skew else float("inf")  # only fits that do not use it take w = 1/2
    return FitParameters(*map(float, (weight, spread, 1 / spread, inv_skew, lr, eps)))


def _counters(seed: int, seeds: Tensor | None, sample_offset: int, step: int) -> tuple:
    return seeds, _word(seed), _word(seed >> 32), sample_offset, _word(step)


def _word(value: int) -> int:
    """The low 32 bits as int32: one type whatever the value, so that no value compiles the kernel anew."""
    low = value & 0xFFFFFFFF
    return low - (1 << 32) if low >> 31 else low
