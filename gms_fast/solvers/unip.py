"""UniPC and its predictor UniP: Zhao et al., NeurIPS 2023 (arXiv 2302.04867)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from gms_fast.ops.checks import check_choice
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Extrapolating, check_order

VARIANTS = ("bh1", "bh2")
_NODES, _WEIGHTS = (np.polynomial.legendre.leggauss(40) + np.array([[1], [0]])) / 2  # of [0, 1]


@dataclass(frozen=True, kw_only=True)
class UniP(Extrapolating):
    """Multistep predictor of order 1 to 4 for the probability flow: UniPC without the corrector.

        x_s = (sigma_s/sigma_t) x_t + alpha_s int_0^h e^{-(h-u)} m(lambda_t + u) du

    Here lambda = log(alpha/sigma) and h = lambda_s - lambda_t. The function m(lambda) is the polynomial through the
    last `order` values of E[x_0|x_t].

    Prefer [`UniPC`][gms_fast.solvers.UniPC], which has the same cost, unless you want the plain exponential integrator.
    A run of K steps costs K + 1 network evaluations, or K if the schedule ends without noise.

    Args:
        order: Order of the predictor, from 1 to 4 (default 3). The first steps have a lower order, because fewer
            earlier estimates exist.
        lower_order_final: If True (default), the order decreases to 1 in the last step; the evaluation that then
            removes the remaining noise does not count as a step. If False, that evaluation counts as the step of order
            1, as in diffusers' UniPC.

    Raises:
        ValueError: If `order` is not 1, 2, 3 or 4.

    Note:
        The coefficients a_1, .., a_{p-1} of the paper solve the conditions of order p, and this polynomial meets these
        conditions for any choice of the function B(h) in the paper. For p = 2, the paper's code sets a_1 = 1/2, the
        limit for h -> 0, and so becomes DPM-Solver++(2M).

    Examples:
        >>> model = gms_fast.load("digits")
        >>> gms_fast.sample(model, 8, solver=gms_fast.solvers.UniP(order=2), n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Zhao et al. 2023, arXiv 2302.04867.
    """

    order: int = 3
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3, 4))

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[list[float], float]]:
        alpha, sigma, lam = _levels(schedule, times)
        cleaned = self.denoise or sigma[-1] == 0  # the last call removes what noise is left
        left = self.calls(schedule, times) - (self.lower_order_final and cleaned)
        plan = []
        for i in range(len(lam) - 1):
            own = _weights(lam[i + 1] - lam[i], _known(lam, i, min(self.order, left - i)))
            plan.append(([float(sigma[i + 1] / sigma[i]), *(float(alpha[i + 1] * w) for w in own)], 0.0))
        return plan


@dataclass(frozen=True, kw_only=True)
class UniPC(Extrapolating):
    """Multistep predictor-corrector of order 1 to 4 for the probability flow.

    The network's estimate at x_t first corrects x_t. A step of UniP then starts from the corrected state:

        x_t^c = x_t + sum_j (c_j - b_j) m_j,    x_s = (sigma_s/sigma_t) x_t^c + sum_j b_j' m_j

    The preceding step started from its own corrected state x^c and predicted x_t = r x^c + sum_j b_j m_j without the
    estimate m_t, where r is the ratio of sigma at its end to sigma at its start. The corrected sum,
    r x^c + sum_j c_j m_j, is the same integral for the polynomial that also passes through m_t. Both sums are linear in
    the given state and the last estimates of x_0, so a step takes one pass over memory and one network evaluation. If
    you modify the state between steps, the modification is kept.

    Use UniPC for deterministic sampling without statistics or moment heads, or to match a pipeline that uses it. A run
    of K steps costs K + 1 network evaluations, or K if the schedule ends without noise.

    Args:
        order: Order of the predictor, from 1 to 4 (default 2). The order of the corrector is higher by one.
        variant: Function B(h) of the step size h in log(alpha/sigma): "bh2" (default) for B = 1 - e^{-h}, or "bh1" for
            B = h. It only affects predictors that use two estimates and correctors that use one earlier estimate,
            because these multiply the slope of the data estimates by B/2, as in the code released with the paper. All
            others have their full order for any B.
        corrector: If False, the corrector is turned off and only the predictor runs (default True).
        lower_order_final: If True (default), the order decreases to 1 in the last steps. The evaluation that removes
            the remaining noise counts as the step of order 1.
        disable_corrector: Indices of the steps whose result is not corrected, counted from 0. Default: an empty tuple.

    Raises:
        ValueError: If an argument is out of range.

    Note:
        On the same times, UniPC gives the same samples as diffusers' UniPCMultistepScheduler(predict_x0=True), except
        that a step to zero noise always has order 1 here. A step that starts without signal (alpha = 0) is not
        corrected.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> solver = gms_fast.solvers.UniPC(order=3, variant="bh1")
        >>> gms_fast.sample(model, 8, solver=solver, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Zhao et al. 2023, arXiv 2302.04867.
    """

    order: int = 2
    variant: str = "bh2"
    corrector: bool = True
    lower_order_final: bool = True
    disable_corrector: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3, 4))
        check_choice("variant", self.variant, VARIANTS)
        steps = self.disable_corrector
        if not (isinstance(steps, tuple) and all(type(i) is int and i >= 0 for i in steps)):
            raise ValueError(f"disable_corrector must be a tuple of step indices >= 0: got {steps!r}")

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[list[float], float]]:
        alpha, sigma, lam = _levels(schedule, times)
        left = self.calls(schedule, times)
        plan, correction = [], [0.0]
        for i in range(len(lam) - 1):
            h, kept = lam[i + 1] - lam[i], float(sigma[i + 1] / sigma[i])
            r = _known(lam, i, min(self.order, left - i) if self.lower_order_final else self.order)
            own = self._weights(h, r)
            corrected = [float(kept * alpha[i] * d) for d in correction] if kept else []
            predicted = [float(alpha[i + 1] * w) for w in own]
            plan.append(([kept, *(d + w for d, w in zip_longest(corrected, predicted, fillvalue=0.0))], 0.0))
            corrects = self.corrector and i not in self.disable_corrector and math.isfinite(h)
            correction = self._correction(h, r, own) if corrects else [0.0]
        return plan

    def _weights(self, h: float, r: np.ndarray) -> list[float]:
        if len(r) != 2:
            return _weights(h, r)
        whole = -math.expm1(-h)
        sloped = float(h / r[1]) * (whole if self.variant == "bh2" else h) / 2
        return [whole - sloped, sloped]

    def _correction(self, h: float, r: np.ndarray, own: list[float]) -> list[float]:
        """Return c - b as weights of the estimates at the step's end, at its beginning, and before."""
        here, end, *before = self._weights(h, np.insert(r, 1, h))
        return [end, *(c - b for c, b in zip([here, *before], own, strict=True))]


def _levels(schedule: Schedule, times: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return alpha, sigma and lambda at the times."""
    return schedule.alpha(times).numpy(), schedule.sigma(times).numpy(), schedule.log_snr(times).numpy()


def _known(lam: np.ndarray, i: int, most: int) -> np.ndarray:
    """Return the places of at most `most` known values, relative to lam[i], latest first.

    Only the one at lam[i] counts in a step to no noise.
    """
    known = [v - lam[i] for v in lam[i::-1] if math.isfinite(v)] if math.isfinite(lam[i + 1]) else []
    return np.array(known[: max(most, 1)] or [0.0])


def _weights(h: float, r: np.ndarray) -> list[float]:
    """Integrate e^{-(h-u)} times each Lagrange polynomial of the nodes r over u in [0, h].

    Each polynomial is 1 at one r and 0 at the others; r[0] = 0.
    """
    if len(r) == 1:
        return [-math.expm1(-h)]
    powers = np.arange(len(r))  # of u/h
    integrals = (_WEIGHTS * h * np.exp(h * (_NODES - 1))) @ _NODES[:, None] ** powers
    return list(np.linalg.solve(((r / h)[:, None] ** powers).T, integrals))
