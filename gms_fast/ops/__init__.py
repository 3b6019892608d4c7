"""The drop-in ops: mixture fits and draws, the fused GMS step, linear updates, and counter-based noise.

All are forward only, take float32, bfloat16 or float16 in any mixture and any layout (float32 inside; float64 runs the
reference, as do devices other than CPUs and CUDA), return the dtype and layout of their first tensor, and are also
registered as `torch.ops.gms_fast.*`. A number may come as a tensor or an array of one element, read at the call.
Symbols and equation numbers: docs/notation.md.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.compiler import is_dynamo_compiling

from gms_fast.ops import fused as fused
from gms_fast.ops import library as library
from gms_fast.ops.checks import a_tensor, check_dtype, described, integer, number
from gms_fast.ops.checks import check_sample_offset as check_sample_offset
from gms_fast.ops.types import DEFAULT, pair
from gms_fast.ops.types import Draws as Draws
from gms_fast.ops.types import Fit as Fit
from gms_fast.ops.types import Given as Noise
from gms_fast.steps import StepCoefficients
from gms_fast.types import Mixture
from gms_fast.types import as_range as as_range

__all__ = [
    "affine_noise",
    "fit_mixture",
    "gms_step",
    "linear_step",
    "philox_normal",
    "philox_uniform",
    "sample_mixture",
]

Seed = int | Sequence[int] | Tensor
_INTEGERS = (
    *(torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8),
)


def as_seed(seed: Seed) -> int | Tensor:
    """A seed as the 64 bits of one signed integer, or as an int64 tensor: one per sample (B,), or one for all ().

    Integers of Python, numpy or torch, of any width; sequences and arrays of them are one per sample.
    Raises TypeError for anything but integers, ValueError for one outside [-2^63, 2^64).
    """
    if isinstance(seed, Tensor) and seed.ndim <= 1:
        if seed.dtype not in _INTEGERS:
            raise TypeError(f"seed must be a tensor of integers if it is a tensor: got {seed.dtype}")
        return seed.view(torch.int64) if seed.dtype == torch.uint64 else seed.to(torch.int64)
    if hasattr(seed, "tolist") and not isinstance(seed, Tensor):  # numpy's arrays and numbers
        return as_seed(seed.tolist())
    if isinstance(seed, Sequence) and not isinstance(seed, (str, bytes)):
        return torch.tensor([_seed_bits(s) for s in seed], dtype=torch.int64, device="cpu")
    return _seed_bits(seed)


def _seed_bits(seed: object) -> int:
    try:
        value = integer("seed", seed)
    except TypeError:
        raise TypeError(f"seed must be an integer, or one integer per sample: got {described(seed)}") from None
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"seed must fit in 64 bits: got {value}")
    return value - (1 << 64) if value >= 1 << 63 else value


def draws_of(
    seed: Seed,
    step: int | Tensor,
    sample_offset: int,
    component: str,
    noise: Noise,
    where: Tensor | torch.device,
) -> Draws:
    """The draws that flat keywords ask for, seeds in a tensor where they are read. Raises TypeError or ValueError."""
    if type(seed) is not int or not 0 <= seed < 1 << 63:
        seed = as_seed(seed)
        if isinstance(seed, Tensor):
            seed = _holding_numbers("seed", seed, where).to(_device_of(where))
    if type(step) is not int:
        step = _holding_numbers("step index", step, where) if isinstance(step, Tensor) else integer("step index", step)
    z, u = (None, None) if noise is None else pair(noise)
    return Draws(seed, step, sample_offset, component, z, u)


def _device_of(where: Tensor | torch.device) -> torch.device:
    return where.device if isinstance(where, Tensor) else where


def _holding_numbers(name: str, tensor: Tensor, where: Tensor | torch.device) -> Tensor:
    if tensor.is_meta and _device_of(where).type != "meta":
        raise ValueError(f"{name} must hold numbers: got a tensor on meta")
    return tensor


def fit_mixture(
    mean: Tensor,
    var: Tensor,
    third: Tensor,
    floor: float = 0.0,
    *,
    fit: str = DEFAULT.kind,
    weight: float = DEFAULT.weight,
    iterations: int = DEFAULT.iterations,
    lr: float = DEFAULT.lr,
    eps: float = DEFAULT.eps,
) -> Mixture:
    """Two Gaussians of equal variance with the given mean, variance and third central moment, per element.

    w N(mean_a, V) + (1-w) N(mean_b, V) with d = mean_a - mean_b:
    var = w(1-w) d^2 + V and third = w(1-w)(1-2w) d^3 (eq. 4).

    mean, var, third  (B, *). A negative var, as rounding leaves, counts as 0. Where var < floor the fit is one Gaussian
                      of that variance
    floor             smallest V of the closed fits: the distance of their means may use var - floor only
    fit               "exact": the closed solution for `weight`; where it would need V < floor, as much of the third
                      moment as V = floor allows. "free": there, V = floor and the weight that matches all three; a is
                      the light component (w <= 1/2), above the mean for third >= 0, else below.
                      "adan": the released optimiser (`iterations`, `lr`, `eps` >= 1e-20; eps = 1e-8 N reproduces a
                      released call on N elements). "gaussian": mean_a = mean_b = mean, V = var; `third` is not read
    weight            w in [1e-6, 1 - 1e-6], and 2^-24 or more from 1/2 for "exact" and "free"
    Returns Mixture(weight, mean_a, mean_b, var), each (B, *). Finite moments give a finite mixture, of these moments to
    within rounding: docs/notation.md has the range and the bound. NaN in a moment that is read is NaN in mean_a, mean_b
    or var of its element, and in no other element.
    Raises ValueError or TypeError naming the argument. Source: arXiv 2311.00941 and docs/notation.md.
    """
    return Mixture(*fused.fit_mixture(mean, var, third, floor, Fit(fit, weight, iterations, lr, eps)))


def sample_mixture(
    mean: Tensor,
    var: Tensor,
    third: Tensor,
    floor: float = 0.0,
    *,
    seed: Seed = 0,
    step: int | Tensor = 0,
    sample_offset: int = 0,
    component: str = "element",
    fit: str = DEFAULT.kind,
    weight: float = DEFAULT.weight,
    noise: Noise = None,
) -> Tensor:
    """Fit and draw in one pass: (mean_a if u < w else mean_b) + sqrt(V) z.

    mean, var, third, floor, fit, weight  as in `fit_mixture`
    seed, step, sample_offset   the draws are a pure function of (seed, sample_offset + b, step, element); one seed
                                per sample replaces (seed, sample) by (its seed, 0). Seed and step may be int64
                                tensors () on the device: a CUDA graph reads them at every replay
    component   "element": one u per element; "sample": one u per sample, shared by its elements
    noise       z or (z, u), given draws: z (B, *), u like z for "element", (B,) for "sample"; each None is drawn
    Returns (B, *).
    """
    draws = draws_of(seed, step, sample_offset, component, noise, a_tensor("mean", mean))
    return fused.sample_mixture(mean, var, third, floor, Fit(fit, weight), draws)


def gms_step(
    x: Tensor,
    e1: Tensor,
    e2: Tensor | None,
    e3: Tensor | None,
    step: StepCoefficients | Tensor,
    *,
    seed: Seed = 0,
    step_index: int | Tensor = 0,
    sample_offset: int = 0,
    component: str = "sample",
    fit: str = DEFAULT.kind,
    weight: float = DEFAULT.weight,
    moments: str = "cumulant",
    central: bool = False,
    clip: tuple[float, float] | None = fused.UNIT,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    noise: Noise = None,
    out: Tensor | None = None,
    iterations: int = DEFAULT.iterations,
    lr: float = DEFAULT.lr,
    eps: float = DEFAULT.eps,
) -> Tensor:
    """One step of a Gaussian Mixture Solver, from noise moments at x_t to a draw of x_s, in one pass.

    x, e1, e2, e3   (B, *): state and E[eps^k|x_t], or E[(eps-e1)^k|x_t] for k = 2, 3 if `central`. fit="gaussian"
                    does not read e3 (SN-DDPM), which may be None, and takes None for e2 (DDPM)
    step            `StepCoefficients.between(schedule, t, s)`, or its `as_tensor(device)`
    clip            data range [lo, hi] of x_0, or None
    moments         "cumulant": E[x_0|x_t] clipped to the range, its variance to [0, ((hi-lo)/2)^2]; fit="free" also
                    keeps both nodes of x_0 in the range. "released": as the released code clips, range [-1, 1]
    unconditional, guidance  e1_u (B, *) without a condition, and w: the law of the noise is shifted to the first moment
                    e1_u + w (e1 - e1_u), its moments about that being those of e1, e2, e3 (classifier-free guidance)
    out             a tensor of x's shape to write to, of any dtype; it may be one of the inputs
    The rest as in `sample_mixture` and `fit_mixture`. Returns (B, *), x's dtype: finite where |x|, |e1|, |e2|^(1/2) and
    |e3|^(1/3) are at most 10^6 (for fit="adan" of moments="cumulant" if there is a `clip`). NaN goes through, but for
    one in e3 with moments="released", which takes E[x_0] in its place.
    """
    draws = draws_of(seed, step_index, sample_offset, component, noise, a_tensor("x", x))
    choice = Fit(fit, weight, iterations, lr, eps)
    return fused.gms_step(
        x, e1, e2, e3, step, choice, draws, moments=moments, central=central, clip=clip,
        unconditional=unconditional, guidance=number("guidance", guidance), out=out,
    )  # fmt: skip


def linear_step(
    x: Tensor,
    output: Tensor,
    terms: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    noise_std: float = 0.0,
    *,
    data: tuple[float, float] | None = None,
    clip: tuple[float, float] | None = fused.UNIT,
    unconditional: Tensor | None = None,
    guidance: float = 1.0,
    seed: Seed = 0,
    step_index: int | Tensor = 0,
    sample_offset: int = 0,
    noise: Noise = None,
) -> tuple[Tensor, Tensor]:
    """(x_s, m): w_0 x + w_1 m + sum_j w_{j+2} term_j + noise_std z with m = E[x_0|x_t] = clip(p x + q y), in one pass.

    x          (B, *), the state
    output     (B, *), the network's output y; a part of its channels will do, as it lies
    data       (p, q), as `gms_fast.prediction.TO_DATA[form](alpha_t, sigma_t)` has them for each form of prediction:
               (1/alpha_t, -sigma_t/alpha_t) for noise
    clip       data range of x_0, or None
    unconditional, guidance  y_u and w: y_u + w (y - y_u) takes the place of y (classifier-free guidance)
    terms      at most eight (B, *): data estimates of the last steps, or states
    weights    w_0, w_1, ..; or a float32 tensor on x's device, read by the kernel: of p, q, these and noise_std, which
               then are not given; or by element (n, *), of x, m, the terms, and last of what is added
    The rest as in `affine_noise`. Both results have x's dtype. Raises ValueError or TypeError naming the argument.
    """
    draws = draws_of(seed, step_index, sample_offset, "element", noise, a_tensor("x", x))
    terms = _listed("terms", terms, "tensors")
    numbers = weights if isinstance(weights, Tensor) else None
    weights = _floats("weights", weights) if numbers is None else []
    step = fused.linear_of(data, clip, guidance, len(terms), weights, noise_std, numbers)
    x_s, m = fused.linear_step(
        x, a_tensor("output", output), terms, step, draws._replace(u=None),
        numbers=numbers, unconditional=unconditional,
    )  # fmt: skip
    return x_s, m


def affine_noise(
    x: Tensor,
    terms: Sequence[Tensor],
    weights: Sequence[float] | Tensor,
    noise_std: float = 0.0,
    *,
    seed: Seed = 0,
    step_index: int | Tensor = 0,
    sample_offset: int = 0,
    noise: Noise = None,
    out: Tensor | None = None,
) -> Tensor:
    """w_0 x + sum_i w_i term_i + noise_std z in one pass: the update of every linear solver (eq. 7).

    x, terms   (B, *), at most eight terms
    weights    w_0 of x, then one for each term; or a (n + 2,) float32 tensor on x's device, read by the kernel, of
               these and noise_std, which then is not given; or for every element of a sample its own: a (n + 2, *)
               float32 tensor on x's device, of x, of the terms, and last of what is added. It may be float64 where x
               or a term is
    noise_std  of the normals z; nothing is drawn for 0
    noise      z, given draws
    The rest as in `gms_step`. Returns (B, *), x's dtype. Raises ValueError or TypeError naming the argument.
    """
    draws = draws_of(seed, step_index, sample_offset, "element", noise, a_tensor("x", x))
    numbers = weights if isinstance(weights, Tensor) else None
    if numbers is not None and numbers.ndim < 2 and number("noise_std", noise_std):
        raise ValueError(f"noise_std must not be given beside a tensor of weights, which holds it: got {noise_std}")
    terms = _listed("terms", terms, "tensors")
    weights = _floats("weights", weights) if numbers is None else numbers
    return fused.affine_noise(x, terms, weights, noise_std, draws._replace(u=None), out=out)


def _floats(name: str, values: Any) -> list[float]:
    values, plain = _listed(name, values, "numbers"), is_dynamo_compiling()
    return [float(value) if plain or type(value) is float else number(name, value) for value in values]


def _listed(name: str, values: Any, kind: str) -> list[Any]:
    """The values of a sequence, which a tensor is not."""
    try:
        if isinstance(values, Tensor):
            raise TypeError
        return list(values)
    except TypeError:
        raise TypeError(f"{name} must be a sequence of {kind}: got {described(values)}") from None


def philox_normal(
    shape: Sequence[int],
    *,
    seed: Seed,
    step: int | Tensor = 0,
    stream: int = 0,
    sample_offset: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normals (B, *), a pure function of (seed, sample_offset + b, step, stream, element).

    step    of the ops; `sample` counts its own from 2^30 on, so that no draw with a small one is also one of its steps
    stream  0 normals of a step, 1 its uniforms, 2 the initial x_T, 3 to 5 of `gms_fast.statistics`, 6 of
            guides that are edited
    device  torch's default device unless given
    dtype   float32 unless given; float64 has the precision of float32 uniforms
    """
    return _philox(True, shape, seed, step, stream, sample_offset, device, dtype)


def philox_uniform(
    shape: Sequence[int],
    *,
    seed: Seed,
    step: int | Tensor = 0,
    stream: int = 0,
    sample_offset: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Uniforms in (0, 1], w 2^-32 + 2^-33 for 32-bit words w; arguments as in `philox_normal`."""
    return _philox(False, shape, seed, step, stream, sample_offset, device, dtype)


def _philox(
    normal: bool,
    shape: Sequence[int],
    seed: Seed,
    step: int | Tensor,
    stream: int,
    sample_offset: int,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
) -> Tensor:
    device = torch.empty(0).device if device is None else torch.device(device)  # as torch's own functions have it
    draws = draws_of(seed, step, integer("sample_offset", sample_offset), "element", None, device)
    if dtype is not None:
        check_dtype("dtype", dtype)
    sizes = [n if isinstance(n, torch.SymInt) else integer("shape", n) for n in _listed("shape", shape, "integers")]
    return fused.philox(normal, sizes, draws, integer("stream", stream), dtype, device)
