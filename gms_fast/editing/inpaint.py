"""Inpainting with any solver, built on the steps of `gms_fast.editing.repaint`."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from gms_fast import ops
from gms_fast.assumptions import UNSAID
from gms_fast.editing.repaint import COUNTED_FROM, Inpainting, broadcasts
from gms_fast.editing.start import Strength, begin, pictures, with_noise
from gms_fast.finite import recorded
from gms_fast.sampling import sample
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.types import NoiseMoments


@torch.no_grad()
def inpaint(
    model: Callable[..., Tensor | NoiseMoments],
    image: Tensor,
    mask: Tensor,
    *,
    steps: int = 10,
    solver: str | Solver = "gms",
    n: int | None = None,
    resample: int = 1,
    strength: Strength = 1.0,
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
    callback: Callable[[int, float, Tensor, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Redraw a part of an image with any solver, and keep the rest exactly (RePaint).

    After every step, the known pixels are reset to alpha_s image + sigma_s z with new noise z. The noise is
    counter-based, and independent of the noise that [`sample`][gms_fast.sample] and
    [`stroke`][gms_fast.editing.stroke] draw from the same seed.

    Args:
        model: Callable `(x, t)`, as in [`sample`][gms_fast.sample].
        image: Images (n, C, H, W), or one image (C, H, W), floating point, in the model's data range. Latents and data
            of other shapes (n, *) work too.
        mask: Bool, or float in [0, 1]: 1 where the image is redrawn, 0 where it is known. The shape is (H, W),
            (1, H, W) or (n, 1, H, W). For samples that are not (C, H, W), it may be any shape that broadcasts to the
            state. A value m between 0 and 1 is the strength for this pixel: the pixel stays known until the run
            reaches the noise level of strength m, rounded down to a noise level of the run. The height and width of
            the mask may be whole multiples of the size of the latents. The mask is then reduced to this size, and a
            latent element counts as known only if all of its pixels are known.
        steps: Number of steps K >= 1, starting at the noise level of `strength`.
        solver: A `Solver` or a solver string, as in [`sample`][gms_fast.sample]. GGDM needs strength 1, and Teleport is
            not supported.
        n: Number of results. With a single image, any number >= 1 is allowed; otherwise it must be the number of
            images. Default: the number of images.
        resample: Number of passes r >= 1 over each step. Between two passes, noise is added so that the state returns
            to the start of the step. More passes make the new part fit the known part better. They cost r times the
            network evaluations.
        strength: Noise level at which the run starts, as in [`stroke`][gms_fast.editing.stroke]. With a strength below
            1, the redrawn part resembles the original.
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
        callback: As in [`sample`][gms_fast.sample]. It is called after every pass, and each pass counts as a step. If
            the callback ends the run, the known pixels are still noisy.

    Returns:
        The edited images, a tensor (n, C, H, W) or (n, *). Pixels with mask 0 equal the input.

    Raises:
        ValueError: If the mask has the wrong size, has values outside [0, 1], or is 0 or 1 everywhere, and in all cases
            in which [`stroke`][gms_fast.editing.stroke] raises it. All arguments are checked before the model is
            called.
        TypeError: If `mask` or `image` has the wrong type.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> image = gms_fast.sample(model, 5, n=2)
        >>> mask = torch.zeros(8, 8)
        >>> mask[:, 4:] = 1  # redraw the right half
        >>> edited = gms_fast.editing.inpaint(model, image, mask, steps=5, resample=2, seed=1)
        >>> torch.equal(edited[..., :4], image[..., :4])
        True

    References:
        Lugmayr et al. 2022, arXiv 2201.09865.
    """
    start = begin(model, schedule, solver, strength, steps)
    x = pictures(model, image, n=n, shape=shape, clip=clip, device=device, dtype=dtype)
    free = mask_of(mask, x)
    inpainting = Inpainting(image=x, mask=free, then=start.solver, resample=resample)
    if start.sigma == 0:
        return x.clone()
    guide = torch.where(free < 1, x, 0.0) if start.whole else x  # all noise: nothing of the guide may be left
    return sample(
        model,
        solver=inpainting,
        timesteps=start.times,
        x_T=with_noise(guide, start.alpha, start.sigma, seed, sample_offset, COUNTED_FROM),
        schedule=schedule,
        prediction=prediction,
        seed=seed,
        sample_offset=sample_offset,
        clip=clip,
        denoise=denoise,
        condition=condition,
        batch_size=batch_size,
        progress=progress,
        callback=callback,
    )


def mask_of(mask: Tensor, x: Tensor) -> Tensor:
    """Convert a mask to numbers that broadcast to a state (n, *).

    Raises TypeError or ValueError if the mask is invalid.
    """
    if not isinstance(mask, Tensor) or not (mask.is_floating_point() or mask.dtype == torch.bool):
        got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a tensor of bools or of floats in [0, 1]: got {got}")
    wide = mask.detach().to(x.device, torch.float32)
    wide = _of_picture(wide, x) if x.ndim == 4 else _of_data(wide, x)
    if not recorded(wide):
        shrunk = wide.ndim == 4 and wide.shape[-2:] != mask.shape[-2:]
        _check(wide, f", reduced to {tuple(x.shape[2:])}," if shrunk else "")
    return wide


def _of_picture(mask: Tensor, x: Tensor) -> Tensor:
    """Reshape a mask to (n or 1, 1, H, W), and reduce a whole multiple of x's size to it."""
    rows = mask[(None,) * (4 - mask.ndim)] if 2 <= mask.ndim < 4 else mask
    height, width = x.shape[2:]
    fits = rows.ndim == 4 and rows.shape[1] == 1 and len(rows) in (1, len(x)) and min(rows.shape[2:]) > 0
    if not fits or rows.shape[2] % height or rows.shape[3] % width:
        wanted = f"({height}, {width}), (1, {height}, {width}) or ({len(x)}, 1, {height}, {width})"
        raise ValueError(f"mask must be {wanted}, or a whole multiple of that size: got {tuple(mask.shape)}")
    factors = rows.shape[2] // height, rows.shape[3] // width
    return rows if factors == (1, 1) else max_pool2d(rows, factors)


def _of_data(mask: Tensor, x: Tensor) -> Tensor:
    """Broadcast a mask to data that are not images."""
    if not broadcasts(mask.shape, x.shape):
        raise ValueError(f"mask must broadcast to {tuple(x.shape)}: got {tuple(mask.shape)}")
    return torch.broadcast_to(mask, x.shape)


def _check(mask: Tensor, shrunk: str) -> None:
    """Check that every mask lies in [0, 1] and is neither 0 nor 1 everywhere."""
    low, high = (end.tolist() for end in mask.flatten(1).aminmax(dim=1))
    for i, (least, most) in enumerate(zip(low, high, strict=True)):
        which = (f" of sample {i}" if len(low) > 1 else "") + shrunk
        if not 0 <= least <= most <= 1:
            raise ValueError(f"mask{which} must lie in [0, 1], 1 where the image is redrawn: got {least:g} .. {most:g}")
        if most == 0:
            raise ValueError(f"mask{which} must not be 0 everywhere: nothing would be redrawn")
        if least == 1:
            raise ValueError(f"mask{which} must not be 1 everywhere: nothing would be known; use gms_fast.sample")
