"""The drop-in ops: mixture fits and draws, the fused GMS step, and counter-based noise.

All are forward only, take float32, bfloat16 or float16 (float32 inside; float64 runs the reference), return the
dtype of their first tensor, contiguous, and are also registered as `torch.ops.gms_fast.*`.
Symbols and equation numbers: docs/notation.md.
"""

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from gms_fast.ops import library as library
from gms_fast.steps import StepCoefficients
from gms_fast.types import Mixture
from gms_fast.types import as_range as as_range

Seed = int | Sequence[int] | Tensor
Draws = tuple[Tensor | None, Tensor | None] | Tensor | None

_ops = torch.ops.gms_fast


def as_seed(seed: Seed) -> int | Tensor:
    """A seed as the 64 bits of one signed integer, or as an int64 tensor of one per sample.

    Raises TypeError for anything but integers, ValueError for one outside [-2^63, 2^64).
    """
    if isinstance(seed, Tensor) and seed.ndim == 1:
        if seed.dtype != torch.int64:
            raise TypeError(f"seed must be an int64 tensor if it is a tensor: got {seed.dtype}")
        return seed
    if isinstance(seed, Sequence) and not isinstance(seed, str):
        return torch.tensor([as_seed(s) for s in seed], dtype=torch.int64)
    try:
        value = operator.index(seed)
    except TypeError:
        raise TypeError(f"seed must be an integer, or one integer per sample: got {seed!r}") from None
    if not -(1 << 63) <= value < 1 << 64:
        raise ValueError(f"seed must fit in 64 bits: got {value}")
    return value - (1 << 64) if value >= 1 << 63 else value


def _seeds(seed: Seed, device: torch.device) -> dict[str, object]:
    seed = as_seed(seed)
    return {"seeds": seed.to(device)} if isinstance(seed, Tensor) else {"seed": seed}


def _draws(noise: Draws) -> dict[str, Tensor | None]:
    z, u = noise if isinstance(noise, tuple) else (noise, None)
    return {"z": z, "u": u}


def fit_mixture(
    mean: Tensor,
    var: Tensor,
    third: Tensor,
    floor: float = 0.0,
    *,
    fit: str = "exact",
    weight: float = 1 / 3,
    iterations: int = 70,
    lr: float = 0.06,
    eps: float = 1e-8,
) -> Mixture:
    """Two Gaussians of equal variance with the given mean, variance and third central moment, per element.

    w N(mean_a, V) + (1-w) N(mean_b, V) with d = mean_a - mean_b:
    var = w(1-w) d^2 + V and third = w(1-w)(1-2w) d^3 (eq. 4).

    mean, var, third  (B, *); var >= 0. Where var < floor the fit is one Gaussian of that variance
    floor             smallest V; the distance of the means may use var - floor only
    fit               "exact": the closed solution for `weight`; where it would need V < floor, as much of the third
                      moment as V = floor allows. "free": there, V = floor and the weight that matches all three.
                      "adan": the released optimiser (`iterations`, `lr`, `eps`; eps = 1e-8 N reproduces a released
                      call on N elements). "gaussian": mean_a = mean_b = mean, V = var
    weight            w in (0, 1), not 1/2 for "exact" and "free"
    Returns Mixture(weight, mean_a, mean_b, var), each (B, *). NaN in gives NaN out in that element only.
    Raises ValueError or TypeError naming the argument. Source: arXiv 2311.00941 and docs/notation.md.
    """
    options = {"fit": fit, "weight": weight, "iterations": iterations, "lr": lr, "eps": eps}
    return Mixture(*_ops.fit_mixture(mean, var, third, floor, **options))


def sample_mixture(
    mean: Tensor,
    var: Tensor,
    third: Tensor,
    floor: float = 0.0,
    *,
    seed: Seed = 0,
    step: int = 0,
    sample_offset: int = 0,
    component: str = "element",
    fit: str = "exact",
    weight: float = 1 / 3,
    noise: Draws = None,
) -> Tensor:
    """Fit and draw in one pass: (mean_a if u < w else mean_b) + sqrt(V) z.

    mean, var, third, floor, fit, weight  as in `fit_mixture`
    seed, step, sample_offset   the draws are a pure function of (seed, sample_offset + b, step, element); one seed
                                per sample replaces (seed, sample) by (its seed, 0)
    component   "element": one u per element; "sample": one u per sample, shared by its elements
    noise       (z, u), given draws: z (B, *), u like z for "element", (B,) for "sample"; None draws them
    Returns (B, *).
    """
    options = {"step": step, "sample_offset": sample_offset, "component": component, "fit": fit, "weight": weight}
    return _ops.sample_mixture(mean, var, third, floor, **options, **_seeds(seed, mean.device), **_draws(noise))


def gms_step(
    x: Tensor,
    e1: Tensor,
    e2: Tensor | None,
    e3: Tensor | None,
    step: StepCoefficients,
    *,
    seed: Seed = 0,
    step_index: int = 0,
    sample_offset: int = 0,
    component: str = "sample",
    fit: str = "exact",
    weight: float = 1 / 3,
    moments: str = "cumulant",
    central: bool = False,
    clip: tuple[float, float] | None = (-1.0, 1.0),
    noise: Draws = None,
    out: Tensor | None = None,
    iterations: int = 70,
    lr: float = 0.06,
    eps: float = 1e-8,
) -> Tensor:
    """One step of a Gaussian Mixture Solver, from noise moments at x_t to a draw of x_s, in one pass.

    x, e1, e2, e3   (B, *): state and E[eps^k|x_t], or E[(eps-e1)^k|x_t] for k = 2, 3 if `central`. fit="gaussian"
                    takes None for e3 (SN-DDPM) and for e2 (DDPM)
    step            `StepCoefficients.between(schedule, t, s)`
    clip            data range [lo, hi] of x_0, or None
    moments         "cumulant": E[x_0|x_t] clipped to the range, its variance to [0, ((hi-lo)/2)^2]; fit="free" also
                    keeps both nodes of x_0 in the range. "released": as the released code clips, range [-1, 1]
    out             a tensor like x to write to (x itself is allowed)
    The rest as in `sample_mixture` and `fit_mixture`. Returns (B, *), x's dtype.
    """
    if not isinstance(step, StepCoefficients):
        raise TypeError(f"step must be StepCoefficients: got {type(step).__name__}")
    lo, hi = as_range(clip) if clip is not None else (None, None)
    options = {"step": step_index, "sample_offset": sample_offset, "component": component, "fit": fit} | {
        "weight": weight, "moments": moments, "central": central, "lo": lo, "hi": hi,
        "iterations": iterations, "lr": lr, "eps": eps,
    }  # fmt: skip
    arguments = x, e1, e2, e3, step.as_list()
    options |= _seeds(seed, x.device) | _draws(noise)
    if out is None:
        return _ops.gms_step(*arguments, **options)
    _ops.gms_step_out(*arguments, **options, out=out)
    return out


def philox_normal(
    shape: Sequence[int],
    *,
    seed: Seed,
    step: int = 0,
    stream: int = 0,
    sample_offset: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Standard normals (B, *), a pure function of (seed, sample_offset + b, step, stream, element).

    stream  0 normals of a step, 1 its uniforms, 2 the initial x_T
    dtype   float32 unless given; float64 has the precision of float32 uniforms
    """
    return _philox(_ops.philox_normal, shape, seed, step, stream, sample_offset, device, dtype)


def philox_uniform(
    shape: Sequence[int],
    *,
    seed: Seed,
    step: int = 0,
    stream: int = 0,
    sample_offset: int = 0,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Uniforms in (0, 1], w 2^-32 + 2^-33 for 32-bit words w; arguments as in `philox_normal`."""
    return _philox(_ops.philox_uniform, shape, seed, step, stream, sample_offset, device, dtype)


def _philox(op, shape, seed, step, stream, sample_offset, device, dtype):
    device = torch.device("cpu") if device is None else torch.device(device)
    options = {"step": step, "stream": stream, "sample_offset": sample_offset, "dtype": dtype, "device": device}
    return op(list(shape), **options, **_seeds(seed, device))
