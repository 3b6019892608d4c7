"""Gaussian Mixture Solvers: Guo et al., NeurIPS 2023 (arXiv 2311.00941)."""

import functools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gms_fast.estimate import Estimate
from gms_fast.ops import fused
from gms_fast.ops.checks import COMPONENTS, FITS, MOMENTS, check_choice
from gms_fast.ops.types import DEFAULT, Draws, Fit
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import WITHOUT_MOMENTS, Solver, TimeStep, bounded_last_step, check_clip_pixel
from gms_fast.steps import StepCoefficients
from gms_fast.tables import Gaussian


@dataclass(frozen=True, kw_only=True)
class GMS(Solver):
    """Gaussian Mixture Solver: draw x_s from a mixture that matches three moments.

    Each element of x_s is drawn from w N(mean_a, V) + (1-w) N(mean_b, V). The mixture has the mean, variance and third
    central moment of q(x_s|x_t), which are A x_t + B m, c + B^2 v and B^3 k (eq. 1 and 2 of docs/notation.md). Here m,
    v and k are the mean, variance and third central moment of x_0 given x_t, which follow from the network's three
    noise moments.

    If `covariance` is given, steps at high noise levels draw all elements of a sample jointly: x_s is A x_t + B
    E[x_0|x_t] plus Gaussian noise. This noise has the covariance that x_s, given x_t, would have if x_0 came from the
    Gaussian `covariance` (see `Gaussian.step_noise`). At noise level `switch` and below, the solver draws from the
    mixture.

    Use GMS with a network that returns the second and third noise moments. It suits samples with few or independent
    elements at any number of steps. For images, use it with 20 or more steps, or with up to 10 steps after a
    [`Teleport`][gms_fast.solvers.Teleport]. A run of K steps costs K + 1 network evaluations, or K if the schedule ends
    without noise.

    Args:
        fit: Method that fits the mixture to the moments: "free" (default), "exact", "adan" (the optimiser of the code
            released with the paper) or "gaussian" (a single Gaussian). [`fit_mixture`][gms_fast.ops.fit_mixture]
            describes them.
        component: Scope of the random choice between the two mixture components. With "element", each element chooses
            its own component. With "sample", all elements of a sample share one, as in the released code. None
            (default) selects "sample" for fit="adan" and for user-supplied noise with one uniform number per sample,
            and "element" otherwise.
        weight: Weight w of component a, in (0, 1) but not 1/2 (default 1/3). fit="free" replaces it for elements whose
            moments no mixture of this weight could match.
        moments: How the moments of x_0 are clipped to the data range: "cumulant" (default), or "released", as in the
            released code. [`gms_step`][gms_fast.ops.gms_step] describes both.
        covariance: [`Gaussian`][gms_fast.statistics.Gaussian] statistics of the data. None (default) draws the elements
            independently at every noise level.
        switch: Noise level sigma_t/alpha_t >= 0 above which steps use `covariance`. The default is 0.75 times
            `covariance.spread`, the largest standard deviation of the data in any direction. With 0, every step uses
            `covariance`; the network then needs no moment heads, but fewer samples resemble the data (low precision).
        iterations: Number of iterations of fit="adan", >= 0 (default 70).
        lr: Learning rate of fit="adan" (default 0.06).
        eps: Constant added to the denominator in fit="adan" (default 1e-8). A value of 1e-8 N reproduces a call of the
            released code on N elements.
        clip_pixel: Upper bound on the mean absolute value of the noise that the last step adds to an image, in grey
            levels; the range [-1, 1] spans 255 of them (default 2). With a bound, the last step draws from a single
            Gaussian. For the cosine schedule, 1 is a good value. None treats the last step like every other step.

    Raises:
        ValueError: If an argument is out of range, or if `switch` is given without `covariance`.
        TypeError: If `covariance` is not a `Gaussian`.

    Note:
        `sample(steps=..)` uses the time grid "angle" (see `Schedule.grid`), or "uniform" for fit="adan". The defaults
        are the best settings found in docs/quality.md, and those of fit="adan" are the settings of the released code.
        Unless `switch` is 0, the network must return all moments at the first step too, even if that step uses
        `covariance`.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> gms_fast.sample(model, 10, solver=gms_fast.solvers.GMS(fit="exact"), n=2).shape
        torch.Size([2, 1, 8, 8])
        >>> known = gms_fast.statistics.load_gaussian("digits")
        >>> gms_fast.sample(model, 10, solver=gms_fast.solvers.GMS(covariance=known), n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Guo et al. 2023, arXiv 2311.00941.
    """

    fit: str = "free"
    component: str | None = None
    weight: float = DEFAULT.weight
    moments: str = "cumulant"
    covariance: Gaussian | None = None
    switch: float | None = None
    iterations: int = DEFAULT.iterations
    lr: float = DEFAULT.lr
    eps: float = DEFAULT.eps
    clip_pixel: float | None = 2
    reach = 0.75

    def __post_init__(self) -> None:
        check_choice("fit", self.fit, FITS)
        if self.component is not None:
            check_choice("component", self.component, COMPONENTS)
        check_choice("moments", self.moments, MOMENTS)
        if not 0 < self.weight < 1 or self.weight == 0.5:
            raise ValueError(f"weight must lie in (0, 1) and differ from 1/2: got {self.weight}")
        if self.iterations < 0:
            raise ValueError(f"iterations must not be negative: got {self.iterations}")
        check_clip_pixel(self.clip_pixel)
        if self.covariance is not None and not isinstance(self.covariance, Gaussian):
            got = type(self.covariance).__name__
            raise TypeError(f"covariance must be a Gaussian, as returned by gms_fast.statistics.gaussian: got {got}")
        if self.covariance is None and self.switch is not None:
            raise ValueError(f"switch must not be given without covariance: got {self.switch!r}")
        number = isinstance(self.switch, (int, float)) and not isinstance(self.switch, bool)
        if self.switch is not None and not (number and 0 <= self.switch < math.inf):
            raise ValueError(f"switch must be a noise level sigma/alpha >= 0: got {self.switch!r}")

    @property
    def spacing(self) -> str | float | None:  # type: ignore[override]
        return "uniform" if self.fit == "adan" else "angle"

    @property
    def moments_needed(self) -> int:  # type: ignore[override]
        if self.level == 0:
            return 1
        return 2 if self.fit == "gaussian" else 3

    @property
    def level(self) -> float:
        """Noise level sigma/alpha above which the elements of a sample are drawn jointly."""
        if self.covariance is None:
            return math.inf
        return self.reach * self.covariance.spread if self.switch is None else self.switch

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[bool]:
        """Return one flag per step: True if the step draws the elements of a sample jointly."""
        if len(times) < 2:
            return []
        together = [math.exp(-float(lam)) > self.level for lam in schedule.log_snr(times[:-1])]
        if not together[0]:
            schedule.check_signal(times[0], type(self).__name__, WITHOUT_MOMENTS)
        return together

    def moments_at(self, step: TimeStep) -> int:
        return 1 if self.covariance is not None and step.numbers else self.moments_needed

    def check(self, model: Any, shape: Sequence[int], clip: tuple[float, float] | None = None) -> None:
        if self.covariance is not None:
            self.covariance.check(shape=shape, clip=clip, name="covariance")

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> None:
        together = [step.numbers for step in steps]
        if self.covariance is None or self.level == 0 or torch.compiler.is_compiling():
            return
        if all(together) or not any(together):
            first, last = (step.coefficients.ratio for step in (steps[0], steps[-1]))
            kind = "jointly; switch=0 does the same without moment heads" if all(together) else "independently"
            warnings.warn(
                f"switch = {self.level:g} lies outside the noise levels sigma/alpha of the steps, {first:.3g} to "
                f"{last:.3g}: every step draws the elements {kind}",
                stacklevel=5,  # the caller of `sample`
            )

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        bounded = bounded_last_step(x, step, self.clip_pixel)
        k, (z, u) = bounded or step.coefficients, draws.noise()
        if self.covariance is not None and step.numbers:
            return _together(self.covariance, x, estimate, k, draws, z), state
        fit = Fit("gaussian" if bounded else self.fit, self.weight, self.iterations, self.lr, self.eps)
        draws = draws._replace(component=self._component(x, u), z=z, u=u)
        return estimate.gms_step(k, fit, draws, self.moments), state

    def _component(self, x: Tensor, u: Tensor | None) -> str:
        shared = u is not None and u.numel() == len(x) and u.shape != x.shape
        return self.component or ("sample" if self.fit == "adan" or shared else "element")


def _together(
    covariance: Gaussian, x: Tensor, estimate: Estimate, k: StepCoefficients, draws: Draws, z: Tensor | None
) -> Tensor:
    """Return A x_t + B E[x_0|x_t] + (c + B^2 v)^(1/2) z, v the covariance of x_0 given x_t."""
    if z is None:
        z = fused.philox(
            True, x.shape, draws._replace(z=None, u=None), 0, torch.promote_types(x.dtype, torch.float32), x.device
        )
    if z.shape != x.shape:
        raise ValueError(f"noise z must have the shape of the state, {tuple(x.shape)}: got {tuple(z.shape)}")
    return estimate.linear((), _weights(k.A, k.B), 1.0, Draws(z=covariance.step_noise(z, k)))[0]


@functools.lru_cache(1024)
def _weights(A: float, B: float) -> tuple[float, float]:
    """Return one object for equal weights: kernels find parameters by identity."""
    return A, B
