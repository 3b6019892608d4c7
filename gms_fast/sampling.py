"""The sampling loop."""

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
    """Draw samples from a diffusion model in a few steps.

    Sampling starts from noise, x_T ~ N(0, sigma_T^2), and takes K = `steps` solver steps, each to a lower noise level.
    After the last step, one more network evaluation removes the remaining noise: the sample is E[x_0|x_t]. The number
    of network evaluations (NFE) is

        K + 1   for most solvers
        K       for er-sde, dpm-solver-v3 and ggdm, and if the schedule ends without noise
        2K + 1  at most for heun, which evaluates the network twice in most steps

    The noise of sample i depends only on the seed and on i. It does not depend on `n` or `batch_size`.

    Args:
        model: Callable `(x, t)` that returns a single tensor shaped like x, or
            [`NoiseMoments`][gms_fast.NoiseMoments]. x has shape (B, *). t has shape (B,) and holds network times, which
            are the time values that the network was trained on. If the model has attributes `schedule`,
            `sample_shape`, `prediction`, `moments` or `clip`, this call uses them as defaults. docs/models.md lists
            what is assumed if they are missing. The model may have any dtype and may be inside one of PyTorch's own
            wrappers, such as `torch.compile` or `DataParallel`.
        steps: Number of steps K >= 1. Ignored if `timesteps` is given.
        solver: [`Solver`][gms_fast.solvers.Solver] or solver string. A solver string is one of the
            [names][gms_fast.solvers.names], followed by options if needed, for example "gms", "er-sde:order=2" or
            "teleport:until=5 then ddim". "gms" needs three noise moments from the model, and "sn-ddpm" needs two. The
            other named solvers work with any model.
        n: Number of samples, >= 0. If `x_T` is given, its first dimension is used instead.
        shape: Shape of one sample, such as (3, 32, 32). Defaults to the model's `sample_shape`, or to the shape of one
            sample in `x_T`.
        schedule: [`Schedule`][gms_fast.schedules.Schedule] or one of the schedule
            [names][gms_fast.schedules.names]. Defaults to the model's `schedule`.
        timesteps: Times of the schedule, noisiest first: K + 1 times for K steps. If there is only one time, the
            network is evaluated once and E[x_0|x_t] is returned.
        prediction: What a single output tensor represents: "noise", "x0", "v" (alpha eps - sigma x_0),
            "flow" (eps - x_0) or "edm" (the raw network F of Karras et al. 2022, with its input scaling inside
            the model). Defaults to the model's `prediction`, or to "noise" if it has none.
        seed: 64-bit integer, or one per sample. An int64 tensor on the state's device is not read until noise is drawn,
            so each replay of a CUDA graph uses the tensor's current values.
        sample_offset: Index of the first sample, >= 0. Calls with consecutive offsets return consecutive parts of one
            large set of samples.
        step_offset: Index of the first step for the noise generator, in [0, 2^29). To resume a run after k steps, pass
            its state as `x_T`, its remaining `timesteps`, and `step_offset=k`. If `step_offset` is 0 and a run with
            `x_T` starts below the schedule's noisiest time, the generator is indexed by noise level instead of by step,
            so a second sampling stage with the same seed draws new noise.
        x_T: State (n, *shape) at the first time. The tensor is copied, not modified. By default, the state is drawn
            from N(0, sigma_T^2).
        noise: Callable `(step)` that replaces the built-in noise generator. It returns z, or (z, u) for solvers that
            also draw uniform numbers. Steps are counted from `step_offset`.
        clip: Data range (lo, hi) to which E[x_0|x_t] is clipped, or None for no clipping. The default, "model", uses
            the model's `clip`. If the model has none, (-1, 1) is assumed, and a warning is issued if more than 2 % of
            the elements are clipped by more than 0.1 in the last half of the steps.
        denoise: Whether to remove the remaining noise with one more network evaluation at the last time. If False, the
            noisy state at the last time is returned. If None, the solver decides.
        condition: Keyword arguments for the model, which is called as `model(x, t, **condition)`. Tensors with n rows
            are split into batches along with the samples.
        batch_size: Largest number of samples in one network evaluation. Defaults to all samples. The batch size
            changes the samples by no more than the network's rounding.
        device: Device of the state. Defaults to the device of `x_T` or, if `x_T` is not given, of the model's
            parameters. If the model has no parameters, torch's default device is used.
        dtype: Floating-point dtype of the state. Defaults to the dtype of `x_T`, or to float32 if `x_T` is not given.
        progress: Whether to show a progress bar on stderr.
        callback: Callable `(step, t, x, x0)`, called before each step with the state x at time t and the estimate
            x0 = E[x_0|x_t]. If the callback returns a tensor, that tensor replaces x in this step. If it raises
            StopIteration, sampling ends and the current state is returned.

    Returns:
        The samples, a tensor (n, *shape) in the model's data range.

    Raises:
        ValueError: If an argument is out of range (the message begins with its name); if the model returns
            NaN, infinity or too few moments (for NaN and infinity, the message names the step); or if the model
            modifies a tensor in `condition`.
        TypeError: If an argument has the wrong type; the message begins with its name.

    Note:
        The loop never waits for a GPU, so NaN and infinity on a GPU are reported only after the last step.

        `torch.compile(..., fullgraph=True)` can compile the loop into one graph if `progress` is False and `callback`
        is None or traceable. A CUDA graph can also capture the loop. In both cases NaN and infinity are not
        reported: they appear in the samples. [`graphed`][gms_fast.graphed] compiles or captures the loop for you and
        does report them.

    Examples:
        An embedded model has its own schedule, sample shape and data range:

        >>> model = gms_fast.load("digits")
        >>> gms_fast.sample(model, 10, n=4).shape
        torch.Size([4, 1, 8, 8])

        A network that returns a single tensor works with any solver that needs no higher moments:

        >>> def network(x, t):  # predicts the noise
        ...     return x / (1 + x.square().mean())
        >>> x = gms_fast.sample(network, 5, solver="er-sde", schedule="cosine", shape=(3, 16, 16), n=2, clip=None)
        >>> x.shape, x.dtype
        (torch.Size([2, 3, 16, 16]), torch.float32)

        A callback is called before every step:

        >>> times = []
        >>> x = gms_fast.sample(model, 3, n=1, seed=7, callback=lambda step, t, x, x0: times.append(t))
        >>> len(times)
        3

    References:
        Guo et al. 2023, arXiv 2311.00941.
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
    """Return the samples of a run before its checks are reported.

    The arguments are the same as in `sample`.
    """
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
        del estimate  # else its tensors would stay in memory during the next network evaluation
        run.finite.look()
    if walk.denoise:
        x = run.evaluate(x, walk.last, times[-1]).x0()  # network evaluation K + 1
    return x
