"""The sampling loop. Everything else in the package serves these few lines."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast import ops
from gms_fast.assumptions import UNSAID
from gms_fast.ops.types import Draws
from gms_fast.plan import integer
from gms_fast.run import Run, check_noise
from gms_fast.schedules import Schedule
from gms_fast.solvers import Solver
from gms_fast.types import NoiseMoments


@torch.no_grad()
def sample(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    steps: int = 10,
    *,
    solver: str | Solver = "gms",
    n: int = 16,
    shape: Sequence[int] | None = None,
    schedule: Schedule | str | None = None,
    timesteps: Sequence[float] | None = None,
    prediction: str | None = None,
    seed: ops.Seed = 0,
    sample_offset: int = 0,
    step_offset: int = 0,
    x_T: Tensor | None = None,
    noise: Callable[[int], Any] | None = None,
    clip: tuple[float, float] | str | None = UNSAID,
    denoise: bool | None = None,
    condition: dict[str, Any] | None = None,
    batch_size: int | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    progress: bool = False,
    callback: Callable[[int, float, Tensor, Tensor], Tensor | None] | None = None,
) -> Tensor:
    """Draw samples from a diffusion model: `steps` steps of a solver, then one call more that removes noise still left.

    model      callable (x, t) -> Tensor or NoiseMoments; x (B, *), t (B,) network times. Its attributes `sample_shape`,
               `schedule`, `prediction`, `moments` and `clip`, if any, are the defaults here (docs/models.md says what
               is assumed where there are none). It may be of any dtype, and may sit in torch's own wrappers
    steps      K >= 1; the network is called K + 1 times, K times where the schedule ends without noise and by solvers
               with `denoise = False` (er-sde, DPMSolverV3); by heun twice a step, once to no noise
    solver     a Solver or its text (`gms_fast.solvers.text`): "gms", "er-sde:order=2", "teleport:until=5 then ddim"
    n, shape   number of samples and shape of one
    timesteps  times of the schedule to visit, noisiest first, steps + 1 of them; replaces `steps`. A single time is one
               call, after which E[x_0|x_t] is returned
    prediction "noise" | "x0" | "v" | "flow" (eps - x_0) | "edm" (the raw network F of Karras et al. 2022, with the
               scaling of its inputs in the model): what a single tensor from the model means
    seed       64-bit integer, or one per sample; sample i depends on it and on i alone. An int64 tensor on the state's
               device is read there when noise is drawn: a CUDA graph of the loop takes the values of each replay
    sample_offset  index of the first sample: batches that continue each other give the samples of one big batch
    step_offset  counter of the first step's noise: a run that was ended after k steps is continued with `x_T`, the
               remaining `timesteps` and k. With 0, a run from a given x_T that starts later than the schedule takes
               counters that belong to its noise levels, so a second stage draws new noise from the same seed
    x_T        (n, *shape) to start from; drawn from N(0, sigma_T^2) if None. It is never written to
    noise      noise(step) -> z or (z, u) replaces the counter-based draws; the step is counted from `step_offset`
    clip       data range for E[x_0|x_t], or None. "model" (default): the model's attribute `clip`, else (-1, 1) with a
               warning where that cuts off much
    denoise    whether noise that is left at the last time is removed by one more call; False returns the state there.
               None: as the solver has it
    condition  keywords for the network, called as model(x, t, **condition); tensors of n rows go with their samples
    batch_size  samples that the network sees at most at a time; changes no sample (but for the network's own rounding)
    device, dtype  of the state (the model's device and float32 unless given)
    progress   whether to show a progress bar on stderr
    callback   callback(step, t, x, x0) with the state at t and E[x_0|x_t], before each step. A tensor that it returns
               takes the place of x in this step; raising StopIteration ends the run, and the state is returned
    Returns (n, *shape). Raises ValueError or TypeError naming the argument before the model is called, and
    ValueError naming the step if the model returns NaN, infinity or too few moments, or writes to its input.

    The loop never waits for a GPU: NaN and infinity there, in x_T too, are reported after the last step. It compiles
    into one graph with `torch.compile(..., fullgraph=True)`, without `progress` and with a callback that can be traced,
    and can be captured in a CUDA graph. Then NaN and infinity are not reported and go through to their samples;
    `gms_fast.graphed` does either, and reports them.
    """
    run = Run.prepare(
        model,
        solver=solver,
        steps=steps,
        timesteps=timesteps,
        schedule=schedule,
        prediction=prediction,
        clip=clip,
        denoise=denoise,
        condition=condition,
        batch_size=batch_size,
        callback=callback,
    )
    x = loop(
        run,
        n=n,
        shape=shape,
        seed=seed,
        sample_offset=sample_offset,
        step_offset=step_offset,
        x_T=x_T,
        noise=noise,
        device=device,
        dtype=dtype,
        progress=progress,
    )
    return run.finished(x)


def loop(
    run: Run,
    *,
    n: int,
    shape: Sequence[int] | None,
    seed: ops.Seed,
    sample_offset: int,
    step_offset: int,
    x_T: Tensor | None,
    noise: Callable[[int], Any] | None,
    device: torch.device | str | None,
    dtype: torch.dtype | None,
    progress: bool,
) -> Tensor:
    """The samples of a run, before what it watched is reported; arguments as of `sample`."""
    check_noise(noise, step_offset)
    draws = Draws(seed=ops.as_seed(seed), sample_offset=integer("sample_offset", sample_offset))
    walk, known = run.walk, run.solver.known_steps
    x = run.initial(draws, n, shape, x_T, device, dtype)
    run.solver.check(run.model, x.shape[1:], run.said.clip)
    counted = step_offset > 0 or ((walk.whole or x_T is None) and not known)
    state = run.solver.start(x, walk.steps) if walk.steps else None
    draws, times = draws.on(x.device), run.times(x)
    counters = walk.counters(step_offset - known, counted=counted, own=run.solver.counted_from)
    pairs = list(zip(walk.steps, counters, strict=True))
    for step, counter in tqdm(pairs, unit="step") if progress else pairs:
        estimate = run.evaluate(x, step, times[step.i])
        x, stopped = run.report(step, x, estimate)
        if stopped:
            return x
        given = None if noise is None else partial(noise, step_offset + step.i - known)
        x, state = run.solver.step(x, estimate.of(x), step, draws._replace(step=counter, z=given), state)
        del estimate  # whose tensors would wait for the next call of the network
        run.finite.look()
    if walk.denoise:
        x = run.evaluate(x, walk.last, times[-1]).x0()  # the K+1st call
    return x
