"""DPM-Solver-v3: Zheng et al., NeurIPS 2023 (arXiv 2310.13268)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from gms_fast.estimate import Estimate
from gms_fast.ops.checks import MAX_TERMS
from gms_fast.ops.types import ADDED, COLUMNS, Draws
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Solver, TimeStep
from gms_fast.tables import EmpiricalModel

CORRECTORS = (None, "same", "next")
HALVES = (False, True, "released")
_HALF = 0.5  # of the time, which runs over [0, 1]


Form = dict[int, Tensor]  # weights by element, by column


class Rows(NamedTuple):
    """Weights by element for the results of one step, as `gms_fast.ops.types.Linear` takes them.

    `present` is the bit mask of the weights that exist; `terms` is the number of terms.
    """

    weights: Tensor
    present: int
    terms: int

    @classmethod
    def of(cls, results: Sequence[Form]) -> "Rows":
        rows = [form[column] for form in results for column in sorted(form)]
        present = sum(1 << COLUMNS * i + column for i, form in enumerate(results) for column in form)
        terms = max(column for form in results for column in form if column != ADDED) - 1
        return cls(torch.stack(rows), present, max(terms, 0))

    @classmethod
    def to(cls, table: Sequence["Rows"], device: torch.device, dtype: torch.dtype) -> list["Rows"]:
        """Return the rows of every step on a device, in one copy."""
        there = torch.cat([rows.weights for rows in table]).to(device, dtype)
        parts = torch.split(there, [len(rows.weights) for rows in table])
        return [rows._replace(weights=part) for rows, part in zip(table, parts, strict=True)]


class Update(NamedTuple):
    """One local update: grid nodes of the known values, the anchor first, and of the target."""

    nodes: tuple[int, ...]
    target: int
    pseudo: bool


@dataclass(frozen=True, eq=False)
class DPMSolverV3(Solver):
    """Multistep predictor-corrector that uses statistics measured on the network.

    With y = x/alpha and lambda = log(alpha/sigma), the probability flow is

        dy/dlambda = -l y - f,    f = (sigma eps - l x)/alpha

    The empirical model statistics l, s and b are curves over lambda that are measured on the given network. They make f
    as smooth as this network allows. A step from t to s is

        y_s = A [y_t - int E B - int E g],    A = exp(-int l),  E = exp(int l + s),  B = int exp(-int s) b

    All integrals (int) run over lambda and begin at t. The function g = exp(-int s) f - B is approximated by the
    polynomial through its values at the preceding steps.

    Use DPM-Solver-v3 for 3 to 10 network evaluations if you have measured the statistics of your network. For 3 to 5
    evaluations, put it after a [`Teleport`][gms_fast.solvers.Teleport] and set `trust=-2`. A run of K steps costs K
    network evaluations, with or without the corrector, because the state at the last time is the sample.

    Args:
        statistics: [`EmpiricalModel`][gms_fast.statistics.EmpiricalModel] of this network and schedule, measured by
            `gms_fast.statistics.empirical_model` or read by `gms_fast.statistics.load`.
        order: Order of the predictor, from 1 to 8, or from 1 to 7 with corrector="next" (default 3). The first steps
            have a lower order, because fewer earlier values exist.
        corrector: Correction of the state after each network evaluation; it costs no further evaluations. None turns it
            off. "same" uses the order of the preceding predictor. "next" (default) uses an order higher by one, with
            pseudo derivatives (see `pseudo`).
        pseudo: If True, the k-th derivative in the predictor is a divided difference of the last k + 1 values (a pseudo
            derivative), which is more stable in runs of few steps. If False (default), all derivatives are those of the
            polynomial through all values.
        lower_order_final: If True (default), the order decreases to 1 in the last steps.
        half: If False (default), the corrector is used at all times. If True, it is used only at times t <= 1/2, as in
            the paper. With "released", it is used only at times t > 1/2, as in the code released with the paper. These
            times run from 0 (data) to 1 (noise).
        trust: Smallest lambda at which the statistics are used. Below it they are replaced by l = 1 and s = b = 0, as
            in data prediction (see `EmpiricalModel.trusted`). None (default) uses the statistics everywhere. For the
            statistics of the embedded models, -2 is best.
        spacing: Time grid of `sample(steps=..)`, as in `Schedule.grid` (default 0.7). The paper uses "log-snr" and
            "uniform".

    Raises:
        TypeError: If `statistics` is not an `EmpiricalModel`.
        ValueError: If another argument is out of range. Sampling also raises it if the statistics belong to another
            network, schedule or sample shape, or if they do not cover the times of the run.

    Note:
        The statistics are known at a fixed set of noise levels, the nodes, and each time is moved to the nearest node.
        Setting `trust` improves runs of few steps. But f then jumps at that lambda, so runs of many steps no longer
        converge at their order. The solver inspects the statistics and the network before a run, so it works neither
        under torch.compile nor in CUDA graphs.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> solver = gms_fast.solvers.DPMSolverV3(gms_fast.statistics.load("digits"), trust=-2)
        >>> gms_fast.sample(model, 5, solver=solver, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Zheng et al. 2023, arXiv 2310.13268.
    """

    statistics: EmpiricalModel
    order: int = 3
    corrector: str | None = "next"
    pseudo: bool = False
    lower_order_final: bool = True
    half: bool | str = False
    trust: float | None = None
    spacing: str | float = 0.7
    denoise = False

    def __post_init__(self) -> None:
        if not isinstance(self.statistics, EmpiricalModel):
            raise TypeError(
                "statistics must be an EmpiricalModel, as returned by gms_fast.statistics.empirical_model: "
                f"got {type(self.statistics).__name__}"
            )
        most = MAX_TERMS - (self.corrector == "next")
        if not isinstance(self.order, int) or isinstance(self.order, bool) or not 1 <= self.order <= most:
            raise ValueError(f"order must be an integer from 1 to {most}: got {self.order!r}")
        if self.trust is not None and not (isinstance(self.trust, (int, float)) and math.isfinite(self.trust)):
            raise ValueError(f"trust must be a finite number or None: got {self.trust!r}")
        for name, choices in (("corrector", CORRECTORS), ("half", HALVES)):
            if getattr(self, name) not in choices:
                listed = ", ".join(map(repr, choices))
                raise ValueError(f"{name} must be one of {listed}: got {getattr(self, name)!r}")

    def check(self, model: Any, shape: Sequence[int], clip: tuple[float, float] | None = None) -> None:
        if not len(shape):
            raise ValueError("shape must have at least one dimension for DPMSolverV3: got ()")
        self.statistics.check(model=model, shape=shape)

    def _grid(self, schedule: Schedule, steps: int, spacing: str | float | None, t_max: float | None) -> list[float]:
        """Return the grid from the statistics' first noise level, or `t_max`, to their last.

        It is not rounded to the times that the network was trained on.
        """
        self.statistics.check(schedule=schedule)
        self._check_whole(schedule, t_max)
        first, last = self._ends(schedule)
        spacing = schedule.spacing if spacing is None else spacing
        return [float(t) for t in schedule.grid(steps, spacing, first if t_max is None else t_max, last)]

    def _visited(self, schedule: Schedule, times: list[float]) -> list[float]:
        """Return the times of the statistics' nodes nearest to those wanted.

        Raises ValueError unless the nodes are distinct and lie in the statistics' range.
        """
        self.statistics.check(schedule=schedule)
        lam, N = self.statistics.lam.numpy(), self.statistics.N
        nodes = self._nodes(schedule, times)
        if nodes and (nodes[0] < 0 or nodes[-1] > N):
            first, last = self._ends(schedule)
            got = f"{times[0]:g} to {times[-1]:g}"
            raise ValueError(f"timesteps must lie in the range of the statistics, {first:g} to {last:g}: got {got}")
        if len(set(nodes)) < len(nodes) or nodes != sorted(nodes) or len(nodes) < 2:
            raise ValueError(
                f"timesteps must be nearest to different nodes of the statistics, noisiest first: the {len(nodes)} "
                f"times are nearest to the nodes {nodes} of 0 to {N}. Use fewer steps, another spacing, or statistics "
                "with more nodes"
            )
        return [float(t) for t in schedule.inverse_log_snr(lam[0] + (lam[-1] - lam[0]) * np.array(nodes) / N)]

    def _ends(self, schedule: Schedule) -> list[float]:
        """Return the times of the statistics' first and last node."""
        return [float(t) for t in schedule.inverse_log_snr(self.statistics.lam[[0, -1]])]

    def _check_whole(self, schedule: Schedule, t_max: float | None) -> None:
        """Raise ValueError unless the statistics cover the grid's noise levels, first to last.

        The first is that of `t_max` if given, else that of the schedule.
        """
        lam, ends = self.statistics.lam, schedule.log_snr([schedule.t_max if t_max is None else t_max, schedule.t_min])
        cell = lam[1] - lam[0]
        early = t_max is None and lam[0] < ends[0] - cell
        if early or lam[0] > ends[0] + cell or lam[-1] < ends[1] - cell:
            raise ValueError(
                f"statistics must cover all of {schedule!r}, lambda = {ends[0]:.3g} to {ends[1]:.3g}, unless "
                f"timesteps are given: got lambda = {lam[0]:.3g} to {lam[-1]:.3g}"
            )

    def _nodes(self, schedule: Schedule, times: Sequence[float]) -> list[int]:
        lam, N = self.statistics.lam.numpy(), self.statistics.N
        place = (schedule.log_snr(times).numpy() - lam[0]) / (lam[-1] - lam[0]) * N
        return [int(i) for i in np.clip(place, -1, N + 1).round()]

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[int, Update | None, Update]]:
        """Return (node, corrector, predictor) for every step.

        The corrector corrects the state at which the step starts; it is None if that state is not corrected.
        """
        nodes, clock, last = self._nodes(schedule, times), schedule.clock(times).numpy(), 0
        plan = []
        for i in range(len(nodes) - 1):
            past = nodes[i::-1]  # this node first
            order = last + (self.corrector == "next")
            corrector = None
            if self.corrector and order > 1 and self._corrected(clock[i]):
                corrector = Update((past[1], past[0], *past[2:])[:order], past[0], self.corrector == "next")
            last = min(i + 1, self.order, len(nodes) - 1 - i if self.lower_order_final else self.order)
            plan.append((nodes[i], corrector, Update(tuple(past[:last]), nodes[i + 1], self.pseudo)))
        return plan

    def _corrected(self, t: float) -> bool:
        return not self.half or bool(t > _HALF) == (self.half == "released")

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> tuple[list[Rows], None, tuple[()]]:
        """Return (weights of each step, preceding state, last values of f with the latest first)."""
        alphas = {step.numbers[0]: step.coefficients.alpha_t for step in steps}
        alphas[steps[-1].numbers[2].target] = steps[-1].coefficients.alpha_s
        wide = torch.promote_types(x.dtype, torch.float32)
        known = self.statistics if self.trust is None else self.statistics.trusted(self.trust)
        if not all(bool(curve.isfinite().all()) for curve in known.tables):
            raise ValueError("statistics must have finite integrals, but |l| or |s| is too large: measure them again")
        table = []
        for step in steps:
            node, corrector, predictor = step.numbers
            slope = (1 - known.l[node]) / step.coefficients.alpha_t
            correct, predict = (u and local_update(known, u, alphas) for u in (corrector, predictor))
            results = _results(slope, correct, predict)[: 1 if step.is_last else 3]
            table.append(Rows.of(results))
        return Rows.to(table, x.device, wide), None, ()

    def draws_at(self, step: TimeStep) -> bool:
        return False

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        table, before, past = state
        corrected = step.numbers[1] is not None
        rows = table[step.i]
        terms = (before, *past) if corrected else past
        x_s, *more = estimate.linear(terms[: rows.terms], (), 0.0, draws, rows=rows.weights, present=rows.present)
        f = more[:1]
        return x_s, (table, more[1] if len(more) > 1 else x, (*f, *past)[: self.order])


def _results(slope: Tensor, corrector: Tensor | None, predictor: Tensor) -> list[Form]:
    """Return x_s, f at this state and, if it is corrected, the state, as weighted sums.

    The columns are x, E[x_0|x_t], the state before if this one is corrected, and f at the states before. With
    eps = (x - alpha E[x_0|x_t])/sigma, f = (sigma eps - l x)/alpha is slope x - E[x_0|x_t], slope = (1 - l)/alpha.
    """
    one = torch.ones_like(slope)
    f: Form = {0: slope, 1: -one}
    at = 2 if corrector is None else 3  # column of f at the state before
    state: Form = {0: one}
    if corrector is not None:  # weights on the state before it and on f, this one's included
        anchor, of_before, of_this, *older, added = corrector
        parts = [(anchor, {2: one}), (of_before, {at: one}), (of_this, f)]
        state = _sum([*parts, *((w, {at + j: one}) for j, w in enumerate(older, start=1))], added)
    anchor, of_this, *older, added = predictor
    x_s = _sum([(anchor, state), (of_this, f), *((w, {at + j: one}) for j, w in enumerate(older))], added)
    return [x_s, f] if corrector is None else [x_s, f, state]


def _sum(parts: Sequence[tuple[Tensor, Form]], added: Tensor) -> Form:
    """Return the sum of weighted forms and of a constant."""
    total: Form = {ADDED: added}
    for weight, form in parts:
        for column, own in form.items():
            total[column] = weight * own + total[column] if column in total else weight * own
    return total


def local_update(statistics: EmpiricalModel, update: Update, alphas: dict[int, float]) -> Tensor:
    """Return the weights W (nodes + 2, *sample), float64, of one update.

    x_target = W_0 x_anchor + sum_m W_{m+1} f_m + W_last.
    """
    table, (s, *_), t = statistics.tables, update.nodes, update.target
    L, S, I, B, C = table
    keep = (L[s] - L[t]).exp()
    of_g = [-(-L[t] - S[s]).exp() * (I[t] - I[s])]
    of_g += [torch.zeros_like(keep) for _ in update.nodes[1:]]
    for k, row in enumerate(derivatives(statistics.lam, update), start=1):
        share = -keep * statistics.moment(s, t, k)
        of_g = [w + share * d for w, d in zip(of_g, row, strict=True)]
    constant = -(-L[t]).exp() * (C[t] - C[s] - B[s] * (I[t] - I[s]))
    constant = constant - S[s].exp() * sum(w * (B[m] - B[s]) for w, m in zip(of_g, update.nodes, strict=True))
    of_f = [w * (S[s] - S[m]).exp() for w, m in zip(of_g, update.nodes, strict=True)]
    return alphas[t] * torch.stack([keep / alphas[s], *of_f, constant])


def derivatives(lam: Tensor, update: Update) -> list[list[float]]:
    """Return derivatives 1, 2, .. of g at the anchor, as weights of its values at the nodes.

    They are those of the polynomial through all nodes. Pseudo derivatives are k! [g_0, .., g_k], of the first k + 1
    nodes only.
    """
    delta = (lam[list(update.nodes)] - lam[update.nodes[0]]).numpy()
    n = len(delta) - 1
    if update.pseudo:
        return [[math.factorial(k) * w for w in _divided(delta[: k + 1])] + [0.0] * (n - k) for k in range(1, n + 1)]
    inverse = np.linalg.inv(delta[1:, None] ** np.arange(1, n + 1))
    return [[math.factorial(k) * w for w in (-sum(row), *row)] for k, row in enumerate(inverse, start=1)]


def _divided(delta: np.ndarray) -> list[float]:
    """Return the divided difference as weights of the values."""
    return [1 / math.prod(d - other for j, other in enumerate(delta) if j != i) for i, d in enumerate(delta)]
