"""DPM-Solver++, multistep: Lu et al. 2022 (arXiv 2211.01095)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from gms_fast.ops.checks import check_choice
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Extrapolating, check_order
from gms_fast.steps import StepCoefficients

KINDS = ("midpoint", "heun", "k-diffusion")
_FEW_CALLS = 15  # below, the last steps are of lower order


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP(Extrapolating):
    """x_s = (sigma_s/sigma_t) e^{-eta h} x_t + alpha_s (a_0 D_0 + a_1 D_1 + a_2 D_2) + sigma_s sqrt(1 - e^{-2 eta h}) z
    with h = lambda_s - lambda_t, lambda = log(alpha/sigma), and eta how much noise: 0 the probability flow, 1 the
    reverse SDE.

    With p = 1 + eta and g = 1 - e^{-ph}: a_0 = g; order 2: a_1 = g/2 or 1 - g/(p h), by `kind`; order 3:
    a_1 = 1 - g/(p h), a_2 = 1/2 - (p h - g)/(p h)^2.
    D_0 = E[x_0|x_t]; D_1, D_2 its first and second differences over the last steps, in units of h.

    order              1, 2 or 3; the first steps, with less history, are of lower order
    sde                eta >= 0; True is 1 (SDE-DPM-Solver++), False 0
    kind               order 2, and the step of order 2 that order 3 begins with: "midpoint", a_1 = g/2; "heun",
                       a_1 = 1 - g/(p h), what integration gives; "k-diffusion" is "heun", and its noisy order 3 is
                       k-diffusion's
    lower_order_final  with fewer than 15 network calls, end with orders .. 2, 1
    denoise            False: the state at the last time is the sample, and K steps cost K calls, as in the paper

    The kinds "midpoint" and "heun" equal diffusers' DPMSolverMultistepScheduler of that solver_type on the same times
    with final_sigmas_type "zero", where the last call of `sample` is its last step, or "sigma_min" without `denoise`.
    So a_2 is half of what integration gives, and for sde=True that less 1, as it is there: the noisy order 3 spreads
    too far (std 14 % too large after 200 steps on a Gaussian), and the kind "k-diffusion", without that 1, does not.
    With lower_order_final=False they equal k-diffusion's samplers of the same eta: dpmpp_2m without noise,
    dpmpp_2m_sde of solver_type "midpoint" and "heun", and dpmpp_3m_sde, the kind "k-diffusion". For other eta than 0
    and 1 order 3 has that kind alone.
    """

    order: int = 2
    sde: bool | float = False
    kind: str = "midpoint"
    lower_order_final: bool = True
    denoise: bool = True

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3))
        if not (isinstance(self.sde, (bool, int, float)) and 0 <= self.sde < math.inf):
            raise ValueError(f"sde must be True, False or a number that is not negative: got {self.sde!r}")
        check_choice("kind", self.kind, KINDS)
        if self.order == 3 and self.sde not in (0, 1) and self.kind != "k-diffusion":
            raise ValueError(f'kind must be "k-diffusion" for order 3 with sde = {self.sde:g}: got {self.kind!r}')

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[list[float], float]]:
        steps = StepCoefficients.along(schedule, times)
        lam = [float(v) for v in schedule.log_snr(times)]
        calls = self.calls(schedule, times)  # the last one may be a step of order 1 to no noise
        few = self.lower_order_final and calls < _FEW_CALLS
        most = [calls - i if few else self.order for i in range(len(steps))]
        return [self._step(k, lam[: i + 2][::-1], min(self.order, most[i])) for i, k in enumerate(steps)]

    def _step(self, k: StepCoefficients, lam: list[float], order: int) -> tuple[list[float], float]:
        """(weights, std) of a step of at most `order`; lam: those of s, t and of the times before, latest first."""
        h, *past = (a - b for a, b in pairwise(lam))
        order = min(order, 1 + sum(map(math.isfinite, past))) if math.isfinite(h) else 1
        own = self._of_data(order, (1 + self.sde) * h, *(v / h for v in past[: order - 1]))
        kept = math.exp(-self.sde * h) if self.sde else 1.0
        std = k.sigma_s * math.sqrt(-math.expm1(-2 * self.sde * h)) if self.sde else 0.0
        return [k.sigma_s / k.sigma_t * kept, *(k.alpha_s * w for w in own)], std

    def _of_data(self, order: int, ph: float, r0: float = 1.0, r1: float = 1.0) -> list[float]:
        """a_0 D_0 + a_1 D_1 + a_2 D_2 as weights of the estimates m_0, m_1, m_2; r_j = h_j/h of the steps before."""
        g = -math.expm1(-ph)
        if order == 1:
            return [g]
        if order == 2:
            first = (g / 2 if self.kind == "midpoint" else 1 - g / ph) / r0
            return [g + first, -first]
        a1, a2 = 1 - g / ph, 0.5 - (ph - g) / ph**2 - (self.sde if self.kind != "k-diffusion" else 0)
        first = a1 * (1 + r0 / (r0 + r1)) + a2 / (r0 + r1)  # of (m_0 - m_1)/r_0
        second = -a1 * r0 / (r0 + r1) - a2 / (r0 + r1)  # of (m_1 - m_2)/r_1
        return [g + first / r0, second / r1 - first / r0, -second / r1]
