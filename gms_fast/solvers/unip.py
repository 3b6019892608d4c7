"""UniPC, and UniP, its predictor alone: Zhao et al., NeurIPS 2023 (arXiv 2302.04867)."""

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
    """UniP's step from a state x_t^c that the network's estimate there has corrected:

        x_t^c = x_t + sum_j (c_j - b_j) m_j,    x_s = (sigma_s/sigma_t) x_t^c + sum_j b_j' m_j

    where x_t = r x^c + sum_j b_j m_j was predicted without m_t, and r x^c + sum_j c_j m_j is the same integral of the
    polynomial through m_t too. All of it is linear in the state that is given and the last estimates of x_0, so a step
    is one pass and one network call, and what a host did to the state stays.

    order    1 .. 4 of the predictor; the corrector then is of one order more
    variant  "bh2", B = 1 - e^{-h}, or "bh1", B = h: of predictors through two values and correctors through one past
             value, which take B/2 times the slope as in the released code; the others meet their order for any B
    corrector          False: the predictor alone
    lower_order_final  end with orders .. 2, 1, counting the call that removes the last noise
    disable_corrector  steps whose end is not corrected, 0 being the first

    Equals diffusers' UniPCMultistepScheduler(predict_x0=True) on the same times; a step to no noise is of order 1 here
    in any case. A step from no signal (alpha = 0) has no corrector.
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
            raise ValueError(f"disable_corrector must be a tuple of steps, 0 the first: got {steps!r}")

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
        """c - b as weights of the estimate at the step's end, of that at its beginning, and of those before."""
        here, end, *before = self._weights(h, np.insert(r, 1, h))
        return [end, *(c - b for c, b in zip([here, *before], own, strict=True))]


def _levels(schedule: Schedule, times: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """alpha, sigma and lambda."""
    return schedule.alpha(times).numpy(), schedule.sigma(times).numpy(), schedule.log_snr(times).numpy()


def _known(lam: np.ndarray, i: int, most: int) -> np.ndarray:
    """Places of known values, counted from lam[i], latest first: `most` at most, where the step is a finite one."""
    known = [v - lam[i] for v in lam[i::-1] if math.isfinite(v)] if math.isfinite(lam[i + 1]) else []
    return np.array(known[: max(most, 1)] or [0.0])


def _weights(h: float, r: np.ndarray) -> list[float]:
    """int_0^h e^{-(h-u)} of the polynomials that are 1 at one r and 0 at the others; r[0] = 0."""
    if len(r) == 1:
        return [-math.expm1(-h)]
    powers = np.arange(len(r))  # of u/h
    integrals = (_WEIGHTS * h * np.exp(h * (_NODES - 1))) @ _NODES[:, None] ** powers
    return list(np.linalg.solve(((r / h)[:, None] ** powers).T, integrals))
