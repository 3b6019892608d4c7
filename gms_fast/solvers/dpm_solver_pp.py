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
_FEW_CALLS = 15  # below this, the last steps are of lower order


@dataclass(frozen=True, kw_only=True)
class DPMSolverPP(Extrapolating):
    """Multistep solver of order 1 to 3 for the probability flow or the reverse SDE.

        x_s = (sigma_s/sigma_t) e^{-eta h} x_t + alpha_s (a_0 D_0 + a_1 D_1 + a_2 D_2)
              + sigma_s sqrt(1 - e^{-2 eta h}) z

    Here lambda = log(alpha/sigma) and h = lambda_s - lambda_t. D_0 = E[x_0|x_t], and D_1 and D_2 are its first and
    second differences over the preceding steps, in units of h. With p = 1 + eta and g = 1 - e^{-ph}, the coefficients
    are

    - order 1: a_0 = g
    - order 2: a_0 = g, and a_1 = g/2 or a_1 = 1 - g/(p h), depending on `kind`
    - order 3: a_0 = g, a_1 = 1 - g/(p h) and a_2 = 1/2 - (p h - g)/(p h)^2

    All other coefficients are 0.

    Use DPM-Solver++ if the precision of the samples matters most. For up to 10 network evaluations, set
    `denoise=False`. The solver needs neither statistics nor moment heads. A run of K steps costs K + 1 network
    evaluations, or K with `denoise=False` or if the schedule ends without noise.

    Args:
        order: Order of the solver: 1, 2 (default) or 3. The first steps have a lower order, because fewer earlier
            estimates exist.
        sde: Amount of noise eta >= 0. False or 0 selects the probability flow (default), True or 1 the reverse SDE
            (SDE-DPM-Solver++).
        kind: Form of the second-order steps, including the one at the start of a run of order 3. "midpoint" (default)
            uses a_1 = g/2. "heun" uses a_1 = 1 - g/(p h), which is the exact integral. "k-diffusion" is the same as
            "heun", except that steps of order 3 with noise have the form used in k-diffusion (see the note below).
        lower_order_final: If True (default), the order decreases to 1 in the last steps of runs with fewer than 15
            network evaluations.
        denoise: If True (default), one more network evaluation removes the remaining noise at the end. If False, the
            state at the last time is returned, so that K steps cost K evaluations, as in the paper.

    Raises:
        ValueError: If an argument is out of range, or if order 3 is combined with an `sde` other than 0 or 1 and a
            `kind` other than "k-diffusion".

    Note:
        "midpoint" and "heun" give the same samples as diffusers' DPMSolverMultistepScheduler with that solver_type on
        the same times. To match `denoise=True`, set the scheduler's final_sigmas_type to "zero"; its last step is then
        the last evaluation here. To match `denoise=False`, set it to "sigma_min".

        To match diffusers, a_2 is half of the exact integral, and with sde=True an additional 1 is subtracted from it.
        As a result, samples drawn at order 3 with noise vary too much: on Gaussian data, their standard deviation is 14
        % too large after 200 steps. With kind="k-diffusion" the 1 is not subtracted, and the standard deviation is
        right.

        With lower_order_final=False the solver matches k-diffusion's samplers with the same eta: dpmpp_2m without
        noise, dpmpp_2m_sde for "midpoint" and "heun", and dpmpp_3m_sde for "k-diffusion".

    Examples:
        >>> model = gms_fast.load("digits")
        >>> solver = gms_fast.solvers.DPMSolverPP(order=3, denoise=False)
        >>> gms_fast.sample(model, 8, solver=solver, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Lu et al. 2022, arXiv 2211.01095.
    """

    order: int = 2
    sde: bool | float = False
    kind: str = "midpoint"
    lower_order_final: bool = True
    denoise: bool = True

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3))
        if not (isinstance(self.sde, (bool, int, float)) and 0 <= self.sde < math.inf):
            raise ValueError(f"sde must be True, False or a non-negative number: got {self.sde!r}")
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
        """Return (weights, std) of a step of at most `order`.

        lam: log(alpha/sigma) of s, of t and of the times before, latest first.
        """
        h, *past = (a - b for a, b in pairwise(lam))
        order = min(order, 1 + sum(map(math.isfinite, past))) if math.isfinite(h) else 1
        own = self._of_data(order, (1 + self.sde) * h, *(v / h for v in past[: order - 1]))
        kept = math.exp(-self.sde * h) if self.sde else 1.0
        std = k.sigma_s * math.sqrt(-math.expm1(-2 * self.sde * h)) if self.sde else 0.0
        return [k.sigma_s / k.sigma_t * kept, *(k.alpha_s * w for w in own)], std

    def _of_data(self, order: int, ph: float, r0: float = 1.0, r1: float = 1.0) -> list[float]:
        """Return a_0 D_0 + a_1 D_1 + a_2 D_2 as weights of the data estimates m_0, m_1, m_2.

        r0, r1: lengths h_j/h of the two steps before, in units of this one.
        """
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
