"""Samplers with k-diffusion's signature: run a solver through given sigmas."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast import ops
from gms_fast.ops.checks import a_tensor, number
from gms_fast.ops.types import Draws, Given
from gms_fast.plan import COUNTED
from gms_fast.run import check_callable, check_samples
from gms_fast.schedules import EDM, Flow, Schedule
from gms_fast.schedules.base import as_float64, listed
from gms_fast.solvers import DPMSolverV3, Euler, Heun, Solver
from gms_fast.stepping import Stepper
from gms_fast.tables import EmpiricalModel
from gms_fast.tables.origin import fingerprint
from gms_fast.types import NoiseMoments

Model = Callable[..., Tensor | NoiseMoments]
Callback = Callable[[dict[str, Any]], object]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
BEFORE = COUNTED - 1  # counter of the noise that churn adds before the first step


class Call(NamedTuple):
    """Arguments that all samplers share, as passed by the caller."""

    model: Model
    x: Tensor
    sigmas: Tensor
    extra_args: dict[str, Any] | None
    callback: Callback | None
    disable: bool | None
    s_noise: float
    noise_sampler: NoiseSampler | None

    def levels(self) -> list[float]:
        """Check the arguments and return the sigmas.

        Raises ValueError or TypeError that names the wrong argument.
        """
        check_callable("model", self.model, "model(x, sigma, **extra_args)")
        check_callable("callback", self.callback, "callback(info)")
        check_callable("noise_sampler", self.noise_sampler, "noise_sampler(sigma, sigma_next)")
        if self.extra_args is not None and not isinstance(self.extra_args, dict):
            raise TypeError(f"extra_args must be a dict, or None: got {type(self.extra_args).__name__}")
        if not a_tensor("x", self.x).is_floating_point() or self.x.ndim < 2:
            raise TypeError(f"x must be a floating tensor (B, *): got {tuple(self.x.shape)} {self.x.dtype}")
        if not 0 <= number("s_noise", self.s_noise) < math.inf:
            raise ValueError(f"s_noise must be finite and not negative: got {self.s_noise!r}")
        return _falling(a_tensor("sigmas", self.sigmas))

    def seed(self) -> int | Tensor:
        """Return the caller's seed of the noise, or else a seed from torch's global generator.

        Raises ValueError if it does not fit the number of samples.
        """
        given = (self.extra_args or {}).get("seed")
        if given is None:
            given = int(torch.randint(-(1 << 63), (1 << 63) - 1, (), device="cpu"))
        seed = ops.as_seed(given)
        check_samples(Draws(seed=seed), len(self.x))
        return seed

    @property
    def is_flow(self) -> bool:
        """True for a flow model of ComfyUI, x = (1 - sigma) x_0 + sigma eps."""
        patcher = getattr(getattr(self.model, "inner_model", None), "model_patcher", None)
        if patcher is None:
            return False
        return any(kind.__name__ == "CONST" for kind in type(patcher.get_model_object("model_sampling")).__mro__)


def _falling(sigmas: Tensor) -> list[float]:
    """Read the sigmas as a falling list of float64 values."""
    values: list[float] = as_float64(sigmas).tolist() if sigmas.ndim == 1 and sigmas.is_floating_point() else []
    if not values or not all(0 <= v < math.inf for v in values) or any(a < b for a, b in pairwise(values)):
        got = listed(values) if values else f"{tuple(sigmas.shape)} {sigmas.dtype}"
        raise ValueError(f"sigmas must be a floating tensor (K+1,), finite, non-negative and decreasing: got {got}")
    return values


@torch.no_grad()
def sampled(call: Call, solver: Solver, *, clip: tuple[float, float] | None = None, central: bool = False) -> Tensor:
    """Run a solver through the levels of a call. Of equal sigmas, only the first counts.

    `clip` and `central` are those of `Stepper`.
    """
    sigmas = call.levels()
    places = [i for i, sigma in enumerate(sigmas) if i == 0 or sigma != sigmas[i - 1]]
    call, sigmas = call._replace(sigmas=call.sigmas[places]), [sigmas[i] for i in places]
    if len(sigmas) == 1:
        return call.x
    solver.check(None, call.x.shape[1:], clip)
    denoise = sigmas[-1] == 0  # a step to no noise is the model's own estimate
    times = sigmas[:-1] if denoise else sigmas
    schedule = _schedule(times, call.is_flow)
    if isinstance(solver, DPMSolverV3):
        _check_network(solver.statistics, call.model)
        solver, times = _on_nodes(solver, schedule, times)
    begun = times
    if isinstance(solver, (Euler, Heun)) and solver.churn:
        begun = [solver.raised(schedule, times[0], len(sigmas) - 1), *times[1:]]
    seed = call.seed()
    stepper = Stepper(
        solver, schedule, timesteps=begun, prediction="x0", clip=clip, central=central, seed=seed, denoise=denoise
    )
    stepper.plan = replace(stepper.plan, whole=False)  # the host's levels may be part of a longer run
    with tqdm(total=len(sigmas) - 1, disable=call.disable) as bar:
        return _Walk(call, stepper, begun, seed).run(bar, times[0])


def _schedule(sigmas: list[float], flow: bool) -> Schedule:
    """Return a schedule whose times are the host's sigmas."""
    if not flow:
        return EDM(sigmas[-1] / 2, sigmas[0] * 2)
    if sigmas[0] > 1:
        raise ValueError(
            f"sigmas must be at most 1 for a flow model, x = (1 - sigma) x_0 + sigma eps: got {sigmas[0]:.9g}"
        )
    return Flow()


def _on_nodes(solver: DPMSolverV3, schedule: Schedule, sigmas: list[float]) -> tuple[DPMSolverV3, list[float]]:
    """Return the solver on this schedule and the times of its nodes nearest to the sigmas.

    The statistics are functions of log(alpha/sigma), so they hold for every scale of the state.
    """
    known = replace(solver.statistics, schedule=schedule)
    solver = replace(solver, statistics=known)
    nodes = (schedule.log_snr(sigmas) - known.lam[0]) / (known.lam[-1] - known.lam[0]) * known.N
    nodes = nodes.round()
    if len(nodes) < 2 or nodes[0] < 0 or nodes[-1] > known.N or not bool((nodes.diff() > 0).all()):
        first, last = known.lam[[0, -1]].neg().exp().tolist()
        raise ValueError(
            f"sigmas must be two or more, each nearest to a different one of the statistics' {known.N + 1} levels "
            f"sigma/alpha, from {first:.3g} to {last:.3g}: got {listed(sigmas)}"
        )
    return solver, solver.times(schedule, sigmas)


def _check_network(statistics: EmpiricalModel, model: Model) -> None:
    """Raise ValueError if no network inside the model is the one of the statistics."""
    found = list(filter(None, map(fingerprint, _inside(model))))
    if statistics.network is not None and found and statistics.network not in found:
        raise ValueError(
            f"statistics must be measured on this network, {found[-1]}: got those of {statistics.network}; use "
            "gms_fast.statistics.empirical_model"
        )


def _inside(model: object) -> Iterator[Any]:
    """Yield a model and the models that hosts wrap in it."""
    while model is not None:
        yield model
        model = getattr(model, "inner_model", getattr(model, "diffusion_model", None))


class _Walk:
    """Run of a stepper through a host's noise levels; `times` are the times of these levels."""

    def __init__(self, call: Call, stepper: Stepper, times: list[float], seed: int | Tensor) -> None:
        self.call, self.stepper, self.plan, self.seed = call, stepper, stepper.plan, seed
        visited = stepper.solver.times(stepper.schedule, times)  # churn may move them
        self.places = [times.index(t) for t in visited]
        self.counters = self.plan.counters(counted=False)
        asked = torch.tensor(stepper.network_times, dtype=torch.float64, device="cpu")
        self.asked = asked.to(call.sigmas.dtype).to(call.sigmas.device)

    def run(self, bar: tqdm, t: float) -> Tensor:
        """Return the sample of a state at time t."""
        call, x = self.call, self._raised(t)
        ones = x.new_ones(len(x))
        for index in range(len(self.plan.asked)):
            known = index < self.stepper.solver.known_steps
            output = None if known else call.model(x, self.asked[index] * ones, **(call.extra_args or {}))
            corrects = self.places[index : index + 2] == self.places[index : index + 1] * 2  # same level: a corrector
            if call.callback is not None and not corrects:
                call.callback(self._info(index, output, x))
            x = self.stepper.step(index, output, x, noise=self._noise(index))
            bar.update(self.places[index] + 1 - bar.n)
        return x

    def _raised(self, t: float) -> Tensor:
        """Add noise to the host's state at time t if the solver's first time is later."""
        first = self.plan.asked[0]
        if t == first.t:
            return self.call.x
        schedule, k = self.stepper.schedule, first.coefficients
        kept = k.alpha_t / float(schedule.alpha(t))
        std = math.sqrt(k.sigma_t**2 - (kept * float(schedule.sigma(t))) ** 2)
        z = self._normals(self.call.sigmas[0], self.asked[0], BEFORE)
        return (kept * self.call.x + std * z).to(self.call.x.dtype)

    def _info(self, index: int, output: Tensor | NoiseMoments | None, x: Tensor) -> dict[str, Any]:
        """Build the dict for the host's callback."""
        i, denoised = self.places[index], self.stepper.x0(index, output, x)
        return {"x": x, "i": i, "sigma": self.call.sigmas[i], "sigma_hat": self.asked[index], "denoised": denoised}

    def _noise(self, index: int) -> Callable[[], Given] | None:
        """Return the source of a step's noise; None for the stepper's own counters."""
        if index == len(self.plan.steps) or (self.call.noise_sampler is None and self.call.s_noise == 1):
            return None
        return partial(self._drawn, index)

    def _drawn(self, index: int) -> Tensor:
        """Draw the noise of a step."""
        sigma, sigma_next = (self.call.sigmas[i] for i in self.places[index : index + 2])
        if isinstance(self.stepper.solver, (Euler, Heun)):  # churn starts where the step ends
            sigma, sigma_next = sigma_next, self.asked[index + 1]
        return self._normals(sigma, sigma_next, self.counters[index])

    def _normals(self, sigma: Tensor, sigma_next: Tensor, counter: int) -> Tensor:
        """Draw normals, from the host or by counter, and scale them by s_noise."""
        call = self.call
        if call.noise_sampler is not None:
            return call.s_noise * a_tensor("noise_sampler's noise", call.noise_sampler(sigma, sigma_next))
        wide = torch.promote_types(call.x.dtype, torch.float32)
        z = ops.philox_normal(call.x.shape, seed=self.seed, step=counter, device=call.x.device, dtype=wide)
        return call.s_noise * z
