"""Drop-in ops: mixture fits and draws, the fused GMS step, linear updates, and noise.

All ops are forward only. They take float32, bfloat16 or float16, mixed freely, in any layout, and compute in float32.
float64 runs the reference, as do devices other than CPUs and CUDA. Results have the dtype and layout of the first
tensor. A number may be a tensor or an array of one element, which is read at the call. The ops are also registered as
`torch.ops.gms_fast.*`. Symbols and equation numbers: docs/notation.md.
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
    """Return a seed as the 64 bits of one signed integer, or as an int64 tensor.

    The tensor holds one seed per sample (B,), or one for all (). Integers may be Python's, numpy's or torch's, of any
    width; sequences and arrays of them are one per sample.

    Raises TypeError for anything but integers, ValueError for one outside [-2^63, 2^64).
    """
    if isinstance(seed, Tensor) and seed.ndim <= 1:
        if seed.dtype not in _INTEGERS:
            raise TypeError(f"seed must be an integer tensor if it is a tensor: got {seed.dtype}")
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
    """Return the draws that an op's flat keywords ask for; tensors of seeds move to `where`.

    Raises TypeError or ValueError.
    """
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
    """Return the tensor. Raises ValueError if it is on meta and so holds no numbers."""
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
    """Fit two Gaussians of equal variance to a mean, variance and third moment, per element.

    The mixture is w N(mean_a, V) + (1-w) N(mean_b, V). With d = mean_a - mean_b,
    var = w(1-w) d^2 + V and third = w(1-w)(1-2w) d^3 (eq. 4 of docs/notation.md).

    Args:
        mean: Means (B, *).
        var: Variances (B, *). A negative one, which rounding may leave, counts as 0. Where var < floor the fit is
            one Gaussian of that variance.
        third: Third central moments (B, *); not read for fit="gaussian".
        floor: Smallest V of the closed fits, >= 0: the spread of their means may use only var - floor (default 0).
        fit: "exact" (default): the closed solution for `weight`; where it would need V < floor, it takes V = floor and
            as much of the third moment as that allows. "free": in that case V = floor, and the weight matches all three
            moments; a is then the light component (w <= 1/2), above the mean for third >= 0, else below. "adan": the
            released optimiser. "gaussian": mean_a = mean_b = mean, V = var.
        weight: Weight w of component a, in [1e-6, 1 - 1e-6] (default 1/3). For "exact" and "free" it must be at least
            2^-24 from 1/2: a symmetric mixture has no third moment.
        iterations: Iterations of fit="adan", >= 0 (default 70).
        lr: Learning rate of fit="adan", >= 0 (default 0.06).
        eps: Denominator offset of fit="adan", >= 1e-20 (default 1e-8). 1e-8 N reproduces a released call on N elements.

    Returns:
        [`Mixture`][gms_fast.Mixture] (weight, mean_a, mean_b, var), each (B, *). Finite moments give a finite mixture
        that has these moments to within rounding; docs/notation.md states range and bound. NaN in a moment that is read
        becomes NaN in mean_a, mean_b or var of its element, and of no other element.

    Raises:
        ValueError: If an argument lies outside its range, or shapes or devices differ; the message names the argument.
        TypeError: If an argument is of another type or dtype.
        RuntimeError: If a tensor asks for a gradient; the ops are forward only.

    Examples:
        >>> mean, var, third = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[0.5, 5.0]])
        >>> fitted = gms_fast.ops.fit_mixture(mean, var, third, fit="free")
        >>> w, a, b, v = fitted
        >>> w * (1 - w) * (1 - 2 * w) * (a - b) ** 3  # both third moments are matched
        tensor([[0.5000, 5.0000]])

    References:
        Guo et al. 2023, arXiv 2311.00941; the closed fits: docs/notation.md.
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
    """Fit a mixture and draw from it in one pass.

    The draw is (mean_a if u < w else mean_b) + sqrt(V) z, with u uniform and z standard normal.

    Args:
        mean: As in [`fit_mixture`][gms_fast.ops.fit_mixture].
        var: As in `fit_mixture`.
        third: As in `fit_mixture`.
        floor: As in `fit_mixture`.
        seed: 64-bit integer, or one per sample (default 0). The draws are a pure function of
            (seed, sample_offset + b, step, element); with one seed per sample it replaces (seed, sample) by (its seed,
            0). An int64 tensor () on the device is read by the kernel, also by a CUDA graph at every replay.
        step: Counter of the draw, in [0, 2^32), or an int64 tensor () on the device (default 0).
        sample_offset: Index of the first sample (default 0).
        component: "element" (default): one u per element. "sample": one u per sample, shared by its elements.
        fit: As in `fit_mixture`.
        weight: As in `fit_mixture`.
        noise: Given draws z or (z, u): z (B, *); u like z for "element", (B,) for "sample". Each None is drawn.

    Returns:
        Tensor (B, *) of draws.

    Raises:
        ValueError: If an argument lies outside its range, or shapes or devices differ; the message names the argument.
        TypeError: If an argument is of another type or dtype.
        RuntimeError: If a tensor asks for a gradient; the ops are forward only.

    Examples:
        >>> mean, var, third = torch.zeros(4, 1000), torch.ones(4, 1000), torch.full((4, 1000), 0.5)
        >>> x = gms_fast.ops.sample_mixture(mean, var, third, seed=1)
        >>> x.shape, bool(x.mean().abs() < 0.1), bool((x.var() - 1).abs() < 0.1)
        (torch.Size([4, 1000]), True, True)

    References:
        Guo et al. 2023, arXiv 2311.00941.
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
    """Take one step of a Gaussian Mixture Solver: from noise moments at x_t to a draw of x_s.

    One pass computes the moments of q(x_s|x_t) (eqs. 1 to 3 of docs/notation.md), fits the mixture and draws from it.

    Args:
        x: State x_t (B, *).
        e1: E[eps|x_t] (B, *).
        e2: E[eps^2|x_t], or E[(eps-e1)^2|x_t] if `central` (B, *). May be None for fit="gaussian", which is then DDPM.
        e3: E[eps^3|x_t], or E[(eps-e1)^3|x_t] if `central` (B, *). fit="gaussian" does not read it and takes None; that
            is SN-DDPM.
        step: `StepCoefficients.between(schedule, t, s)`, or its `as_tensor(device)`.
        seed: As in [`sample_mixture`][gms_fast.ops.sample_mixture].
        step_index: Counter of the draw: `step` of `sample_mixture`.
        sample_offset: As in `sample_mixture`.
        component: As in `sample_mixture`, but "sample" by default.
        fit: As in [`fit_mixture`][gms_fast.ops.fit_mixture].
        weight: As in `fit_mixture`.
        moments: Clipping of moments. "cumulant" (default): E[x_0|x_t] to the data range and its variance to
            [0, ((hi-lo)/2)^2]; fit="free" also keeps both nodes of x_0 in the range. "released": as the released code
            clips, with range [-1, 1].
        central: True if `e2` and `e3` are central moments (default False).
        clip: Data range (lo, hi) of x_0, or None (default (-1, 1)).
        unconditional: First moment e1_u (B, *) without a condition, for classifier-free guidance, or None (default).
        guidance: Guidance scale w (default 1). The noise is shifted to the first moment e1_u + w (e1 - e1_u); its
            moments about that stay those of e1, e2, e3.
        noise: As in `sample_mixture`.
        out: Tensor of x's shape to write to, of any dtype; it may be one of the inputs. None (default) for a new one.
        iterations: As in `fit_mixture`.
        lr: As in `fit_mixture`.
        eps: As in `fit_mixture`.

    Returns:
        Tensor x_s (B, *) of x's dtype. It is finite where |x|, |e1|, |e2|^(1/2) and |e3|^(1/3) are at most 10^6;
        fit="adan" with moments="cumulant" also needs a `clip` for that. NaN propagates, except from e3 with
        moments="released", which takes E[x_0] in its place.

    Raises:
        ValueError: If an argument lies outside its range, or shapes or devices differ; the message names the argument.
        TypeError: If an argument is of another type or dtype.
        RuntimeError: If a tensor asks for a gradient; the ops are forward only.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> x = torch.randn(2, 1, 8, 8)
        >>> with torch.no_grad():
        ...     e1, e2, e3 = model(x, torch.full((2,), 999.0))
        >>> step = gms_fast.StepCoefficients.between(model.schedule, 999, 800)
        >>> gms_fast.ops.gms_step(x, e1, e2, e3, step, fit="free").shape
        torch.Size([2, 1, 8, 8])

    References:
        Guo et al. 2023, arXiv 2311.00941.
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
    """Take one step of a linear solver from the network's output, and return (x_s, m).

    x_s = w_0 x + w_1 m + sum_j w_{j+2} term_j + noise_std z with m = E[x_0|x_t] = clip(p x + q y).

    Args:
        x: State (B, *).
        output: Output y of the network (B, *); it may be a view of some of its channels.
        terms: At most eight tensors (B, *): data estimates of the last steps, or states.
        weights: w_0, w_1, .. as numbers. Or a float32 tensor on x's device, which the kernel reads: p, q, w_0, ..
            and noise_std; then omit `data` and `noise_std`. Or weights per element (n, *): for x, m and the terms,
            and last a constant that is added.
        noise_std: Standard deviation of the noise z, >= 0; 0 draws nothing (default).
        data: (p, q), as `gms_fast.prediction.TO_DATA[form](alpha_t, sigma_t)` returns them for each form of prediction:
            (1/alpha_t, -sigma_t/alpha_t) for noise.
        clip: Data range (lo, hi) of x_0, or None (default (-1, 1)).
        unconditional: Output y_u without a condition, for classifier-free guidance, or None (default).
        guidance: Guidance scale w: y_u + w (y - y_u) replaces y (default 1).
        seed: As in [`sample_mixture`][gms_fast.ops.sample_mixture].
        step_index: Counter of the draw: `step` of `sample_mixture`.
        sample_offset: As in `sample_mixture`.
        noise: Given normals z (B, *), or None (default).

    Returns:
        (x_s, m), both (B, *) of x's dtype.

    Raises:
        ValueError: If an argument lies outside its range, or shapes or devices differ; the message names the argument.
        TypeError: If an argument is of another type or dtype.
        RuntimeError: If a tensor asks for a gradient; the ops are forward only.

    Examples:
        >>> x, eps = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
        >>> step = gms_fast.StepCoefficients.between(gms_fast.schedules.build("linear"), 999, 800)
        >>> p, q = 1 / step.alpha_t, -step.sigma_t / step.alpha_t
        >>> x_s, m = gms_fast.ops.linear_step(x, eps, [], [step.A, step.B], step.c**0.5, data=(p, q))
        >>> x_s.shape, bool(m.abs().max() <= 1)
        (torch.Size([2, 3, 8, 8]), True)
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
    """Compute w_0 x + sum_i w_i term_i + noise_std z in one pass.

    This is the update of every linear solver (eq. 7 of docs/notation.md).

    Args:
        x: State (B, *).
        terms: At most eight tensors (B, *).
        weights: w_0 of x, then one for each term. Or a (n + 2,) float32 tensor on x's device, which the kernel
            reads: the weights and noise_std; then omit `noise_std`. Or weights per element, a (n + 2, *) tensor on
            x's device: for x and the terms, and last a constant that is added; float32, or float64 if x or a term is.
        noise_std: Standard deviation of the noise z, >= 0; 0 draws nothing (default).
        seed: As in [`sample_mixture`][gms_fast.ops.sample_mixture].
        step_index: Counter of the draw: `step` of `sample_mixture`.
        sample_offset: As in `sample_mixture`.
        noise: Given normals z (B, *), or None (default).
        out: Tensor of x's shape to write to, of any dtype; it may be one of the inputs. None (default) for a new one.

    Returns:
        Tensor (B, *) of x's dtype.

    Raises:
        ValueError: If an argument lies outside its range, or shapes or devices differ; the message names the argument.
        TypeError: If an argument is of another type or dtype.
        RuntimeError: If a tensor asks for a gradient; the ops are forward only.

    Examples:
        >>> x, m = torch.ones(2, 3), torch.full((2, 3), 2.0)
        >>> gms_fast.ops.affine_noise(x, [m], [0.5, 0.25])
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
        >>> gms_fast.ops.affine_noise(x, [], [1.0], 0.1, seed=7).shape
        torch.Size([2, 3])
    """
    draws = draws_of(seed, step_index, sample_offset, "element", noise, a_tensor("x", x))
    numbers = weights if isinstance(weights, Tensor) else None
    if numbers is not None and numbers.ndim < 2 and number("noise_std", noise_std):
        raise ValueError(f"noise_std must not be given with a tensor of weights, which holds it: got {noise_std}")
    terms = _listed("terms", terms, "tensors")
    weights = _floats("weights", weights) if numbers is None else numbers
    return fused.affine_noise(x, terms, weights, noise_std, draws._replace(u=None), out=out)


def _floats(name: str, values: Any) -> list[float]:
    values, plain = _listed(name, values, "numbers"), is_dynamo_compiling()
    return [float(value) if plain or type(value) is float else number(name, value) for value in values]


def _listed(name: str, values: Any, kind: str) -> list[Any]:
    """Return the values of a sequence as a list; a tensor is not one. Raises TypeError."""
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
    """Draw standard normals from counters, with Philox4x32-10.

    Each number is a pure function of (seed, sample_offset + b, step, stream, element). Neither the order of calls nor
    the batch size changes it.

    Args:
        shape: (B, *).
        seed: As in [`sample_mixture`][gms_fast.ops.sample_mixture].
        step: Counter of the draw, in [0, 2^32) (default 0). `sample` uses counters from 2^30 on, so small ones never
            repeat its noise.
        stream: Stream of draws, in [0, 256) (default 0). 0: normals of a step; 1: its uniforms; 2: the initial x_T; 3
            to 5: `gms_fast.statistics`; 6: guides that are edited.
        sample_offset: Index of the first sample (default 0).
        device: Device of the result; None (default) for torch's default device.
        dtype: dtype of the result; None (default) for float32. float64 has the precision of float32 uniforms.

    Returns:
        Tensor of this shape.

    Raises:
        ValueError: If an argument lies outside its range.
        TypeError: If an argument is of another type.

    Examples:
        >>> z = gms_fast.ops.philox_normal((4, 3), seed=0)
        >>> torch.equal(z[2:], gms_fast.ops.philox_normal((2, 3), seed=0, sample_offset=2))
        True

    References:
        Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", SC11.
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
    """Draw uniforms in (0, 1] from counters, with Philox4x32-10.

    Each is w 2^-32 + 2^-33 for a 32-bit word w, a pure function of (seed, sample_offset + b, step, stream, element).

    Args:
        shape: (B, *).
        seed: As in [`philox_normal`][gms_fast.ops.philox_normal].
        step: As in `philox_normal`.
        stream: As in `philox_normal`.
        sample_offset: As in `philox_normal`.
        device: As in `philox_normal`.
        dtype: As in `philox_normal`.

    Returns:
        Tensor of this shape.

    Raises:
        ValueError: If an argument lies outside its range.
        TypeError: If an argument is of another type.

    Examples:
        >>> u = gms_fast.ops.philox_uniform((2, 1000), seed=0)
        >>> bool((u > 0).all() and (u <= 1).all())
        True
    """
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
    device = torch.empty(0).device if device is None else torch.device(device)  # as in torch's own functions
    draws = draws_of(seed, step, integer("sample_offset", sample_offset), "element", None, device)
    if dtype is not None:
        check_dtype("dtype", dtype)
    sizes = [n if isinstance(n, torch.SymInt) else integer("shape", n) for n in _listed("shape", shape, "integers")]
    return fused.philox(normal, sizes, draws, integer("stream", stream), dtype, device)
