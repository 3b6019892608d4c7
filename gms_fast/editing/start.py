"""Start of an edit: the noise level, the times from there on, and the noisy images."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gms_fast import constants, ops, schedules, solvers
from gms_fast.assumptions import UNSAID, attribute, ranged, scheduled
from gms_fast.finite import recorded
from gms_fast.network import ARITHMETIC, device_of
from gms_fast.plan import integer
from gms_fast.run import origin_of
from gms_fast.schedules import Schedule
from gms_fast.solvers import GGDM, Solver, Teleport

GUIDE = 6  # stream of the noise that is added to images
_BOUND = (GGDM, Teleport)  # solvers that must start from pure noise
_UNITS = ("share", "t", "level")

Strength = float | str
Model = Callable[..., Any]


class Start(NamedTuple):
    """Starting point of an edit.

    Args:
        solver: The solver that takes the steps from here.
        times: Its times; empty if there is no noise.
        alpha: Signal factor at the first time.
        sigma: Noise level at the first time.
        least: alpha at the last time that has noise.
        whole: True if nothing of the image is left at the first time.
    """

    solver: Solver
    times: list[float]
    alpha: float
    sigma: float
    least: float
    whole: bool


def timesteps(
    model: Model,
    steps: int = 10,
    *,
    strength: Strength,
    solver: str | Solver = "gms",
    schedule: Schedule | str | None = None,
) -> list[float]:
    """Return the times of an edit: the solver's grid from the noise level of `strength` down.

    Pass these times as `timesteps=`, and the result of [`noised`][gms_fast.editing.noised] as `x_T=`, to
    [`sample`][gms_fast.sample], [`graphed`][gms_fast.graphed] or [`Stepper`][gms_fast.Stepper].

    Args:
        model: Model that provides the schedule, and any tables stored with it that `solver` needs. It is not called.
        steps: Number of steps K >= 1. A discrete schedule may have fewer than K times below `strength`. The edit
            then has fewer steps, and a warning states how many.
        strength: Noise level at which the edit starts. A number in [0, 1] is a position on the schedule's time grid,
            from no noise (0) to pure noise (1). For VP, it is t divided by the largest time. "t=500" is a time of the
            schedule, and "level=2.5" is a noise level sigma/alpha.
        solver: A `Solver` or a solver string, as in [`sample`][gms_fast.sample].
        schedule: As in [`sample`][gms_fast.sample].

    Returns:
        List of times, noisiest first. For most solvers it has K + 1 elements. At strength 0 it is empty.

    Raises:
        ValueError: If `strength` is outside the schedule, or if `solver` must start from pure noise (GGDM, Teleport).
        TypeError: If `strength` is neither a number nor a string of one of these forms.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> times = gms_fast.editing.timesteps(model, 5, strength=0.5, solver="ddim")
        >>> len(times), times[0] < model.schedule.t_max
        (6, True)
        >>> x_T = gms_fast.editing.noised(model, torch.zeros(1, 8, 8), strength=0.5, n=4)
        >>> gms_fast.sample(model, solver="ddim", timesteps=times, x_T=x_T).shape
        torch.Size([4, 1, 8, 8])
    """
    return begin(model, schedule, solver, strength, steps).times


def begin(model: Model, schedule: Schedule | str | None, solver: str | Solver, strength: Strength, steps: int) -> Start:
    """Return the start of an edit of a given strength."""
    found, own = scheduled(model, schedule)
    solver = solvers.build(solver, origin=origin_of(model), steps=steps)
    if solver.rises:
        raise ValueError(f"solver must go from more noise to less: got {type(solver).__name__}")
    pack = constants.pack if torch.compiler.is_compiling() else _same
    begun = _begin(pack(found), pack(own), pack(solver), strength, integer("steps", steps))
    times, alpha, sigma, least, whole = begun
    return Start(solver, list(times), alpha, sigma, least, whole)


def _same(value: Any) -> Any:
    """Return the value unchanged: outside torch.compile nothing needs to be packed."""
    return value


@constants.function
def _begin(
    schedule: Any, own: Any, solver: Any, strength: Strength, steps: int
) -> tuple[tuple[float, ...], float, float, float, bool]:
    """Compute the fields of a `Start` except the solver, from packed objects."""
    schedule, own, solver = map(constants.unpack, (schedule, own, solver))
    schedule = schedules.build(schedule).asked_like(own)
    t = time_of(schedule, strength)
    if t is None:
        return (), 1.0, 0.0, 1.0, False
    whole = t >= schedule.t_max
    times = solver.times(schedule, steps) if whole else _from(t, schedule, solver, steps, strength)
    least = next(float(schedule.alpha(s)) for s in reversed(times) if float(schedule.sigma(s)) > 0)
    return tuple(times), float(schedule.alpha(t)), float(schedule.sigma(t)), least, whole


def _from(t: float, schedule: Schedule, solver: Solver, steps: int, strength: Strength) -> list[float]:
    """Return the solver's times from t on, at most `steps` steps."""
    if isinstance(solver, _BOUND):
        name = type(solver).__name__
        raise ValueError(f"solver must be one that can start in the middle, or strength 1: {name} starts at pure noise")
    if schedule.whole_times is not None and (left := int((schedule.whole_times < t).sum())) < steps:
        warnings.warn(
            f"strength {strength} leaves {left} steps instead of {steps}: from t = {t:g} on {schedule!r} has no more "
            "whole times",
            stacklevel=6,  # the caller of `stroke`
        )
        steps = left
    return [t] if t <= schedule.t_min else solver.times(schedule, steps, t_max=t)


def time_of(schedule: Schedule, strength: Strength) -> float | None:
    """Return the time of a strength; None if it has no noise.

    Raises ValueError for a strength outside the schedule, TypeError for another type.
    """
    unit, value = _parsed(strength)
    whole = schedule.whole_times is not None
    if unit == "share":
        if not 0 <= value <= 1:
            raise ValueError(f'strength must lie in [0, 1], or be like "t=500" or "level=2.5": got {strength!r}')
        t = schedule.t_max if value == 1 else float(schedule.spaced(torch.tensor(1 - value, dtype=torch.float64)))
    elif unit == "t":
        t = value
        if not schedule.t_min <= t <= schedule.t_max or (whole and t % 1):
            kind = "whole time" if whole else "time"
            wanted = f"a {kind} from {schedule.t_min:g} to {schedule.t_max:g}"
            raise ValueError(f"strength must be {wanted}: got {strength!r}")
    else:
        low, high = (math.exp(-float(schedule.log_snr(end))) for end in (schedule.t_min, schedule.t_max))
        if not low * (1 - 1e-9) <= value <= high * (1 + 1e-9):
            raise ValueError(f"strength must be a level sigma/alpha from {low:.3g} to {high:.3g}: got {strength!r}")
        t = float(schedule.inverse_log_snr(-math.log(value))) if value > 0 else schedule.t_min
    if whole:
        t = float(round(t))
    return None if (unit, value) == ("share", 0) or float(schedule.sigma(t)) == 0 else t


def _parsed(strength: Strength) -> tuple[str, float]:
    """Split a strength into one of `_UNITS` and a number."""
    unit, number = ("", strength) if not isinstance(strength, str) else strength.rpartition("=")[::2]
    unit = unit.strip() or "share"
    try:
        if unit not in _UNITS or isinstance(strength, bool):
            raise ValueError
        return unit, float(number)
    except (TypeError, ValueError):
        wanted = 'a number in [0, 1], or text like "t=500" or "level=2.5"'
        raise TypeError(f"strength must be {wanted}: got {strength!r}") from None


@torch.no_grad()
def noised(
    model: Model,
    image: Tensor,
    *,
    strength: Strength,
    n: int | None = None,
    shape: Sequence[int] | None = None,
    schedule: Schedule | str | None = None,
    seed: ops.Seed = 0,
    sample_offset: int = 0,
    clip: tuple[float, float] | str | None = UNSAID,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Add noise to images: alpha image + sigma z at the noise level of `strength`.

    This is the state from which [`stroke`][gms_fast.editing.stroke] starts. The noise z depends only on the seed, the
    sample and the element, so it is the same at every strength.

    Args:
        model: Callable `(x, t)` that provides the schedule, the device and the data range. It is not called.
        image: Images (n, C, H, W), or one image (C, H, W), floating point, in the model's data range.
        strength: Noise level, as in [`timesteps`][gms_fast.editing.timesteps].
        n: Number of results. With a single image, any number >= 1 is allowed; otherwise it must be the number of
            images. Default: the number of images.
        shape: Shape of one sample. Default: the model's `sample_shape`.
        schedule: As in [`sample`][gms_fast.sample].
        seed: As in [`sample`][gms_fast.sample].
        sample_offset: As in [`sample`][gms_fast.sample].
        clip: Data range of the images, as in [`sample`][gms_fast.sample]. Values outside the range by no more than the
            rounding to bytes are clipped to it; others raise an error.
        device: Device of the result. Default: the model's device.
        dtype: Data type of the result. Default: the data type of the image.

    Returns:
        The noisy state, a tensor (n, C, H, W).

    Raises:
        ValueError: If `strength` is outside the schedule, or if `image` has the wrong shape or range.
        TypeError: If `image` is not a floating-point tensor, or if `strength` is neither a number nor a string of a
            supported form.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> x = gms_fast.editing.noised(model, torch.zeros(1, 8, 8), strength="level=1", n=1000)
        >>> bool((x.std() - 0.5**0.5).abs() < 0.02)  # VP: sigma = sqrt(1/2) at sigma/alpha = 1
        True
    """
    start = begin(model, schedule, "ddim", strength, 1)
    rows = pictures(model, image, n=n, shape=shape, clip=clip, device=device, dtype=dtype)
    return with_noise(rows, start.alpha, start.sigma, seed, sample_offset)


def with_noise(rows: Tensor, alpha: float, sigma: float, seed: ops.Seed, sample_offset: int, index: int = 0) -> Tensor:
    """Return alpha x_0 + sigma z; another index gives another z."""
    z = ops.philox_normal(
        rows.shape, seed=seed, sample_offset=sample_offset, step=index, stream=GUIDE,
        device=rows.device, dtype=rows.dtype,
    )  # fmt: skip
    return alpha * rows + sigma * z


def pictures(
    model: Model,
    image: Tensor,
    *,
    n: int | None,
    shape: Sequence[int] | None,
    clip: Any,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    name: str = "image",
) -> Tensor:
    """Prepare the images to edit: (n, *shape), on the model's device.

    Raises TypeError or ValueError naming the argument.
    """
    if not isinstance(image, Tensor) or image.dtype not in ARITHMETIC:
        got = str(image.dtype) if isinstance(image, Tensor) else type(image).__name__
        wanted = "a floating-point tensor in the model's range (of bytes b: b/127.5 - 1)"
        raise TypeError(f"{name} must be {wanted}: got {got}")
    shape = shape if shape is not None else attribute(model, "sample_shape")
    rows = image[None] if image.ndim == (3 if shape is None else len(shape)) else image
    if rows.ndim == 0 or (shape is not None and tuple(rows.shape[1:]) != tuple(shape)):
        one = ", ".join(map(str, shape or ("*",)))
        raise ValueError(f"{name} must be ({one}) or (n, {one}): got {tuple(image.shape)}; resize it, or give shape=")
    wanted_rows = len(rows) if n is None else integer("n", n)
    if wanted_rows < 1 or len(rows) not in (1, wanted_rows):
        wanted = f"{len(rows)}, the number of {name}s" if len(rows) > 1 else "at least 1"
        raise ValueError(f"n must be {wanted}: got {n}")
    rows = rows.detach().to(device or device_of(model) or rows.device, dtype or rows.dtype)
    limits, _ = ranged(model, clip)
    if not recorded(rows):
        check_range(rows, limits, name)
    rows = rows if limits is None else rows.clamp(*limits)
    return rows.expand(wanted_rows, *rows.shape[1:]).contiguous()


def check_range(rows: Tensor, limits: tuple[float, float] | None, name: str) -> None:
    """Raise ValueError for images that are not finite or outside the data range.

    Rounding to bytes is tolerated. Images in [0, 1] for a range of [-1, 1] give a warning.
    """
    low, high = (float(end) for end in rows.aminmax()) if rows.numel() else (0.0, 0.0)
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError(f"{name} must be finite: it holds NaN or infinity")
    if limits is None:
        return
    slack = (limits[1] - limits[0]) / 510
    if low < limits[0] - slack or high > limits[1] + slack:
        wanted, got = f"[{limits[0]:g}, {limits[1]:g}]", f"{low:g} .. {high:g}"
        raise ValueError(f"{name} must lie in the data range {wanted}: got {got}; rescale it, or give clip=")
    if limits == (-1.0, 1.0) and 0 <= low < high <= 1:
        warnings.warn(
            f"{name} lies in [0, 1] but the model's range is [-1, 1]: did you mean 2 {name} - 1?", stacklevel=5
        )
