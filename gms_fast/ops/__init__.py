"""Drop-in ops: mixture fits and draws, the fused GMS step, linear updates, and noise.

The ops do not support autograd. They accept float32, bfloat16 and float16 tensors in any mixture and memory layout, and
compute in float32. For float64 tensors, and on devices other than CPUs and CUDA GPUs, the reference in plain torch runs
instead. A result has the dtype and layout of the first tensor. Numbers may also be passed as tensors or arrays of one
element, which are read during the call. The ops are also registered as `torch.ops.gms_fast.*`. docs/notation.md defines
the symbols and lists the numbered equations.
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
    """Fit a mixture of two Gaussians with equal variance to given moments, element by element.

    The mixture is w N(mean_a, V) + (1-w) N(mean_b, V). With d = mean_a - mean_b, it has the variance
    w(1-w) d^2 + V and the third central moment w(1-w)(1-2w) d^3 (eq. 4 of docs/notation.md).

    Args:
        mean: Means (B, *).
        var: Variances (B, *). Negative values, which can result from rounding, count as 0. Where var < floor, the fit
            is a single Gaussian with variance var.
        third: Third central moments (B, *). Ignored with fit="gaussian".
        floor: Lower bound >= 0 for V in the fits "exact" and "free". At most var - floor of the variance can then come
            from the distance between the two means (default 0).
        fit: Method of the fit.

            - "exact" (default): Match all three moments in closed form, with the given `weight`. Where that would
              require V < floor, set V = floor and match as much of the third moment as possible.
            - "free": Like "exact", but where that would require V < floor, set V = floor and choose the weight that
              matches all three moments. There, component a is the lighter one (w <= 1/2). It lies above the mean if
              third >= 0, else below.
            - "adan": Run the iterative optimiser of the released code.
            - "gaussian": Ignore the third moment: mean_a = mean_b = mean and V = var.
        weight: Weight w of component a, in [1e-6, 1 - 1e-6] (default 1/3). For "exact" and "free" it must differ from
            1/2 by at least 2^-24, because the third central moment of a symmetric mixture is zero.
        iterations: Number of iterations >= 0 of fit="adan" (default 70).
        lr: Learning rate >= 0 of fit="adan" (default 0.06).
        eps: Denominator offset >= 1e-20 of fit="adan" (default 1e-8). To reproduce a call of the released code on N
            elements, set it to 1e-8 N.

    Returns:
        [`Mixture`][gms_fast.Mixture] of four tensors (B, *). If the moments are finite, the mixture is finite and has
        these moments up to rounding. The section "Rounding" of docs/mathematics/gms.md states the error bound, and the
        largest moments allowed in float32. A NaN in a moment that is used leads to NaN in mean_a, mean_b or var of the
        same element only.

    Raises:
        ValueError: If an argument is out of range, or if shapes or devices differ. The message names the argument.
        TypeError: If an argument has the wrong type or dtype.
        RuntimeError: If a tensor requires grad, because the ops do not support autograd.

    Examples:
        >>> mean, var, third = torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([[0.5, 5.0]])
        >>> fitted = gms_fast.ops.fit_mixture(mean, var, third, fit="free")
        >>> w, a, b, v = fitted
        >>> w * (1 - w) * (1 - 2 * w) * (a - b) ** 3  # both third moments are matched
        tensor([[0.5000, 5.0000]])

    References:
        Guo et al. 2023, arXiv 2311.00941. docs/notation.md describes the fits "exact" and "free".
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
    """Fit a mixture of two Gaussians and draw from it in one pass.

    The draw is (mean_a if u < w else mean_b) + sqrt(V) z, where u is uniform and z is standard normal.

    Args:
        mean: Means (B, *).
        var: Variances (B, *).
        third: Third central moments (B, *). Ignored with fit="gaussian".
        floor: Lower bound for V, see [`fit_mixture`][gms_fast.ops.fit_mixture] (default 0).
        seed: 64-bit integer, or one integer per sample (default 0). Each random number depends only on
            (seed, sample_offset + b, step, element), where b is the row of the sample. With one seed per sample, each
            sample uses its own seed, and 0 instead of sample_offset + b. An int64 tensor of shape () on the device is
            read by the kernel, so a CUDA graph reads it again at every replay.
        step: Counter of the draw, in [0, 2^32), as an integer or an int64 tensor of shape () on the device (default 0).
        sample_offset: Index of the first sample (default 0).
        component: "element" (default) draws one u for each element. "sample" draws one u for each sample, which all of
            its elements share.
        fit: Method of the fit, see `fit_mixture` (default "exact").
        weight: Weight of component a, see `fit_mixture` (default 1/3).
        noise: Random numbers to use instead of the built-in generator: z or (z, u). z has shape (B, *). u has the
            shape of z for component="element", or (B,) for "sample". The generator draws whichever of the two
            is None (default None).

    Returns:
        Tensor (B, *) of draws.

    Raises:
        ValueError: If an argument is out of range, or if shapes or devices differ. The message names the argument.
        TypeError: If an argument has the wrong type or dtype.
        RuntimeError: If a tensor requires grad, because the ops do not support autograd.

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
    """Take one step of a Gaussian Mixture Solver: draw x_s given the noise moments at x_t.

    One pass computes the moments of q(x_s|x_t) (eqs. 1 to 3 of docs/notation.md), fits a mixture of two Gaussians to
    them, and draws x_s from it.

    Args:
        x: State x_t (B, *).
        e1: First noise moment E[eps|x_t] (B, *).
        e2: Second noise moment (B, *): E[eps^2|x_t], or E[(eps-e1)^2|x_t] if `central`. With fit="gaussian" it may be
            None, and the step is then that of DDPM.
        e3: Third noise moment (B, *): E[eps^3|x_t], or E[(eps-e1)^3|x_t] if `central`. Ignored with fit="gaussian",
            which is SN-DDPM; it may then be None.
        step: Coefficients of the step: `StepCoefficients.between(schedule, t, s)`, or the tensor that their
            `as_tensor(device)` returns.
        seed: 64-bit integer, or one integer per sample, see [`sample_mixture`][gms_fast.ops.sample_mixture] (default
            0).
        step_index: Counter of the draw, called `step` in `sample_mixture` (default 0).
        sample_offset: Index of the first sample (default 0).
        component: "sample" (default) draws one uniform number for each sample, "element" one for each element.
        fit: Method of the fit, see [`fit_mixture`][gms_fast.ops.fit_mixture] (default "exact").
        weight: Weight of component a, see `fit_mixture` (default 1/3).
        moments: Clipping of the moments. "cumulant" (default) clips E[x_0|x_t] to the data range [lo, hi], and the
            variance of x_0 given x_t to [0, ((hi-lo)/2)^2]. With fit="free" it also keeps the two means, as values of
            x_0, within the data range. "released" clips as the released code does, to the range [-1, 1].
        central: True if `e2` and `e3` are central moments (default False).
        clip: Data range (lo, hi) of x_0, or None for no clipping (default (-1, 1)).
        unconditional: First moment e1_u (B, *) without the condition, for classifier-free guidance. Required if
            `guidance` is not 1; else None (default).
        guidance: Guidance scale w (default 1). With `unconditional`, the distribution of the noise is shifted such that
            its mean is e1_u + w (e1 - e1_u). Its central moments do not change.
        noise: Random numbers to use instead of the built-in generator, see `sample_mixture` (default None).
        out: Tensor that receives the result, with the shape of x and any dtype. It may be one of the inputs. None
            (default) allocates a new tensor.
        iterations: Number of iterations of fit="adan" (default 70).
        lr: Learning rate of fit="adan" (default 0.06).
        eps: Denominator offset of fit="adan", see `fit_mixture` (default 1e-8).

    Returns:
        Tensor x_s (B, *) with the dtype of x. It is finite if |x|, |e1|, |e2|^(1/2) and |e3|^(1/3) are at most 10^6.
        With fit="adan" and moments="cumulant", this also requires `clip`. NaN in an input leads to NaN in the result.
        The exception is NaN in e3 with moments="released", where the third raw moment of x_0 is replaced by E[x_0|x_t].

    Raises:
        ValueError: If an argument is out of range, or if shapes or devices differ. The message names the argument.
        TypeError: If an argument has the wrong type or dtype.
        RuntimeError: If a tensor requires grad, because the ops do not support autograd.

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
    """Take one step of a linear solver, given the network's output.

    The step is x_s = w_0 x + w_1 m + sum_j w_{j+2} term_j + noise_std z, with the data estimate
    m = E[x_0|x_t] = clip(p x + q y).

    Args:
        x: State x_t (B, *).
        output: Output y of the network (B, *). It may be a view of some of the network's output channels.
        terms: At most eight further tensors (B, *), for example the data estimates of the last steps, or older states.
        weights: The weights w_0, w_1, ..., in one of three forms:

            - a sequence of numbers;
            - a float32 tensor (p, q, w_0, w_1, ..., noise_std) on the device of x, which the kernel reads. Then omit
              `data` and `noise_std`;
            - a tensor (len(terms) + 3, *) with a separate weight for each element of a sample. Its rows are the
              weights of x, m and the terms, and a constant that is added.
        noise_std: Standard deviation >= 0 of the noise z. With 0 (default), no noise is drawn.
        data: Coefficients (p, q) of the data estimate, which `gms_fast.prediction.TO_DATA[form](alpha_t, sigma_t)`
            returns for each prediction type. For noise predictions they are (1/alpha_t, -sigma_t/alpha_t).
        clip: Data range (lo, hi) of x_0, or None for no clipping (default (-1, 1)).
        unconditional: Output y_u without the condition, for classifier-free guidance. Required if
            `guidance` is not 1; else None (default).
        guidance: Guidance scale w (default 1). With `unconditional`, y_u + w (y - y_u) replaces y.
        seed: 64-bit integer, or one integer per sample, see [`sample_mixture`][gms_fast.ops.sample_mixture] (default
            0).
        step_index: Counter of the draw, called `step` in `sample_mixture` (default 0).
        sample_offset: Index of the first sample (default 0).
        noise: Standard normals z (B, *) to use instead of the built-in generator (default None).

    Returns:
        The new state x_s and the data estimate m, both (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range, or if shapes or devices differ. The message names the argument.
        TypeError: If an argument has the wrong type or dtype.
        RuntimeError: If a tensor requires grad, because the ops do not support autograd.

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

    Every linear solver updates its state in this way (eq. 7 of docs/notation.md).

    Args:
        x: State (B, *).
        terms: At most eight tensors (B, *).
        weights: The weight w_0 of x and one weight for each of the n terms, in one of three forms:

            - a sequence of n + 1 numbers;
            - a float32 tensor (n + 2,) of the weights and noise_std on the device of x, which the kernel reads. Then
              omit `noise_std`;
            - a tensor (n + 2, *) on the device of x, with a separate weight for each element of a sample. Its rows are
              the weights of x and the terms, and a constant that is added. It is float32, or float64 if x or a term
              is.
        noise_std: Standard deviation >= 0 of the noise z. With 0 (default), no noise is drawn.
        seed: 64-bit integer, or one integer per sample, see [`sample_mixture`][gms_fast.ops.sample_mixture] (default
            0).
        step_index: Counter of the draw, called `step` in `sample_mixture` (default 0).
        sample_offset: Index of the first sample (default 0).
        noise: Standard normals z (B, *) to use instead of the built-in generator (default None).
        out: Tensor that receives the result, with the shape of x and any dtype. It may be one of the inputs. None
            (default) allocates a new tensor.

    Returns:
        Tensor (B, *) with the dtype of x.

    Raises:
        ValueError: If an argument is out of range, or if shapes or devices differ. The message names the argument.
        TypeError: If an argument has the wrong type or dtype.
        RuntimeError: If a tensor requires grad, because the ops do not support autograd.

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
    """Draw standard normal numbers with the counter-based generator Philox4x32-10.

    Each number depends only on (seed, sample_offset + b, step, stream, element), where b is the row of the sample. It
    does not depend on the order of calls or on the batch size.

    Args:
        shape: Shape (B, *) of the result.
        seed: 64-bit integer, or one integer per sample, see [`sample_mixture`][gms_fast.ops.sample_mixture].
        step: Counter of the draw, in [0, 2^32) (default 0). `sample` uses counters from 2^30 on, so smaller ones never
            repeat its noise.
        stream: Number in [0, 256) that separates draws for different purposes (default 0). The library uses 0 for the
            normals and 1 for the uniforms of a step, 2 for the initial x_T, 3 to 5 for `gms_fast.statistics`, and 6 for
            noise added to an image that is edited.
        sample_offset: Index of the first sample (default 0).
        device: Device of the result, or None (default) for torch's default device.
        dtype: dtype of the result, or None (default) for float32. float64 results are computed from float32 uniforms.

    Returns:
        Tensor of this shape.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

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
    """Draw uniform numbers in (0, 1] with the counter-based generator Philox4x32-10.

    Each number is w 2^-32 + 2^-33 for a random 32-bit word w, which depends only on (seed, sample_offset + b, step,
    stream, element).

    Args:
        shape: Shape (B, *) of the result.
        seed: 64-bit integer, or one integer per sample, see [`sample_mixture`][gms_fast.ops.sample_mixture].
        step: Counter of the draw, see [`philox_normal`][gms_fast.ops.philox_normal] (default 0).
        stream: Stream of the draw, see `philox_normal` (default 0).
        sample_offset: Index of the first sample (default 0).
        device: Device of the result, or None (default) for torch's default device.
        dtype: dtype of the result, or None (default) for float32.

    Returns:
        Tensor of this shape.

    Raises:
        ValueError: If an argument is out of range.
        TypeError: If an argument has the wrong type.

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
