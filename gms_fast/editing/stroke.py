"""SDEdit: Meng et al., ICLR 2022 (arXiv 2108.01073). Stroke synthesis, image to image, and variations of a picture."""

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

_REPEATED = 1 << 27  # `step_offset` of the second repetition and of those behind it

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
    """Noise a guide to a level, and sample from there: x_t = alpha_t image + sigma_t z, then `steps` steps of a solver.

    image     (n, *) or one of it, such as (C, H, W), floating point in the model's range
    strength  how much noise: the share of the way from none, 0, to all, 1, on the schedule's own grid (with VP the
              share of its time); or "t=500", a time of the schedule, or "level=2.5", a noise level sigma/alpha. 0 gives
              the guide back, clipped to the data range; of 1 nothing of it is left, and the result is that of `sample`
    steps     K from that level on: K + 1 network calls, K for solvers without a last call
    n         number of results, of one picture; default: as many as there are pictures
    repeats   how often all this is done, each time with the last result as the guide and with new noise; once at
              strength 1. A callback counts the steps of each anew, and StopIteration ends all. denoise=False is of the
              last one

    With a `condition` this is image to image, with n > 1 variation of a picture. The other arguments are those of
    `sample`; device and dtype are by default the model's and the picture's. The noise of the guide is counter-based
    too, and apart from all noise that `sample` draws: a picture drawn with a seed is edited with new noise. An edit of
    an edit wants another seed.

    Returns (n, *). Raises ValueError or TypeError naming the argument before the model is called: for a picture of
    another shape or range, a strength outside the schedule, a solver that cannot start in the middle (GGDM, Teleport).
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
    """A callback that notes whether it has ended the run."""

    def __init__(self, callback: Callback) -> None:
        self.callback, self.stopped = callback, False

    def __call__(self, step: int, t: float, x: Tensor, x0: Tensor) -> Tensor | None:
        try:
            return self.callback(step, t, x, x0)
        except StopIteration:
            self.stopped = True
            raise
