"""Schedulers for diffusers pipelines: any solver of this package, one fused pass per step."""

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
    """Result of a step: the state at the next time, and E[x_0|x_t], in the sample's dtype."""

    pred_original_sample: Tensor | None = None


class SolverScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Scheduler for diffusers pipelines that takes the steps of any solver.

    Noise levels and times are those of a diffusers scheduler with the same keywords, named by `levels`. The state is
    what the network sees, alpha x_0 + sigma eps, so `scale_model_input` changes nothing, and `init_noise_sigma` is the
    scale of the first such state. Keywords that are None take the default of that diffusers scheduler. Keywords that
    describe its own steps (`solver_order`, `solver_type`, `algorithm_type`, ..) set the options of "dpm-solver++" and
    "unipc" that are left open; other solvers ignore them.

    Args:
        solver: Text of the solver, such as "er-sde:order=2" (see `gms_fast.solvers.text`). The named schedulers, such
            as [`ERSDEScheduler`][gms_fast.ERSDEScheduler], have the options of their solver instead.
        levels: Name of the diffusers class whose noise levels and times are used. None takes
            FlowMatchEulerDiscreteScheduler for prediction_type "flow_prediction" without use_flow_sigmas. Otherwise it
            depends on the solver: DDIMScheduler for "ddim", DDPMScheduler for "ddpm" and "sn-ddpm",
            UniPCMultistepScheduler for "unip" and "unipc", EulerDiscreteScheduler for "euler", HeunDiscreteScheduler
            for "heun", and DPMSolverMultistepScheduler for all others.
        grid: Time grid of this package instead of a diffusers one: "solver" (the solver's own), "uniform", "quadratic",
            "log-snr", "karras" or "angle".
        network_moments: Meaning of outputs with 2C or 3C channels: "raw" (default) for E[eps^k|x_t], "central" for
            E[(eps - e1)^k|x_t] from the second on.
        clip_sample: True clips E[x_0|x_t], with every solver.
        clip_sample_range: Bound of the clipping, [-r, r].
        thresholding: True applies dynamic thresholding to E[x_0|x_t]; not for solvers that read moments.
        dynamic_thresholding_ratio: Quantile of |x_0| in dynamic thresholding, by default 0.995.
        sample_max_value: Largest threshold of dynamic thresholding, by default 1.
        prediction_type: Meaning of the network's output: "epsilon", "sample", "v_prediction" or "flow_prediction".
        variance_type: Variance of a DDPM scheduler. With "learned_range" the second half of 2C channels is a learned
            variance.
        num_train_timesteps: Number of training times.
        beta_start: First beta of the training.
        beta_end: Last beta of the training.
        beta_schedule: Form of the betas: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: The betas themselves, instead of the three keywords before.
        rescale_betas_zero_snr: True rescales the betas to zero terminal SNR.
        snr_shift_scale: Shift of the SNR in CogVideoX.
        timestep_spacing: Spacing of the times: "linspace", "leading" or "trailing".
        steps_offset: Offset of the times, with "leading".
        timestep_type: "discrete" or "continuous" times of EulerDiscreteScheduler.
        interpolation_type: "linear" or "log_linear" interpolation of levels in EulerDiscreteScheduler.
        set_alpha_to_one: True ends DDIM at alpha = 1, False at the first training level.
        final_sigmas_type: Last noise level: "zero", or "sigma_min" for the least training level.
        use_karras_sigmas: True spaces the levels as Karras et al. 2022 do.
        use_exponential_sigmas: True spaces the levels exponentially.
        use_beta_sigmas: True spaces the levels by quantiles of a beta distribution.
        use_lu_lambdas: True spaces the levels uniformly in log(alpha/sigma).
        use_flow_sigmas: True uses the levels of flow matching in a VP scheduler.
        flow_shift: Shift of the levels with use_flow_sigmas.
        lambda_min_clipped: Least log(alpha/sigma) of DPMSolverMultistepScheduler's levels.
        shift: Shift of the levels in flow matching.
        shift_terminal: Value to which the last shifted level is stretched.
        use_dynamic_shifting: True shifts the levels by `mu` of `set_timesteps`.
        time_shift_type: "exponential" or "linear" form of the dynamic shift.
        base_shift: Shift at `base_image_seq_len`, which pipelines read to compute mu.
        max_shift: Shift at `max_image_seq_len`, which pipelines read to compute mu.
        base_image_seq_len: Sequence length of the smallest image.
        max_image_seq_len: Sequence length of the largest image.
        invert_sigmas: Must be False.
        sigma_min: Least noise level of EDM.
        sigma_max: Largest noise level of EDM.
        sigma_data: Standard deviation of the data in EDM.
        sigma_schedule: "karras" or "exponential" levels of EDM.
        rho: Exponent of EDM's Karras levels.
        algorithm_type: "dpmsolver++" or "sde-dpmsolver++", for "dpm-solver++".
        solver_order: Order of "dpm-solver++" or "unipc".
        solver_type: "midpoint" or "heun" for "dpm-solver++", "bh1" or "bh2" for "unipc".
        lower_order_final: True ends with lower orders, for "dpm-solver++" and "unipc".
        euler_at_final: No effect, because a last step to no noise is of order 1 anyway. Must be False for
            "dpm-solver++" with final_sigmas_type "sigma_min".
        disable_corrector: Steps of "unipc" whose end is not corrected.
        predict_x0: Must not be False for "unip" and "unipc".
        solver_p: Must be None for "unip" and "unipc".
        stochastic_sampling: Must be False for "ddim".

    Raises:
        ValueError: If a keyword has a wrong value, or one that this solver does not support.
        TypeError: If a keyword is unknown.

    Examples:
        >>> import diffusers
        >>> blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
        >>> unet = diffusers.UNet2DModel(8, 1, 1, block_out_channels=(32,), layers_per_block=1, **blocks)
        >>> pipe = diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())  # or any pipeline
        >>> pipe.scheduler = gms_fast.SolverScheduler.from_config(pipe.scheduler.config, solver="er-sde:order=2")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe(batch_size=2, num_inference_steps=5, output_type="np").images.shape
        (2, 8, 8, 1)
    """

    __module__ = "gms_fast"  # saved pipelines look for it there
    _compatibles = [kind.name for kind in KarrasDiffusionSchedulers]  # noqa: RUF012 - read by SchedulerMixin
    _solver: str | None = None  # name of a named scheduler's solver
    _ours: ClassVar[set[str]] = {"SolverScheduler"}
    order = 1
    __init__ = words.initialiser(None)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.__module__ = "gms_fast"
        cls.__doc__ = words.documented(cls.__doc__, SolverScheduler.__doc__)
        cls._ours.add(cls.__name__)
        cls.__init__ = words.initialiser(cls._solver)  # type: ignore[misc]

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **keywords: Any) -> Any:
        """Build a scheduler with the levels, times and prediction of another one's configuration.

        Options of diffusers' own solver in that configuration apply to a solver of the same kind, where they are left
        open.

        Args:
            config: Configuration, such as `pipe.scheduler.config`.
            return_unused_kwargs: True returns also the unused keywords.
            **keywords: Keywords of the constructor, which take precedence.

        Returns:
            The scheduler, or (scheduler, unused keywords).

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If the levels of that scheduler are unknown here.
        """
        if isinstance(config, Mapping):
            config = words.adopted(config, cls._solver, cls._ours)
        known = inspect.signature(cls).parameters
        if unknown := [word for word in keywords if word not in known and not return_unused_kwargs]:
            raise TypeError(f"{cls.__name__} got unexpected keywords {', '.join(unknown)}")
        return super().from_config(config, return_unused_kwargs, **keywords)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *arguments: Any, **keywords: Any) -> Any:
        """Load the configuration from a folder; tables are named by their files there."""
        loaded = super().load_config(pretrained_model_name_or_path, *arguments, **keywords)
        folder = Path(str(pretrained_model_name_or_path), keywords.get("subfolder") or "")
        if isinstance(loaded, tuple):
            return (tables.found(loaded[0], folder), *loaded[1:])
        return tables.found(loaded, folder)

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **keywords: Any) -> None:
        """Write the configuration, and copy the tables that it names beside it."""
        config = self.config
        try:
            self._internal_dict = FrozenDict(tables.kept(config, Path(save_directory)))
            super().save_config(save_directory, push_to_hub, **keywords)
        finally:
            self._internal_dict = FrozenDict({**self._internal_dict, **config})

    def _set_up(self) -> None:
        """Build all that does not depend on `set_timesteps`."""
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
            raise ValueError("churn must be 0 in a scheduler, which cannot change the times of the network's calls")
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
        """Build the diffusers scheduler that sets the levels, from the current configuration."""
        grid, spacing = self.config.get("grid"), self.config.get("timestep_spacing")
        if spacing not in (None, *levels.SPACINGS):
            known = ", ".join(levels.SPACINGS)
            raise ValueError(f"timestep_spacing must be one of {known} (for others use grid): got {spacing!r}")
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
        """Index of the next step in `timesteps`; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index of the first step in `timesteps`, if a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start the run at this index of `timesteps`."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Choose the times of a new run: by their number, or as timesteps or noise levels.

        Exactly one of `num_inference_steps`, `timesteps` and `sigmas` is needed.

        Args:
            num_inference_steps: Number of network evaluations >= 1; for "heun" the number of steps.
            device: Device of `timesteps`.
            timesteps: Falling training times.
            sigmas: Falling noise levels sigma/alpha; sigma for flow matching.
            mu: Parameter of a dynamic shift.

        Raises:
            ValueError: If the arguments contradict each other, do not fall, or do not suit these levels.
        """
        given = {name: _listed(v) for name, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None}
        if len(given) > 1 or (not given and num_inference_steps is None):
            raise ValueError("exactly one of num_inference_steps, timesteps and sigmas must be given")
        if num_inference_steps not in (None, *map(len, given.values())) and given:
            raise ValueError(f"num_inference_steps must be None with {', '.join(given)}: got {num_inference_steps}")
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
        """Return the index of a time in `timesteps`.

        A time that occurs twice gives its second index, so that a run may start there. A time that does not occur gives
        a warning and the nearest index.

        Args:
            timestep: The time.
            schedule_timesteps: Times to search; by default `timesteps`.

        Returns:
            Index into the times.
        """
        times = self._set_walk().times if schedule_timesteps is None else _listed(schedule_timesteps)
        t = float(timestep)
        places = [i for i, listed in enumerate(times) if listed == t or abs(listed - t) <= 1e-6 * abs(t)]
        if places:
            return places[min(1, len(places) - 1)]
        nearest = min(range(len(times)), key=lambda i: abs(times[i] - t))
        warnings.warn(f"timestep must be one of scheduler.timesteps: got {t:g}, using {times[nearest]:g}", stacklevel=3)
        return nearest

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the state as the network sees it, which is the state itself.

        Only a Teleport changes it: before the first step it returns the state after its jump.

        Args:
            sample: State (n, C, H, W).
            timestep: Not used.

        Returns:
            Tensor (n, C, H, W).
        """
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
        use_clipped_model_output: bool | None = None,
    ) -> SolverSchedulerOutput | tuple[Tensor, ...]:
        """Take one step: return the state at the next time.

        At the first step of a run that draws noise, seeds are drawn from the generators. Results therefore do not
        depend on the batching of samples, and differ from run to run.

        Args:
            model_output: Network output: shaped like sample, moments in 2 or 3 times its channels, or `NoiseMoments`.
            timestep: Time of the sample, one of `timesteps`.
            sample: State (n, C, H, W).
            generator: One generator, or a list of one per sample. A number here is DDIM's `eta`, which has this
                position in diffusers.
            return_dict: False returns `(state,)` and saves the computation of E[x_0|x_t].
            variance_noise: Standard normals instead of the seeded noise.
            eta: Replaces the eta of "ddim". 0, the value that pipelines pass by default, keeps the solver's own.
            use_clipped_model_output: None or False. `DDIMPipeline` passes it; for True use the solver
                "ddim:clipped_noise=true".

        Returns:
            `SolverSchedulerOutput` with `prev_sample` and `pred_original_sample`, or a tuple.

        Raises:
            ValueError: If the sample changes its shape within a run, the output has other channels, `eta` is given to
                another solver, `use_clipped_model_output` is true, or `set_timesteps` was not called.
        """
        if use_clipped_model_output:
            raise ValueError(
                f"use_clipped_model_output must be None or False: got {use_clipped_model_output!r}; the solver "
                '"ddim:clipped_noise=true" computes the noise from the clipped x_0'
            )
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
        """Return the walk and the index of this step; the first step begins a run."""
        walk, i = self._set_walk(), self._step_index
        if i is not None and i < len(walk.times):
            if self._shape is not None and sample.shape != self._shape:
                was, got = tuple(self._shape), tuple(sample.shape)
                raise ValueError(f"sample must keep its shape {was} until set_timesteps is called again: got {got}")
            return walk, i
        i = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if not 0 <= i < len(walk.times):
            raise ValueError(f"begin_index must lie in [0, {len(walk.times)}): got {i}")
        if walk.known and i == 0 and not self._landed:
            raise ValueError(
                "scale_model_input must be called before the network, because a Teleport jumps there; this pipeline "
                "does not call it: use the solver that follows the jump"
            )
        if self.order > 1 and i > 0 and walk.levels[0][0] == 0:
            raise ValueError(
                "begin_index must be 0 for heun where the first level has no signal, because its first step has a "
                "single network call; use dpm-solver++"
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
        """Return alpha x_0 + sigma eps at some times, in the dtype of x_0.

        Times are those of the run, else of the training. During a run the level of the next step is used instead. If
        `begin_index` is set, it is the level there.

        Args:
            original_samples: x_0, (B, C, H, W).
            noise: eps, shaped like x_0.
            timesteps: Times (B,).

        Returns:
            Tensor (B, C, H, W).
        """
        alpha, sigma = self._levels_at(timesteps, original_samples)
        return (alpha * original_samples + sigma * noise.to(original_samples)).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """Call `add_noise` with the argument order of flow-matching pipelines."""
        return self.add_noise(sample, noise, timestep)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return the velocity alpha eps - sigma x_0 at some times; eps - x_0 for flow matching.

        Args:
            sample: x_0, (B, C, H, W).
            noise: eps, shaped like x_0.
            timesteps: Times (B,).

        Returns:
            Tensor (B, C, H, W), in the dtype of x_0.
        """
        if isinstance(self._training, Flow):
            return noise.to(sample) - sample
        alpha, sigma = self._levels_at(timesteps, sample)
        return (alpha * noise.to(sample) - sigma * sample).to(sample.dtype)

    def _levels_at(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return (alpha, sigma) at times (B,), float32, in a shape that broadcasts to the samples."""
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
