"""UniP, the predictor of UniPC: Zhao et al., NeurIPS 2023 (arXiv 2302.04867)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Extrapolating, check_order

_NODES, _WEIGHTS = (np.polynomial.legendre.leggauss(40) + np.array([[1], [0]])) / 2  # of [0, 1]


@dataclass(frozen=True, kw_only=True)
class UniP(Extrapolating):
    """x_s = (sigma_s/sigma_t) x_t + alpha_s int_0^h e^{-(h-u)} m(lambda_t + u) du with h = lambda_s - lambda_t, where m
    is the polynomial through the last `order` values of E[x_0|x_t] over lambda = log(alpha/sigma).

    order   1 .. 4; the first steps, with less history, are of lower order, and so are the last
    lower_order_final  end with orders .., 2, 1, not counting the call that removes the last noise; False: counting it,
                       as diffusers' UniPC does

    The paper's a_1 .. a_{p-1} solve the conditions of order p, which this polynomial meets for any B(h). Its code sets
    a_1 = 1/2 for p = 2, the value for h -> 0, which makes that order DPM-Solver++(2M).
    """

    order: int = 3
    lower_order_final: bool = True

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3, 4))

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[list[float], float]]:
        alpha, sigma = (f(times).numpy() for f in (schedule.alpha, schedule.sigma))
        lam = schedule.log_snr(times).numpy()
        cleaned = self.denoise or sigma[-1] == 0  # the last call removes what noise is left
        left = self.calls(schedule, times) - (self.lower_order_final and cleaned)
        plan = []
        for i in range(len(lam) - 1):
            known = [v - lam[i] for v in lam[i::-1] if math.isfinite(v)] if math.isfinite(lam[i + 1]) else []
            r = np.array(known[: max(min(self.order, left - i), 1)] or [0.0])
            own = [float(alpha[i + 1] * w) for w in _weights(lam[i + 1] - lam[i], r)]
            plan.append(([float(sigma[i + 1] / sigma[i]), *own], 0.0))
        return plan


def _weights(h: float, r: np.ndarray) -> list[float]:
    """int_0^h e^{-(h-u)} of the polynomials that are 1 at one r and 0 at the others; r[0] = 0."""
    if len(r) == 1:
        return [-math.expm1(-h)]
    powers = np.arange(len(r))  # of u/h
    integrals = (_WEIGHTS * h * np.exp(h * (_NODES - 1))) @ _NODES[:, None] ** powers
    return list(np.linalg.solve(((r / h)[:, None] ** powers).T, integrals))
