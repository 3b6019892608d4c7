"""The numbers of one reverse step from t to s (docs/notation.md, eq. 1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # an import of the ops brings no schedules
    from gms_fast.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class StepCoefficients:
    """x_s = A x_t + B x_0 + sqrt(c) z, with x_0 ~ q(x_0|x_t), for x_t = alpha_t x_0 + sigma_t eps.

    With alpha_ts = alpha_t/alpha_s and beta_ts = sigma_t^2 - alpha_ts^2 sigma_s^2:
    A = alpha_ts sigma_s^2/sigma_t^2, B = alpha_s beta_ts/sigma_t^2, c = sigma_s^2 beta_ts/sigma_t^2.
    var_max bounds the variance that is drawn (infinite but for the last step of some solvers).
    """

    alpha_t: float
    sigma_t: float
    alpha_s: float
    sigma_s: float
    A: float
    B: float
    c: float
    var_max: float = math.inf

    @classmethod
    def between(cls, schedule: "Schedule", t: float, s: float) -> "StepCoefficients":
        """The step from time t to time s of `schedule`, s less noisy than t; computed in float64."""
        (step,) = cls.along(schedule, [t, s])
        if not step.falls:
            raise ValueError(f"s must be less noisy than t: got t={t}, s={s}")
        return step

    @classmethod
    def along(
        cls, schedule: "Schedule", times: Sequence[float], begun: Sequence[float] | None = None
    ) -> list["StepCoefficients"]:
        """The steps from each of the times to the next one; computed in float64.

        A time that is repeated stands for another network call there: the step between has A = 1, B = c = 0. A step to
        more noise has no reverse kernel; it goes along the line through x_t and x_0, x_s = A x_t + B x_0.
        begun  the times where the steps begin, if those are not where the ones before end
        """
        ends = cls._levels(schedule, times)
        begins = ends if begun is None or begun is times else cls._levels(schedule, begun)
        return [cls._between(here, there) for here, there in zip(begins[:-1], ends[1:], strict=True)]

    @staticmethod
    def _levels(schedule: "Schedule", times: Sequence[float]) -> list[tuple[float, float]]:
        """(alpha_t, sigma_t) of each."""
        alphas, sigmas = (f(times).tolist() for f in (schedule.alpha, schedule.sigma))
        return list(zip(alphas, sigmas, strict=True))

    @classmethod
    def _between(cls, here: tuple[float, float], there: tuple[float, float]) -> "StepCoefficients":
        """From (alpha_t, sigma_t) to the same of s."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = here, there
        if here == there:
            return cls(alpha_t=alpha_t, sigma_t=sigma_t, alpha_s=alpha_s, sigma_s=sigma_s, A=1.0, B=0.0, c=0.0)
        if sigma_s * alpha_t > sigma_t * alpha_s:
            kept = sigma_s / sigma_t
            levels = {"alpha_t": alpha_t, "sigma_t": sigma_t, "alpha_s": alpha_s, "sigma_s": sigma_s}
            return cls(**levels, A=kept, B=alpha_s - kept * alpha_t, c=0.0)
        alpha_ts = alpha_t / alpha_s
        known = sigma_s > 0 and alpha_t > 0
        share = -math.expm1(2 * (math.log(alpha_ts) + math.log(sigma_s) - math.log(sigma_t))) if known else 1.0
        # share = beta_ts/sigma_t^2 = 1 - (alpha_ts sigma_s/sigma_t)^2, which cancels badly for close times
        return cls(
            alpha_t=alpha_t,
            sigma_t=sigma_t,
            alpha_s=alpha_s,
            sigma_s=sigma_s,
            A=alpha_ts * (sigma_s / sigma_t) ** 2,
            B=alpha_s * share,
            c=sigma_s**2 * share,
        )

    @classmethod
    def at(cls, schedule: "Schedule", t: float) -> "StepCoefficients":
        """The numbers of time t alone, for the evaluation that removes the last noise: x_s = E[x_0|x_t]."""
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        return cls(alpha_t=alpha, sigma_t=sigma, alpha_s=1.0, sigma_s=0.0, A=0.0, B=1.0, c=0.0)

    @property
    def falls(self) -> bool:
        """Tell a step to less noise."""
        return self.sigma_s * self.alpha_t < self.sigma_t * self.alpha_s

    @property
    def ratio(self) -> float:
        """The noise level sigma_t/alpha_t, infinite without signal."""
        return self.sigma_t / self.alpha_t if self.alpha_t > 0 else math.inf

    def as_list(self) -> list[float]:
        """(alpha_t, sigma_t, A, B, c, var_max): what the ops take."""
        return [self.alpha_t, self.sigma_t, self.A, self.B, self.c, self.var_max]

    def as_tensor(self, device: torch.device | str | None = None) -> Tensor:
        """The kernels' numbers, (10,) float32: `gms_step` reads them from the device if given this for `step`.

        A CUDA graph of one step serves every step: copy the next step's numbers into the tensor before a replay.
        """
        return torch.tensor(kernel_numbers(*self.as_list()), dtype=torch.float32, device=device)


def kernel_numbers(alpha_t: float, sigma_t: float, A: float, B: float, c: float, var_max: float) -> tuple[float, ...]:
    """(1/alpha_t, r, r^2, -r^3, A, B, B^2, c, var_max, sqrt(min(c, var_max))), r = sigma_t/alpha_t; float64."""
    r = sigma_t / alpha_t
    return (1 / alpha_t, r, r * r, -(r**3), A, B, B * B, c, var_max, math.sqrt(min(c, var_max)))
