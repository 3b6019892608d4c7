"""Run of a scheduler: the solver's plan, the pipeline's times, and the reader of outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gms_fast.integrations.diffusers import levels
from gms_fast.integrations.diffusers.outputs import Outputs
from gms_fast.integrations.diffusers.thresholding import thresholded
from gms_fast.models.learned_variance import LearnedVariance
from gms_fast.schedules import Levels, Schedule, hosts
from gms_fast.solvers import GGDM, DPMSolverV3, Solver
from gms_fast.stepping import Stepper
from gms_fast.types import NoiseMoments

GRIDS = ("solver", "uniform", "quadratic", "log-snr", "karras", "angle")


@dataclass
class Walk:
    """Steps of a solver through the times that `set_timesteps` chose.

    Attributes:
        times: Times of the network calls, noisiest first.
        levels: (alpha, sigma) at these times and at the end.
        known: Number of leading steps that need no network call.

    Args:
        training: Schedule of the network.
        stepper: Stepper of the solver.
        outputs: Reader of the network's outputs.
        threshold: (ratio, most) of dynamic thresholding, or None.
        rests: True if the last call leaves the state unchanged, as on some grids of diffusers.
    """

    training: Schedule
    stepper: Stepper
    outputs: Outputs
    threshold: tuple[float, float] | None
    rests: bool = False

    def __post_init__(self) -> None:
        plan, self.known = self.stepper.plan, self.stepper.solver.known_steps
        self.times = self.stepper.network_times[self.known :]
        self.levels = [(k.coefficients.alpha_t, k.coefficients.sigma_t) for k in plan.asked[self.known :]]
        end = plan.last.coefficients
        clean = plan.denoise and not self.rests
        self.levels.append((1.0, 0.0) if clean else (end.alpha_t, end.sigma_t))

    @property
    def draws(self) -> bool:
        """True if the run draws noise."""
        return any(self.stepper.solver.draws_at(step) for step in self.stepper.plan.steps)

    def begun(self, seed: int | Tensor) -> "Walk":
        """Restart the run with another seed."""
        return replace(self, stepper=self.stepper.seeded(seed))

    def landed(self, x: Tensor) -> Tensor:
        """Return the state after the steps that need no network."""
        for i in range(self.known):
            x = self.stepper.step(i, None, x)
        return x

    def by(self, solver: Solver) -> "Walk":
        """Return the run of another solver through the same times."""
        return replace(self, stepper=self.stepper.by(solver))

    def step(
        self, i: int, output: Tensor | NoiseMoments, x: Tensor, noise: Tensor | None, x_0: Tensor | None = None
    ) -> Tensor:
        """Return the state after step i; `x_0` is the result of `x0` there, if it is already known."""
        if self.rests and i == len(self.times) - 1:
            return x
        if self.threshold and x_0 is None:
            x_0 = self.x0(i, output, x)
        return self.stepper.step(i + self.known, output, x, noise=noise, x0=x_0 if self.threshold else None)

    def x0(self, i: int, output: Tensor | NoiseMoments, x: Tensor) -> Tensor:
        """Return E[x_0|x_t] at step i, clipped or thresholded."""
        x_0 = self.stepper.x0(i + self.known, output, x)
        return thresholded(x_0, *self.threshold) if self.threshold else x_0

    def read(self, i: int, output: Tensor | NoiseMoments, x: Tensor) -> Tensor | NoiseMoments:
        """Convert the network's output at step i for the solver."""
        if isinstance(output, Tensor) and output.shape == x.shape:
            return output
        return self.outputs.read(output, x, torch.full((len(x),), self.times[i], device=x.device))


def made(
    solver: Solver,
    config: Mapping[str, Any],
    host: Any,
    steps: int | None,
    given: Mapping[str, list[float]],
    mu: float | None,
) -> Walk:
    """Build the run of a solver with `steps` network calls, or through given levels.

    `config` is the scheduler's configuration, `host` the diffusers scheduler that sets its levels.
    """
    training, form = hosts.training_of(host)
    grid = "solver" if isinstance(solver, GGDM) else config.get("grid")
    schedule, rests = training, False
    if grid is not None and not given:
        where = _grid(solver, training, grid, steps or 1)
    else:
        visited, rests = levels.visited(host, steps, given, mu)
        _check_end(host, visited)
        schedule, where = _visited(solver, training, visited, rests)
    learned, variance = None, config.get("variance_type")
    if variance == "learned_range":
        learned = LearnedVariance(training)
    central = config["network_moments"] == "central" or learned is not None
    stepper = Stepper(solver, schedule, prediction=form, clip=_clip(config), central=central, **where)
    outputs = Outputs(form, solver.moments_needed, variance, learned)
    return Walk(training, stepper, outputs, _threshold(config), rests)


def _check_end(host: Any, visited: Levels) -> None:
    """Raise ValueError if the run ends with noise, in another scale than diffusers' own state."""
    if float(visited.sigma(0.0)) > 0 and levels.scales(host):
        raise ValueError(
            f"final_sigmas_type must be zero, and sigmas must end in 0, with the levels of {type(host).__name__}, "
            "because its state and the network's input have different scales"
        )


def _visited(solver: Solver, training: Schedule, visited: Levels, rests: bool) -> tuple[Schedule, dict[str, Any]]:
    """Return a schedule with the levels of a diffusers scheduler, and arguments of `Stepper`.

    A last step to no noise returns E[x_0|x_t], like a call that removes the last noise: GMS should not draw there.
    Solvers with statistics keep their own schedule if its times have these levels.
    """
    end = visited.times[-1:]
    clean = float(visited.sigma(end)) == 0
    times = visited.times[:-1] if clean else visited.times
    if isinstance(solver.onward(), DPMSolverV3):
        own = visited.network_time(times).tolist()
        if all(t == int(t) and training.t_min <= t <= training.t_max for t in own) and torch.allclose(
            training.log_snr(own), visited.log_snr(times), rtol=1e-4
        ):
            return training, {"timesteps": own, "denoise": clean or rests}
    return visited, {"timesteps": times, "denoise": clean or rests}


def _grid(solver: Solver, schedule: Schedule, spacing: str, calls: int) -> dict[str, Any]:
    """Return a time grid of this package with `calls` network calls, as arguments of `Stepper`."""
    for steps in range(calls, max(calls - 2, 0), -1):  # one step fewer if the last call only removes noise
        wanted = steps if spacing == "solver" else schedule.timesteps(steps, spacing)
        times = solver.times(schedule, wanted)
        if solver.calls(schedule, times) == calls:
            return {"steps": steps} if spacing == "solver" else {"timesteps": times}
    return {"timesteps": [schedule.t_max]}


def _clip(config: Mapping[str, Any]) -> tuple[float, float] | None:
    if not config.get("clip_sample") or config.get("thresholding"):
        return None
    most = config.get("clip_sample_range") or 1.0
    return -most, most


def _threshold(config: Mapping[str, Any]) -> tuple[float, float] | None:
    if not config.get("thresholding"):
        return None
    return config.get("dynamic_thresholding_ratio") or 0.995, config.get("sample_max_value") or 1.0
