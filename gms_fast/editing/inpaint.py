"""Inpainting with any solver, by what `gms_fast.editing.repaint` does to its steps."""

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
    """Make a part of a picture anew: wherever a step ends, known pixels are alpha_s image + sigma_s z with new noise.

    image     (n, *) or one of it, such as (C, H, W), floating point in the model's range; or latents
    mask      1 where the picture is made anew, 0 where it is known, which comes back exactly. Bool or float, (H, W),
              (1, H, W) or (n, 1, H, W); of data other than (C, H, W), anything that broadcasts to the state. In between
              it is the strength with which a pixel may change, as in `stroke`: it is known until the run has come down
              to that noise level, rounded down to one that is visited. A mask k times as high and wide as latents is
              shrunk to them: one is known where all of its pixels are
    steps     K from the level of `strength` on
    resample  r: every step is done r times, with the way back to its beginning in between (RePaint), so that what is
              made fits what is known; r times the network calls
    strength  how much noise the run starts from, as in `stroke`; below 1 what is made anew resembles what was there

    The other arguments are those of `stroke`. All noise is counter-based, and apart from all that `sample` and `stroke`
    draw. A callback sees each repetition as steps of its own; where it ends the run, known pixels are still noisy.

    Returns (n, *). Raises ValueError or TypeError naming the argument before the model is called: as `stroke`, and for
    a mask of another size, outside [0, 1], or that covers all or nothing.
    """
    start = begin(model, schedule, solver, strength, steps)
    x = pictures(model, image, n=n, shape=shape, clip=clip, device=device, dtype=dtype)
    free = mask_of(mask, x)
    inpainting = Inpainting(image=x, mask=free, then=start.solver, resample=resample)
    if start.sigma == 0:
        return x.clone()
    guide = torch.where(free < 1, x, 0.0) if start.whole else x  # of all noise nothing is left
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
    """The mask for a state (n, *), as numbers that broadcast to it. Raises TypeError or ValueError naming it."""
    if not isinstance(mask, Tensor) or not (mask.is_floating_point() or mask.dtype == torch.bool):
        got = str(mask.dtype) if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask must be a tensor of bools or of floats in [0, 1]: got {got}")
    wide = mask.detach().to(x.device, torch.float32)
    wide = _of_picture(wide, x) if x.ndim == 4 else _of_data(wide, x)
    if not recorded(wide):
        shrunk = wide.ndim == 4 and wide.shape[-2:] != mask.shape[-2:]
        _check(wide, f", shrunk to {tuple(x.shape[2:])}," if shrunk else "")
    return wide


def _of_picture(mask: Tensor, x: Tensor) -> Tensor:
    """(n, 1, H, W) or (1, 1, H, W), shrunk where it is a whole number of times as large as x."""
    rows = mask[(None,) * (4 - mask.ndim)] if 2 <= mask.ndim < 4 else mask
    height, width = x.shape[2:]
    fits = rows.ndim == 4 and rows.shape[1] == 1 and len(rows) in (1, len(x)) and min(rows.shape[2:]) > 0
    if not fits or rows.shape[2] % height or rows.shape[3] % width:
        wanted = f"({height}, {width}), (1, {height}, {width}) or ({len(x)}, 1, {height}, {width})"
        raise ValueError(f"mask must be {wanted}, or so many times as high and wide: got {tuple(mask.shape)}")
    factors = rows.shape[2] // height, rows.shape[3] // width
    return rows if factors == (1, 1) else max_pool2d(rows, factors)


def _of_data(mask: Tensor, x: Tensor) -> Tensor:
    if not broadcasts(mask.shape, x.shape):
        raise ValueError(f"mask must broadcast to {tuple(x.shape)}: got {tuple(mask.shape)}")
    return torch.broadcast_to(mask, x.shape)


def _check(mask: Tensor, shrunk: str) -> None:
    low, high = (end.tolist() for end in mask.flatten(1).aminmax(dim=1))
    for i, (least, most) in enumerate(zip(low, high, strict=True)):
        which = (f" of sample {i}" if len(low) > 1 else "") + shrunk
        if not 0 <= least <= most <= 1:
            raise ValueError(
                f"mask{which} must lie in [0, 1], 1 where the picture is made anew: got {least:g} .. {most:g}"
            )
        if most == 0:
            raise ValueError(f"mask{which} must not be 0 everywhere: nothing would be made anew")
        if least == 1:
            raise ValueError(f"mask{which} must not be 1 everywhere: nothing would be known; that is gms_fast.sample")
