"""The whole sampler as one differentiable function of its table."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gms_fast import network, ops
from gms_fast.estimate import estimate
from gms_fast.ops import reference
from gms_fast.plan import COUNTED
from gms_fast.prediction import LevelTensors, Meaning
from gms_fast.run import INITIAL
from gms_fast.schedules import Schedule
from gms_fast.types import NoiseMoments

Updates = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class Sampler:
    """A network, and the arguments of `gms_fast.sample` besides a solver.

    It uses the same counters as `sample`, so it draws the same noise.

    Args:
        form: Meaning of the network's output, `prediction` of `gms_fast.sample`.
        chunk: Samples per network call.
        rematerialise: Keep only the states for the backward pass, and recompute the network there.
    """

    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments]
    schedule: Schedule
    form: str
    shape: tuple[int, ...]
    clip: tuple[float, float] | None
    seed: int
    device: torch.device
    dtype: torch.dtype = torch.float32  # or float64
    chunk: int = 32
    rematerialise: bool = True

    def __call__(self, tau: Tensor, updates: Updates, n: int, offset: int) -> Tensor:
        """Draw samples (n, *shape), the same as `sample` with this table.

        They have the indices offset .. offset + n - 1 of the seed.
        `tau` (K+1,) holds the times by level, and `updates` the K steps of `GGDMTable.updates`, float64. Gradients
        reach both.
        """
        draw = partial(
            ops.philox_normal,
            (n, *self.shape),
            seed=self.seed,
            sample_offset=offset,
            device=self.device,
            dtype=self.dtype,
        )
        x = float(self.schedule.sigma(tau[-1].detach())) * draw(stream=INITIAL)
        older: list[Tensor] = []
        for i, (weights, std) in enumerate(updates):
            t = tau[len(tau) - 1 - i]
            m = self.estimate(x, t if i else t.detach())  # x_T and its time are fixed
            numbers = weights.to(self.device).unbind()
            z = torch.zeros((), device=self.device)
            if bool(std > 0):
                z = draw(step=COUNTED + i)
            terms = [m, *older[: len(numbers) - 2]]
            x_s = reference.linear_step([x, *terms], numbers) + std.to(self.device) * z
            x, older = x_s, [x, *older]
        return x if self.clip is None else x.clamp(*self.clip)

    def estimate(self, x: Tensor, t: Tensor) -> Tensor:
        """Return E[x_0|x_t], clipped to the data range."""
        time = self.network_time(t)
        output = self.in_chunks(lambda part: self.network(part, time.expand(len(part))), x, time.requires_grad)
        level = LevelTensors(*(values(t).to(self.device) for values in (self.schedule.alpha, self.schedule.sigma)))
        return estimate(output, x, Meaning(self.form, level, self.clip)).x0()

    def network_time(self, t: Tensor) -> Tensor:
        """Return the network time of time t."""
        return self.schedule.network_time(t).to(self.device, self.dtype)

    def in_chunks(self, f: Callable[[Tensor], Tensor], x: Tensor, learned: bool = False) -> Tensor:
        """Compute f(x) a few rows at a time, where rows are independent.

        `learned` tells that f itself has learned inputs.
        """
        again = self.rematerialise and torch.is_grad_enabled() and (x.requires_grad or learned)
        if again:
            parts = [checkpoint(f, part, use_reentrant=False, preserve_rng_state=False) for part in x.split(self.chunk)]
        else:
            parts = [f(part) for part in x.split(self.chunk)]
        return torch.cat(parts)

    def network(self, x: Tensor, time: Tensor) -> Tensor:
        """Return the network's output; of moments, the first one."""
        output = network.call(self.model, x, time, first=True)
        return output if isinstance(output, Tensor) else output[0]
