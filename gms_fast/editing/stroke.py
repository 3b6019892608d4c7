"""SDEdit: stroke synthesis, image to image and variations (arXiv 2108.01073)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from gms_fast import ops
from gms_fast.assumptions import UNSAID
from gms_fast.editing.start import Strength, begin, pictures, with_noise
from gms_fast.plan import integer
from gms_fast.sampling import sample
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.types import NoiseMoments

_REPEATED = 1 << 27  # `step_offset` of the second and later passes

Callback = Callable[[int, float, Tensor, Tensor], Tensor | None]


@torch.no_grad()
def stroke(
    model: Callable[..., Tensor | NoiseMoments],
    image: Tensor,
    *,
    strength: Strength = 0.5,
    steps: int = 10,
    solver: str | Solver = "gms",
    n: int | None = None,
    repeats: int = 1,
    shape: Sequence[int] | None = None,
    schedule: Schedule | str | None = None,
    prediction: str | None = None,
    seed: ops.Seed = 0,
    sample_offset: int = 0,
    clip: tuple[float, float] | str | None = UNSAID,
    denoise: bool | None = None,
    condition: dict[str, Any] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    callback: Callback | None = None,
) -> Tensor:
    """Add noise to an image up to some noise level, and sample from there (SDEdit).

    Starting from the state x_t = alpha_t image + sigma_t z, a solver takes `steps` steps. With a `condition`, this is
    image-to-image generation. With n > 1, it draws variations of an image.

    The noise z is counter-based, and independent of all noise that [`sample`][gms_fast.sample] draws from the same
    seed. You can therefore edit an image with the seed from which it was drawn. To edit the result of an edit, use
    another seed.

    Args:
        model: Callable `(x, t)`, as in [`sample`][gms_fast.sample].
        image: Images (n, C, H, W), or one image (C, H, W), floating point, in the model's data range.
        strength: Noise level at which the edit starts. A number in [0, 1] is a position on the schedule's time grid,
            from no noise (0) to pure noise (1). For VP, it is t divided by the largest time. "t=500" is a time of the
            schedule, and "level=2.5" is a noise level sigma/alpha. Strength 0 returns the image, clipped to the data
            range. At strength 1 nothing of the image is left, and the result equals that of
            [`sample`][gms_fast.sample].
        steps: Number of steps K >= 1, starting at the noise level of `strength`. The edit costs K + 1 network
            evaluations, or K for solvers without a final evaluation. Heun makes two evaluations per step.
        solver: As in [`sample`][gms_fast.sample]. GGDM and Teleport need strength 1.
        n: Number of results. With a single image, any number >= 1 is allowed; otherwise it must be the number of
            images. Default: the number of images.
        repeats: Number of passes >= 1. Each further pass starts from the previous result, with new noise. At strength 1
            there is only one pass. `denoise=False` applies only to the last pass.
        shape: Shape of one sample. Default: the model's `sample_shape`.
        schedule: As in [`sample`][gms_fast.sample].
        prediction: As in [`sample`][gms_fast.sample].
        seed: As in [`sample`][gms_fast.sample].
        sample_offset: As in [`sample`][gms_fast.sample].
        clip: As in [`sample`][gms_fast.sample].
        denoise: As in [`sample`][gms_fast.sample].
        condition: As in [`sample`][gms_fast.sample].
        batch_size: As in [`sample`][gms_fast.sample].
        device: Device of the state. Default: the model's device.
        dtype: Data type of the state. Default: the data type of the image.
        progress: As in [`sample`][gms_fast.sample].
        callback: As in [`sample`][gms_fast.sample]. The step index starts from 0 in every pass. StopIteration ends all
            passes.

    Returns:
        The edited images, a tensor (n, C, H, W).

    Raises:
        ValueError: If an argument has a wrong value, for example an image of the wrong shape or range, a strength
            outside the schedule, or a solver that must start from pure noise (GGDM, Teleport). All arguments are
            checked before the model is called.
        TypeError: If an argument has the wrong type.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> guide = gms_fast.editing.paint(gms_fast.data.load("digits")[:1])
        >>> gms_fast.editing.stroke(model, guide, strength=0.4, steps=5, n=8).shape  # eight variations
        torch.Size([8, 1, 8, 8])

    References:
        Meng et al. 2022, arXiv 2108.01073.
    """
    if integer("repeats", repeats) < 1:
        raise ValueError(f"repeats must be at least 1: got {repeats}")
    start = begin(model, schedule, solver, strength, steps)
    x = pictures(model, image, n=n, shape=shape, clip=clip, device=device, dtype=dtype)
    told = callback if callback is None or not callable(callback) else _Told(callback)
    draw = partial(
        sample,
        model,
        solver=start.solver,
        schedule=schedule,
        prediction=prediction,
        seed=seed,
        sample_offset=sample_offset,
        clip=clip,
        condition=condition,
        batch_size=batch_size,
        device=x.device,
        dtype=x.dtype,
        progress=progress,
        callback=told,
    )
    if start.whole:
        return draw(steps, n=len(x), shape=x.shape[1:], denoise=denoise)
    if start.sigma == 0:
        return x.clone()
    for k in range(repeats):
        guide = with_noise(x, start.alpha, start.sigma, seed, sample_offset, k)
        ending = None if denoise is False and k < repeats - 1 else denoise
        x = draw(timesteps=start.times, x_T=guide, step_offset=k and _REPEATED + k * len(start.times), denoise=ending)
        if isinstance(told, _Told) and told.stopped:
            break
    return x


class _Told:
    """Callback wrapper that records if the callback ended the run."""

    def __init__(self, callback: Callback) -> None:
        self.callback, self.stopped = callback, False

    def __call__(self, step: int, t: float, x: Tensor, x0: Tensor) -> Tensor | None:
        try:
            return self.callback(step, t, x, x0)
        except StopIteration:
            self.stopped = True
            raise
