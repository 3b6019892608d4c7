"""Pairs of sampling loops, ours and another library's, with equal steps and network calls.

Each pair also has two loops that must agree before anything is timed (`check`). They are the timed loops on the other
library's time steps, except for defaults that differ:

- diffusers' DDIM keeps the network's noise estimate where E[x_0|x_t] was clipped. That step is cheaper and is timed;
  checked is `use_clipped_model_output=True`, under which both libraries agree.
- diffusers' UniPC sets a_1 = 1/2 in every step of order 2. `UniPC(corrector=False)` does so too, and is checked. The
  pair with diffusers' corrector is timed against `UniP`.
- DDPM draws the same noise on both sides in the check, and each library's own when timed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import gms_fast
from bench.speed.gate import EPS, WrongResultError
from gms_fast import solvers
from gms_fast.schedules import Schedule, VPLinear

CALLS = 20  # network calls of a sample, in most pairs
CLIP = (-1.0, 1.0)
WIDTH = 0.5  # standard deviation of the data in the check, large enough for clipping to act
ROUNDINGS = 8  # roundings of a step on either side, each of at most EPS/2 of the state

Loop = Callable[[Tensor, "Network"], Tensor]  # from x_T to the sample


class Network:
    """Network that costs nothing: it returns a tensor made beforehand."""

    moments = "raw"

    def __init__(self, output: Tensor, schedule: Schedule, prediction: str, clip: tuple[float, float] | None) -> None:
        self.output, self.schedule, self.prediction, self.clip = output, schedule, prediction, clip
        self.sample_shape = tuple(output.shape[1:])

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.output


class OfGaussian(Network):
    """Exact network of N(0, WIDTH^2) that counts its calls."""

    calls = 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        time = t.flatten()[:1].double().cpu()
        alpha, sigma = float(self.schedule.alpha(time)), float(self.schedule.sigma(time))
        whole = (alpha * WIDTH) ** 2 + sigma**2
        return x * (sigma / whole if self.prediction == "noise" else alpha * WIDTH**2 / whole)


class Pair(NamedTuple):
    """Two loops to time, and two that must agree, with the settings of their network.

    Args:
        name: Name of the row.
        ours: Our timed loop.
        theirs: The other library's timed loop.
        checked: Our loop and theirs that must agree.
        clip: As for the network.
        schedule: As for the network.
        prediction: As for the network.
    """

    name: str
    ours: Loop
    theirs: Loop
    checked: tuple[Loop, Loop]
    clip: tuple[float, float] | None = None
    schedule: Schedule = VPLinear()
    prediction: str = "noise"

    def network(self, output: Tensor) -> Network:
        return Network(output, self.schedule, self.prediction, self.clip)

    def start(self, z: Tensor) -> Tensor:
        """Scale standard normal numbers z to x_T."""
        return z * float(self.schedule.sigma(self.schedule.t_max))


def check(pair: Pair, z: Tensor) -> None:
    """Raise WrongResultError unless the two sides agree and all loops take equally many calls.

    Both sides are in float32. Along the flow of `OfGaussian` an error keeps its share of the state's spread, or loses
    some to noise, and the final spread is below 1. So errors add up to at most ROUNDINGS per call, in units of the
    largest z.
    """
    x = pair.start(z)

    def run(loop: Loop) -> tuple[Tensor, int]:
        network = OfGaussian(x, pair.schedule, pair.prediction, pair.clip)
        return loop(x.clone(), network), network.calls

    (ours, calls), (theirs, of_theirs) = (run(loop) for loop in pair.checked)
    counts = {calls, of_theirs, run(pair.ours)[1], run(pair.theirs)[1]}
    if len(counts) > 1:
        raise WrongResultError(f"{pair.name} must take as many network calls on both sides: got {sorted(counts)}")
    error, allowed = float((ours - theirs).abs().max()), calls * ROUNDINGS * EPS * float(z.abs().max())
    if not error <= allowed:
        raise WrongResultError(f"{pair.name} disagrees: the largest error is {error:.1e}, {allowed:.1e} is allowed")


def ours(solver: str | solvers.Solver, **options: Any) -> Loop:
    return lambda x, network: gms_fast.sample(network, solver=solver, x_T=x, **options)


def of_diffusers() -> list[Pair]:
    """Return diffusers' schedulers in its pipelines' loop, on 1000 linear betas.

    Raises ImportError without diffusers.
    """
    alone = {"disable_corrector": list(range(CALLS))}
    unip = {order: solvers.UniP(order=order, lower_order_final=False) for order in (2, 3)}
    released = {order: solvers.UniPC(order=order, corrector=False) for order in (2, 3)}
    return [
        _pair("DDIM", "ddim", "DDIM", CLIP, {"use_clipped_model_output": True}, clip_sample=True),
        _pair("DDIM, unclipped", "ddim", "DDIM", clip_sample=False),
        _pair("DPM-Solver++(2M)", "dpm-solver++", "DPMSolverMultistep", final_sigmas_type="zero"),
        _drawn("DDPM", solvers.DDPM(clip_pixel=None), "DDPM", clip_sample=True),
        *(
            _pair(f"UniP-{order}", unip[order], "UniPCMultistep", equal=released[order], solver_order=order, **alone)
            for order in (2, 3)
        ),
        _with_corrector(_pair("UniP-2", unip[2], "UniPCMultistep", equal=released[2], solver_order=2, **alone)),
        _pair("Heun", "heun", "HeunDiscrete", timestep_spacing="leading"),
    ]


def _with_corrector(alone: Pair) -> Pair:
    """Return the pair against the scheduler with its corrector, which only the timed loop has."""
    return alone._replace(name="UniP-2 / UniPC-2", theirs=Scheduler("UniPCMultistep", solver_order=2))


def _pair(
    name: str,
    solver: str | solvers.Solver,
    kind: str,
    clip: tuple[float, float] | None = None,
    step: dict[str, object] | None = None,
    equal: solvers.Solver | None = None,
    **options: object,
) -> Pair:
    """Make a pair of a solver and a diffusers scheduler.

    Args:
        name: Name of the pair.
        solver: Our solver.
        kind: Name of the scheduler without "Scheduler".
        clip: Clipping range of the data estimate.
        step: Arguments of the scheduler's step in the check.
        equal: Our solver in the check; None: `solver`.
        **options: Arguments of the scheduler.
    """
    theirs = Scheduler(kind, **options)
    same = ours(equal or solver, timesteps=theirs.times()), Scheduler(kind, step, **options)
    return Pair(name, ours(solver, steps=CALLS - 1), theirs, same, clip)


def _drawn(name: str, solver: solvers.Solver, kind: str, **options: object) -> Pair:
    """Make a pair that draws noise, from one generator in the check."""
    pair = _pair(name, solver, kind, CLIP, **options)

    def same(x: Tensor, network: Network) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        draw = lambda i: torch.randn(x.shape, generator=generator).to(x)  # noqa: E731
        return ours(solver, timesteps=Scheduler(kind, **options).times(), noise=draw)(x, network)

    def theirs(x: Tensor, network: Network) -> Tensor:
        return Scheduler(kind, {"generator": torch.Generator().manual_seed(0)}, **options)(x, network)

    return pair._replace(checked=(same, theirs))


class Scheduler:
    """Loop of a diffusers scheduler: `set_timesteps`, then the network and `step` at each time."""

    def __init__(self, kind: str, step: dict[str, object] | None = None, calls: int = CALLS, **options: object) -> None:
        import diffusers  # takes seconds

        make = getattr(diffusers, f"{kind}Scheduler")
        self._own = make(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", **options)
        alphas = VPLinear().alpha(torch.arange(1000))  # diffusers' own product has a thousand roundings
        self._own.alphas_cumprod = alphas.square().float()
        self._step, self._calls = step or {}, calls
        self._scales = kind == "HeunDiscrete"  # the state is x/alpha

    def times(self) -> list[int]:
        """Return the time steps as `sample` takes them, without repetitions."""
        self._own.set_timesteps(self._calls)
        return list(dict.fromkeys(int(t) for t in self._own.timesteps))

    @torch.no_grad()
    def __call__(self, x: Tensor, network: Network) -> Tensor:
        own = self._own
        own.set_timesteps(self._calls, device=x.device)
        if self._scales:
            x = x * own.init_noise_sigma
        for t in own.timesteps:
            seen = own.scale_model_input(x, t) if self._scales else x
            x = own.step(network(seen, t), t, x, **self._step).prev_sample
        return x


def of_k_diffusion() -> list[Pair]:
    """Return k-diffusion's functions on the noise levels of EDM, down to no noise.

    Raises ImportError without k_diffusion.
    """
    from k_diffusion import sampling

    schedule = gms_fast.schedules.EDM()
    levels = schedule.timesteps(CALLS)

    def pair(name: str, solver: str, function: Callable[..., Tensor]) -> Pair:
        @torch.no_grad()
        def theirs(x: Tensor, network: Network) -> Tensor:
            return function(network, x, torch.tensor(levels, device=x.device), disable=True)

        loop = ours(solver, timesteps=levels)
        return Pair(f"{name}, k-diffusion", loop, theirs, (loop, theirs), None, schedule, "x0")

    return [
        pair("DPM-Solver++(2M)", "dpm-solver++", sampling.sample_dpmpp_2m),
        pair("Heun", "heun", sampling.sample_heun),
    ]
