"""Gaussian teleportation: Wang & Vastola, TMLR 2024 (arXiv 2412.09726)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from gms_fast.estimate import Estimate
from gms_fast.ops.types import Draws
from gms_fast.prediction import Meaning
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Solver, TimeStep
from gms_fast.steps import StepCoefficients
from gms_fast.tables import Gaussian


@dataclass(frozen=True, eq=False)
class Teleport(Solver):
    """Move x_T to a lower noise level in closed form, then run another solver from there.

    At high noise levels, E[x_0|x_t] is nearly the same as for Gaussian data with the mean mu and covariance Sigma of
    the real data. For data from N(mu, Sigma), the probability flow has a closed form (`Gaussian.teleport`), which takes
    x_t to any lower noise level without the network:

        x_s = alpha_s mu + ((alpha_s^2 Sigma + sigma_s^2)/(alpha_t^2 Sigma + sigma_t^2))^(1/2) (x_t - alpha_t mu)

    Use a teleport in runs of up to 10 network evaluations, so that all of them are spent on lower noise levels. The
    statistics need only data or samples, not the network, and take only seconds to measure. A run costs as many
    evaluations as `then` needs for the remaining steps.

    Args:
        statistics: [`Gaussian`][gms_fast.statistics.Gaussian] statistics of the data, measured by
            `gms_fast.statistics.gaussian` or read by `gms_fast.statistics.load_gaussian`.
        until: Noise level sigma/alpha >= 1 at which the teleport ends and `then` begins. `sample(steps=K)` takes K
            steps below this level. If you pass `timesteps`, those above this level are left out, except the first. The
            default is `then.reach` times `statistics.spread`, the largest standard deviation of the data in any
            direction, but at least 1. A GMS with `covariance` has the same default for its `switch`, so set one of the
            two if you combine them.
        then: Solver for the remaining steps, which must not be a Teleport. It starts without estimates from earlier
            steps. None is not accepted: pass a solver.
        spacing: Time grid of `sample(steps=..)`, as in `Schedule.grid`. None (default) uses the grid of `then`.
        direct: If False (default), x_T from N(0, sigma_T^2) is moved along the probability flow. If True, the state at
            the end of the teleport is drawn from N(alpha mu, alpha^2 Sigma + sigma^2), which is its exact distribution
            for Gaussian data.
        skip: Fraction of the steps to skip, in (0, 1), in place of `until`. The run saves as many network evaluations
            as it skips steps.

    Raises:
        TypeError: If `statistics` or `then` has the wrong type.
        ValueError: If `until` or `skip` is out of range, or if both are given. Sampling also raises it if `until` lies
            outside the noise levels of the schedule, or if the statistics belong to data of another shape or range.

    Note:
        After the teleport, the solver draws the same noise as a run that starts at that noise level.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> known = gms_fast.statistics.load_gaussian("digits")
        >>> solver = gms_fast.solvers.Teleport(known, 5, gms_fast.solvers.ERSDE(), spacing=1.2)
        >>> gms_fast.sample(model, 5, solver=solver, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Wang & Vastola 2024, arXiv 2412.09726.
    """

    statistics: Gaussian
    until: float | None = None
    then: Solver = None  # type: ignore[assignment]  # required, but follows `until`, which is not
    spacing: str | float | None = None
    direct: bool = False
    skip: float | None = field(default=None, kw_only=True)
    known_steps = 1

    def __post_init__(self) -> None:
        if not isinstance(self.statistics, Gaussian):
            got = type(self.statistics).__name__
            raise TypeError(f"statistics must be a Gaussian, as returned by gms_fast.statistics.gaussian: got {got}")
        if self.until is not None and self.skip is not None:
            raise ValueError(f"until must not be given together with skip: got {self.until!r} and {self.skip!r}")
        if self.until is not None and not (_is_number(self.until) and 1 <= self.until < math.inf):
            raise ValueError(
                f"until must be a noise level sigma/alpha >= 1; to skip a fraction of the steps, use skip: "
                f"got {self.until!r}"
            )
        if self.skip is not None and not (_is_number(self.skip) and 0 < self.skip < 1):
            raise ValueError(f"skip must be a fraction of the steps, in (0, 1): got {self.skip!r}")
        if not isinstance(self.then, Solver) or isinstance(self.then, Teleport):
            raise TypeError(
                f"then must be a solver other than Teleport, such as DPMSolverPP(): got {type(self.then).__name__}"
            )

    @property
    def level(self) -> float | None:
        """Noise level sigma/alpha at which the teleport ends; None if `skip` determines it."""
        if self.skip is not None:
            return None
        return max(1.0, self.then.reach * self.statistics.spread) if self.until is None else self.until

    @property
    def moments_needed(self) -> int:  # type: ignore[override]
        return self.then.moments_needed

    @property
    def denoise(self) -> bool:  # type: ignore[override]
        return self.then.denoise

    def ending(self, denoise: bool) -> "Teleport":
        return replace(self, then=self.then.ending(denoise))

    def times(self, schedule: Schedule, wanted: int | Sequence[float]) -> list[float]:  # type: ignore[override]
        """Return the first time, followed by the times of `then` from the end of the teleport on."""
        until, skip = self.level, self.skip
        if until is not None and isinstance(wanted, int):
            _check_level(until, schedule, schedule.t_max, schedule.t_min)
            arrival = float(schedule.inverse_log_snr(-math.log(until)))
            times = [schedule.t_max, *self.then.times(schedule, wanted, t_max=arrival, spacing=self.spacing)]
        else:
            times = self.then.times(schedule, wanted, spacing=self.spacing)
            first = 1
            if until is not None:
                first = _reached(until, schedule, times)
            if skip is not None:
                first = _skipped(skip, len(times) - 1)
            del times[1 : first + times[first:].count(times[first]) - 1]  # one arrival, also if its time is repeated
        if len(times) < 3 or not times[0] > times[1]:
            listed = ", ".join(f"{t:g}" for t in times)
            said = f"skip = {skip:g}" if until is None else f"until = {until:g}"
            raise ValueError(f"{said} must skip at least one step and leave at least one: the timesteps are {listed}")
        return times

    def plan(self, schedule: Schedule, times: Sequence[float]) -> Sequence[Any]:
        return [None, *self.then.plan(schedule, times[1:])]

    def asked(self, schedule: Schedule, times: Sequence[float]) -> Sequence[float]:
        return [times[0], *self.then.asked(schedule, times[1:])]

    def onward(self) -> Solver:
        return self.then

    def check(self, model: Any, shape: Sequence[int], clip: tuple[float, float] | None = None) -> None:
        self.statistics.check(shape=shape, clip=clip)
        self.then.check(model, shape, clip)

    def draws_at(self, step: TimeStep) -> bool:
        return self.direct if step.i == 0 else self.then.draws_at(step)

    def moments_at(self, step: TimeStep) -> int:
        return self.then.moments_at(step)

    def start(self, x: Tensor, steps: Sequence[TimeStep]) -> tuple[tuple[TimeStep, ...], None]:
        """Return (steps of `then`, None), because `then` starts only after the teleport."""
        return tuple(step._replace(i=step.i - 1) for step in steps[1:]), None

    def known(self, x: Tensor, step: TimeStep, clip: tuple[float, float] | None) -> Estimate:
        k = step.coefficients
        mean = self.statistics.denoise(x, k.alpha_t, k.sigma_t)
        return Estimate(x, mean, Meaning("x0", k, clip))

    def step(self, x: Tensor, estimate: Estimate, step: TimeStep, draws: Draws, state: Any) -> tuple[Tensor, Any]:
        steps, own = state
        if step.i > 0:
            x, own = self.then.step(x, estimate, steps[step.i - 1], draws, own)
        else:
            x = self._jump(x, step.coefficients)
            own = self.then.start(x, steps)
        return x, (steps, own)

    def _jump(self, x: Tensor, k: StepCoefficients) -> Tensor:
        if self.direct:
            return self.statistics.draw(x / k.sigma_t, k.alpha_s, k.sigma_s)
        return self.statistics.teleport(x, k.alpha_t, k.sigma_t, k.alpha_s, k.sigma_s)


def _reached(until: float, schedule: Schedule, times: list[float]) -> int:
    """Return the index of the first time at or below a noise level."""
    _check_level(until, schedule, times[0], times[-1])
    rounded = 1.01 * until  # a grid made from `until` may be rounded to whole times
    return next(i for i, t in enumerate(times) if _ratio(schedule, t) <= rounded)


def _skipped(skip: float, steps: int) -> int:
    """Return the number of steps in a fraction of them. Raises ValueError."""
    skipped = round(skip * steps)
    if not 0 < skipped < steps:
        raise ValueError(
            f"skip = {skip:g} must skip at least one of {steps} steps and leave at least one: it skips {skipped}"
        )
    return skipped


def _check_level(until: float, schedule: Schedule, first: float, last: float) -> None:
    """Raise ValueError unless the level lies between those of the last and the first time."""
    high, low = _ratio(schedule, first), _ratio(schedule, last)
    if not low < until < high:
        raise ValueError(
            f"until must lie between the lowest and the highest noise level sigma/alpha, {low:.3g} and {high:.3g}: got "
            f"{until:g}; the default is then.reach times statistics.spread"
        )


def _ratio(schedule: Schedule, t: float) -> float:
    """Return sigma/alpha at a time."""
    return math.exp(-float(schedule.log_snr(t)))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
