"""Coefficients of one reverse step from t to s (docs/notation.md, eq. 1)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:  # importing the ops must not import the schedules
    from gms_fast.schedules import Schedule


@dataclass(frozen=True, kw_only=True)
class StepCoefficients:
    """Coefficients of one reverse step x_s = A x_t + B x_0 + sqrt(c) z, z ~ N(0, I).

    Here x_t = alpha_t x_0 + sigma_t eps and x_0 ~ q(x_0|x_t). With alpha_ts = alpha_t/alpha_s and
    beta_ts = sigma_t^2 - alpha_ts^2 sigma_s^2:

        A = alpha_ts sigma_s^2/sigma_t^2
        B = alpha_s beta_ts/sigma_t^2
        c = sigma_s^2 beta_ts/sigma_t^2

    The class methods compute these coefficients from a schedule, in float64.

    Args:
        alpha_t: Signal scale at time t, >= 0.
        sigma_t: Noise standard deviation at time t, >= 0.
        alpha_s: Signal scale at the next time s.
        sigma_s: Noise standard deviation at time s.
        A: Coefficient of the state x_t.
        B: Coefficient of the data x_0.
        c: Variance of the added noise, >= 0.
        var_max: Upper bound on the variance of the step. By default there is no bound. Some solvers set one for the
            last step.

    Raises:
        TypeError: If a coefficient is missing, or is not passed by keyword.

    Examples:
        >>> schedule = gms_fast.schedules.build("linear")
        >>> step = gms_fast.StepCoefficients.between(schedule, 500, 250)
        >>> abs(step.A * step.alpha_t + step.B - step.alpha_s) < 1e-12  # E[x_s|x_0] = alpha_s x_0
        True
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
        """Return the step from time t to time s of `schedule`.

        Args:
            schedule: Noise schedule.
            t: Time where the step begins.
            s: Time where the step ends, less noisy than t.

        Returns:
            StepCoefficients, computed in float64.

        Raises:
            ValueError: If s is not less noisy than t, or if there is no noise at t.
        """
        (step,) = cls.along(schedule, [t, s])
        if not step.falls:
            raise ValueError(f"s must be less noisy than t: got t={t}, s={s}")
        return step

    @classmethod
    def along(
        cls, schedule: "Schedule", times: Sequence[float], begun: Sequence[float] | None = None
    ) -> list["StepCoefficients"]:
        """Return the step from each time to the next one.

        A repeated time means a second network evaluation at that time, and the step in between has A = 1, B = c = 0.
        There is no reverse kernel for a step to a noisier time. Such a step follows the line through x_t and x_0,
        x_s = A x_t + B x_0.

        Args:
            schedule: Noise schedule.
            times: Times (K + 1,).
            begun: Times (K + 1,) where the steps begin. By default, each step begins where the previous one ends.

        Returns:
            List of K StepCoefficients, computed in float64.

        Raises:
            ValueError: If a step begins at a time without noise, or if the schedule's levels are not finite.
        """
        ends = schedule.levels_at(times)
        begins = ends if begun is None or begun is times else schedule.levels_at(begun)
        for t, here, there in zip(times if begun is None else begun, begins, ends[1:], strict=False):
            if here != there and here[1] == 0:
                schedule.check_noise_at(t)
        return [cls._between(here, there) for here, there in zip(begins[:-1], ends[1:], strict=True)]

    @classmethod
    def _between(cls, here: tuple[float, float], there: tuple[float, float]) -> "StepCoefficients":
        """Return the step from levels (alpha_t, sigma_t) to levels (alpha_s, sigma_s)."""
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
        # beta_ts/sigma_t^2 = 1 - (alpha_ts sigma_s/sigma_t)^2, but without its cancellation for close times
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
        """Return the coefficients of the final denoising evaluation, x_s = E[x_0|x_t].

        Args:
            schedule: Noise schedule.
            t: Time of the evaluation.

        Returns:
            StepCoefficients with alpha_s = 1, sigma_s = 0, A = 0, B = 1, c = 0.
        """
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        return cls(alpha_t=alpha, sigma_t=sigma, alpha_s=1.0, sigma_s=0.0, A=0.0, B=1.0, c=0.0)

    @property
    def falls(self) -> bool:
        """True if the step leads to less noise."""
        return self.sigma_s * self.alpha_t < self.sigma_t * self.alpha_s

    @property
    def ratio(self) -> float:
        """Noise level sigma_t/alpha_t, which is infinite if alpha_t = 0."""
        return self.sigma_t / self.alpha_t if self.alpha_t > 0 else math.inf

    def as_list(self) -> list[float]:
        """Return [alpha_t, sigma_t, A, B, c, var_max], the form that the ops accept."""
        return [self.alpha_t, self.sigma_t, self.A, self.B, self.c, self.var_max]

    def as_tensor(self, device: torch.device | str | None = None) -> Tensor:
        """Return the coefficients in the form that the kernels read, (10,) float32.

        If you pass this tensor to [`gms_step`][gms_fast.ops.gms_step] as `step`, the kernel reads it on the device. A
        CUDA graph of one step can then be used for all steps: copy the next coefficients into the tensor before each
        replay.

        Args:
            device: Device of the tensor. Defaults to torch's default device.
        """
        return torch.tensor(kernel_numbers(*self.as_list()), dtype=torch.float32, device=device)


def kernel_numbers(alpha_t: float, sigma_t: float, A: float, B: float, c: float, var_max: float) -> tuple[float, ...]:
    """Return the ten numbers that the kernels read, computed in float64.

    With r = sigma_t/alpha_t: (1/alpha_t, r, r^2, -r^3, A, B, B^2, c, var_max, sqrt(min(c, var_max))).
    """
    r = sigma_t / alpha_t
    return (1 / alpha_t, r, r * r, -(r**3), A, B, B * B, c, var_max, math.sqrt(min(c, var_max)))
