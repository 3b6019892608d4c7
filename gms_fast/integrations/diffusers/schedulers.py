"""Schedulers for pipelines of diffusers: any solver of this package, one fused pass a step."""

import inspect
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import FrozenDict
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerOutput
from torch import Tensor

from gms_fast.integrations.diffusers import levels, tables, walks, words
from gms_fast.integrations.diffusers.seeds import Generators, seeds
from gms_fast.schedules import Flow, hosts
from gms_fast.solvers import DDIM, Euler, Heun, Solver, Teleport
from gms_fast.types import NoiseMoments

_MOMENTS = ("raw", "central")


@dataclass
class SolverSchedulerOutput(SchedulerOutput):  # type: ignore[misc]
    """The state at the next time, and E[x_0|x_t]; (n, *sample), in the sample's dtype."""

    pred_original_sample: Tensor | None = None


class SolverScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Any solver in a pipeline of diffusers.

        pipe.scheduler = gms_fast.SolverScheduler.from_config(pipe.scheduler.config, solver="er-sde:order=2")

    solver   its text (`gms_fast.solvers.text`); the named schedulers take that solver's options instead
    levels   class of diffusers whose noise levels and times are visited. None: that of the solver's kind: DDIM for
             "ddim", DDPM for "ddpm", UniPC for "unipc", EulerDiscrete for "euler" and "heun", FlowMatchEulerDiscrete
             for prediction_type "flow_prediction" without use_flow_sigmas, else DPMSolverMultistep
    network_moments  outputs of 2C or 3C channels are E[eps^k|x_t] ("raw"), or from the second on E[(eps - e1)^k|x_t]
             ("central"). With variance_type "learned_range" the second half of 2C is that learned variance
    grid     of this package in place of those of diffusers: "solver" (the solver's own), "uniform", "quadratic",
             "log-snr", "karras", "angle"
    clip_sample, clip_sample_range, thresholding, dynamic_thresholding_ratio, sample_max_value  as in diffusers, of
             E[x_0|x_t], for every solver. None: as that scheduler of diffusers has it, which may be not at all
    Every other keyword is one of diffusers' schedulers and says levels and times as there. What says how they step
    (solver_order, solver_type, algorithm_type, ..) counts for "dpm-solver++" and "unipc", whose options it gives where
    they are left open; other solvers do not read it.

    The state is what the network sees, alpha x_0 + sigma eps: `scale_model_input` hands it on, and `init_noise_sigma`
    is the scale that diffusers' scheduler gives it there. Raises ValueError naming what is wrong.
    """

    __module__ = "gms_fast"  # where pipelines on disk look for it
    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012 - read by SchedulerMixin
    _solver: str | None = None  # of a named scheduler
    _ours: ClassVar[set[str]] = {"SolverScheduler"}
    order = 1
    __init__ = words.initialiser(None)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.__module__ = "gms_fast"
        cls._ours.add(cls.__name__)
        cls.__init__ = words.initialiser(cls._solver)  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **keywords: Any) -> Any:
        """A scheduler of the levels, times and prediction of another's configuration; keywords take precedence.

        What it says of diffusers' own solver is used by a solver of that kind, for options left open.
        """
        if isinstance(config, Mapping):
            config = words.adopted(config, cls._solver, cls._ours)
        known = inspect.signature(cls).parameters
        if unknown := [word for word in keywords if word not in known and not return_unused_kwargs]:
            raise TypeError(f"{cls.__name__} got unexpected keywords {', '.join(unknown)}")
        return super().from_config(config, return_unused_kwargs, **keywords)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *arguments: Any, **keywords: Any) -> Any:
        """The configuration in a folder, its tables named by where they are."""
        loaded = super().load_config(pretrained_model_name_or_path, *arguments, **keywords)
        folder = Path(str(pretrained_model_name_or_path), keywords.get("subfolder") or "")
        if isinstance(loaded, tuple):
            return (tables.found(loaded[0], folder), *loaded[1:])
        return tables.found(loaded, folder)

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **keywords: Any) -> None:
        """Write the configuration, and beside it the tables that it names."""
        config = self.config
        try:
            self._internal_dict = FrozenDict(tables.kept(config, Path(save_directory)))
            super().save_config(save_directory, push_to_hub, **keywords)
        finally:
            self._internal_dict = FrozenDict({**self._internal_dict, **config})

    def _set_up(self) -> None:
        """Make what does not wait for `set_timesteps`."""
        if self.config.network_moments not in _MOMENTS:
            raise ValueError(f"network_moments must be one of raw, central: got {self.config.network_moments!r}")
        host = self._host()
        config = words.merged(self.config, levels.defaults(host))
        self._itself: Solver = words.solver_of(self._solver, config)
        self._internal_dict = FrozenDict(words.filled(self._solver, config, self._itself, type(self).__name__))
        if self.config.get("thresholding") and self._itself.moments_needed > 1:
            name = type(self._itself).__name__
            raise ValueError(f"thresholding must be False for {name}, which reads moments: clip_sample may be True")
        walking = self._itself.onward()
        if isinstance(walking, (Euler, Heun)) and walking.churn:
            raise ValueError("churn must be 0 in a scheduler: networks are asked at the times that a pipeline is told")
        if isinstance(self._itself, Teleport) and self._itself.direct:
            raise ValueError("direct must be False in a scheduler: the pipeline draws the first state")
        self.betas, self.alphas_cumprod = (getattr(host, name, None) for name in ("betas", "alphas_cumprod"))
        self.timesteps, self.sigmas = host.timesteps, getattr(host, "sigmas", None)
        self.init_noise_sigma = levels.initial_scale(host)
        self._training, _ = hosts.training_of(host)
        self.order = self._itself.order if isinstance(self._itself, Heun) else 1
        self.num_inference_steps: int | None = None
        self._walk: walks.Walk | None = None
        self._begin_anew()

    def _host(self) -> Any:
        """The scheduler of diffusers that says the levels, as the configuration is now."""
        grid, spacing = self.config.get("grid"), self.config.get("timestep_spacing")
        if spacing not in (None, *levels.SPACINGS):
            known = ", ".join(levels.SPACINGS)
            raise ValueError(f"timestep_spacing must be one of {known} (grid may be another): got {spacing!r}")
        if grid not in (None, *walks.GRIDS):
            raise ValueError(f"grid must be one of {', '.join(walks.GRIDS)}: got {grid!r}")
        return levels.of_kind(levels.kind(words.name_of(self._solver, self.config), self.config), self.config)

    def _begin_anew(self) -> None:
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._landed = False
        self._shape: torch.Size | None = None

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    @property
    def step_index(self) -> int | None:
        """The place in `timesteps` of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """The place in `timesteps` of the first step, where a pipeline says it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin at that place in `timesteps`."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the times to visit: so many, or these of the training, or these levels. A new run begins.

        sigmas  sigma/alpha; sigma where the levels are those of flow matching
        mu      of a dynamic shift
        """
        given = {name: _listed(v) for name, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None}
        if len(given) > 1 or (not given and num_inference_steps is None):
            raise ValueError("num_inference_steps, timesteps or sigmas must be given, one of them")
        if num_inference_steps not in (None, *map(len, given.values())) and given:
            raise ValueError(
                f"num_inference_steps must be left open with {', '.join(given)}: got {num_inference_steps}"
            )
        if any(not a > b for times in given.values() for a, b in pairwise(times)):
            raise ValueError(f"{', '.join(given)} must fall: got {given}")
        steps = None if num_inference_steps is None else int(num_inference_steps)
        if not given and (steps is None or steps < 1):
            raise ValueError(f"num_inference_steps must be at least 1: got {num_inference_steps!r}")
        host = self._host()
        self._walk = walk = walks.made(self._itself, self.config, host, steps, given, mu)
        self._training = walk.training
        whole = all(t == int(t) for t in walk.times)
        self.timesteps = torch.tensor(walk.times, dtype=torch.int64 if whole else torch.float32, device=device)
        flow = hosts.is_flow(host)
        self.sigmas = torch.tensor([s if flow else s / a if a else float("inf") for a, s in walk.levels])
        self.init_noise_sigma = levels.initial_scale(host)
        self.num_inference_steps = -(-len(walk.times) // self.order)
        self._begin_anew()

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """The place of a time in `timesteps`: the second where it stands twice, so that a run may begin there."""
        times = self._set_walk().times if schedule_timesteps is None else _listed(schedule_timesteps)
        t = float(timestep)
        places = [i for i, listed in enumerate(times) if listed == t or abs(listed - t) <= 1e-6 * abs(t)]
        if places:
            return places[min(1, len(places) - 1)]
        nearest = min(range(len(times)), key=lambda i: abs(times[i] - t))
        warnings.warn(
            f"timestep must be one of scheduler.timesteps: got {t:g}, {times[nearest]:g} is taken", stacklevel=3
        )
        return nearest

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The state as the network sees it, which it is; of a Teleport, before its first step, that after the jump."""
        walk = self._walk
        if walk is None or not walk.known or self._step_index is not None or self._begin_index:
            return sample
        self._landed = True
        return walk.begun(0).landed(sample)

    def step(
        self,
        model_output: Tensor | NoiseMoments,
        timestep: Any,
        sample: Tensor,
        generator: Generators | float = None,
        return_dict: bool = True,
        *,
        variance_noise: Tensor | None = None,
        eta: float = 0.0,
    ) -> SolverSchedulerOutput | tuple[Tensor, ...]:
        """The state at the next time.

        model_output    like sample, or moments of 2 or 3 times its channels, or `NoiseMoments`
        generator       one, or a list of one a sample. At the first step of a run that draws noise seeds are drawn from
                        them, so that results do not depend on how samples are batched, and differ from run to run.
                        A number here is DDIM's eta, whose place this is in diffusers
        variance_noise  normals in place of those of the seeds
        eta             of "ddim" in place of its own; 0, as pipelines say it unasked: its own
        return_dict     False: (state,), which costs less than to say E[x_0|x_t], too
        """
        if isinstance(generator, (int, float)):
            walk, i = self._placed(timestep, sample, None, generator)
        else:
            walk, i = self._placed(timestep, sample, generator, eta)
        output = walk.read(i, model_output, sample)
        x = sample
        if i == 0 and walk.known and not self._begin_index:
            x = walk.landed(sample)
        x_0 = walk.x0(i, output, x) if return_dict else None
        x_s = walk.step(i, output, x, variance_noise, x_0)
        self._step_index = i + 1
        return SolverSchedulerOutput(prev_sample=x_s, pred_original_sample=x_0) if return_dict else (x_s,)

    def _placed(self, timestep: Any, sample: Tensor, generator: Generators, eta: float) -> tuple[walks.Walk, int]:
        """The walk and the place in it, of which the first step begins a run."""
        walk, i = self._set_walk(), self._step_index
        if i is not None and i < len(walk.times):
            if self._shape is not None and sample.shape != self._shape:
                was, got = tuple(self._shape), tuple(sample.shape)
                raise ValueError(f"sample must keep its shape in a run, which set_timesteps ends: got {got}, was {was}")
            return walk, i
        i = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if not 0 <= i < len(walk.times):
            raise ValueError(f"begin_index must lie in [0, {len(walk.times)}): got {i}")
        if walk.known and i == 0 and not self._landed:
            raise ValueError(
                "scale_model_input must be called before the network is: a Teleport jumps there, and this pipeline "
                "does not; use the solver that follows the jump"
            )
        if self.order > 1 and i > 0 and walk.levels[0][0] == 0:
            raise ValueError(
                "begin_index must be 0 for heun where the first level has no signal: the network is called once there, "
                "which pipelines do not expect; use dpm-solver++"
            )
        walk = self._with_eta(walk, eta)
        self._walk = walk = walk.begun(seeds(generator, sample) if walk.draws else 0)
        self._shape = sample.shape
        return walk, i

    def _with_eta(self, walk: walks.Walk, eta: float) -> walks.Walk:
        if not eta:
            return walk
        if not isinstance(self._itself, DDIM):
            raise ValueError(f"eta must be 0 unless solver is ddim: got {eta:g}")
        return walk.by(replace(self._itself, eta=eta))

    def _set_walk(self) -> walks.Walk:
        if self._walk is None:
            raise ValueError("set_timesteps must be called before the scheduler is used")
        return self._walk

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma eps at times (B,) of the run, or where they are not its of the training; x_0's dtype.

        Of a run that has begun it is the level of its next step, of one whose `begin_index` is set the level there.
        """
        alpha, sigma = self._levels_at(timesteps, original_samples)
        return (alpha * original_samples + sigma * noise.to(original_samples)).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """`add_noise`, as pipelines of flow matching ask for it."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha eps - sigma x_0 at times (B,), of flow matching eps - x_0; x_0's dtype."""
        if isinstance(self._training, Flow):
            return noise.to(sample) - sample
        alpha, sigma = self._levels_at(timesteps, sample)
        return (alpha * noise.to(sample) - sigma * sample).to(sample.dtype)

    def _levels_at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """(alpha, sigma) of times (B,), float32, to broadcast against the samples."""
        place = self._step_index if self._step_index is not None else self._begin_index
        if self._walk is not None and self._begin_index is not None:
            found = [self._walk.levels[place or 0]] * max(timesteps.numel(), 1)
        else:
            times = timesteps.flatten().tolist()
            listed = dict(zip(self._walk.times, self._walk.levels, strict=False)) if self._walk else {}
            found = [listed[t] for t in times] if all(t in listed for t in times) else self._trained(times)
        table = torch.tensor(found, dtype=torch.float32).to(like.device).reshape(-1, 2, *[1] * (like.ndim - 1))
        return table[:, 0], table[:, 1]

    def _trained(self, times: list[float]) -> list[tuple[float, float]]:
        own = self._training.from_network_time(times)
        return list(zip(self._training.alpha(own).tolist(), self._training.sigma(own).tolist(), strict=True))


def _listed(values: Any) -> list[float]:
    return [float(v) for v in (values.tolist() if hasattr(values, "tolist") else values)]
