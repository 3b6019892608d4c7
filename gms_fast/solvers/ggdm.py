"""Generalised Gaussian diffusion models (GGDM): Watson et al., ICLR 2022 (arXiv 2202.05830)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from gms_fast.estimate import Estimate
from gms_fast.finite import recorded
from gms_fast.network import weight_of
from gms_fast.ops import fused
from gms_fast.ops.checks import MAX_TERMS
from gms_fast.ops.types import Draws
from gms_fast.schedules import Schedule
from gms_fast.schedules.base import listed
from gms_fast.solvers.base import Solver, TimeStep
from gms_fast.tables import GGDMTable


class Update(NamedTuple):
    """One step of a GGDM: its weights, the older states that it reads, and its noise.

    weights  of x, of the data estimate, and of the older states
    older    indices of those states in the history, where 0 is the latest
    keep     number of states to keep for later steps
    std      standard deviation of the noise
    """

    weights: list[float]
    older: list[int]
    keep: int
    std: float


@dataclass(frozen=True, eq=False)
class GGDM(Solver):
    """Sampler whose K steps follow a learned table of coefficients.

    Each step uses all earlier states. Steps are counted down from K (noisiest) to 1:

        x_{t-1} = mu[t-1][0] x0hat + sum_{u>=t} mu[t-1][u] x_u + sigma[t-1] z,    x0hat = c_t x_t - d_t eps(x_t, tau_t)

    The sample is the x0hat of the last step. The table also fixes the times, so `steps` must be K. If there is a data
    range, E[x_0|x_t] is clipped to it, eps is computed from the clipped estimate, and the sample is clipped too.

    Use GGDM with 5 or 10 network evaluations, for a network that you sample from often enough to justify a search.
    `gms-fast search` takes half an hour for a small network. A run of K steps costs K network evaluations.

    Args:
        table: [`GGDMTable`][gms_fast.solvers.GGDMTable] that was learned by `gms_fast.search.ggdm` or read by
            `gms_fast.solvers.load_table`.

    Raises:
        TypeError: If `table` is not a `GGDMTable`.
        ValueError: In a run whose number of steps, schedule or network differs from that of the table. The network is
            not checked under torch.compile or in CUDA graphs.

    Examples:
        >>> model = gms_fast.load("mnist")
        >>> solver = gms_fast.solvers.GGDM(gms_fast.solvers.load_table("mnist/5"))
        >>> gms_fast.sample(model, 5, solver=solver, n=2).shape
        torch.Size([2, 1, 28, 28])

    References:
        Watson et al. 2022, arXiv 2202.05830.
    """

    table: GGDMTable
    denoise = False

    def __post_init__(self) -> None:
        if not isinstance(self.table, GGDMTable):
            raise TypeError(
                f"table must be a GGDMTable, as returned by gms_fast.search.ggdm: got {type(self.table).__name__}"
            )

    def times(
        self,
        schedule: Schedule,
        wanted: int | Sequence[float],
        *,
        t_max: float | None = None,
        spacing: str | float | None = None,
    ) -> list[float]:
        """Return the times of the table. Raise ValueError if the caller requests other times."""
        own = self.table.times
        self.table.check(schedule=schedule, steps=wanted if isinstance(wanted, int) else len(wanted) - 1)
        if not isinstance(wanted, int) and any(abs(a - b) > 1e-6 * own[0] for a, b in zip(own, wanted, strict=True)):
            raise ValueError(f"timesteps must be those of the table, {listed(own)}: got {listed(wanted)}")
        if t_max is not None or spacing is not None:
            raise ValueError(f"GGDM uses the times of its table, from t = {own[0]:g} on, and no other time grid")
        return own

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[Update]:
        if len(times) != len(self.table.tau):
            raise ValueError(f"GGDM needs all times of its table, {listed(self.table.times)}: got {listed(times)}")
        updates = [([float(w) for w in weights], float(std)) for weights, std in self.table.updates()]
        reach = [max((j for j, w in enumerate(weights[2:], start=1) if w != 0), default=0) for weights, _ in updates]
        plan = []
        for i, (weights, std) in enumerate(updates):
            older = [j for j, w in enumerate(weights[2:]) if w != 0]
            keep = max((r - j for j, r in enumerate(reach[i + 1 :])), default=0)
            plan.append(Update([*weights[:2], *(weights[2 + j] for j in older)], older, max(keep, 0), std))
        return plan

    def check(self, model: Any, shape: Sequence[int], clip: tuple[float, float] | None = None) -> None:
        weight = weight_of(model)
        if weight is not None and not recorded(weight):  # the network's fingerprint needs its values
            self.table.check(model=model)

    def draws_at(self, step: TimeStep) -> bool:
        return bool(step.numbers.std > 0)

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> tuple[Tensor, ...]:
        return ()

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        update: Update = step.numbers
        older = [state[j] for j in update.older]
        first, rest = older[:MAX_TERMS], older[MAX_TERMS:]
        weights = update.weights if not rest else update.weights[: 2 + MAX_TERMS]
        (x_s,) = estimate.linear(first, weights, 0.0 if rest else update.std, draws)
        while rest:  # one more pass for every `MAX_TERMS` states
            weights = [1.0, *update.weights[-len(rest) :][:MAX_TERMS]]
            first, rest = rest[:MAX_TERMS], rest[MAX_TERMS:]
            x_s = fused.affine_noise(x_s, first, weights, 0.0 if rest else update.std, draws)
        if step.is_last and estimate.clip is not None:
            x_s.clamp_(*estimate.clip)
        return x_s, (x, *state)[: update.keep]
