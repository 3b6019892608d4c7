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
    """Result of a step: the state at the next time and E[x_0|x_t], in the sample's dtype."""

    pred_original_sample: Tensor | None = None


class SolverScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """Scheduler for diffusers pipelines that runs any solver of this package.

    The noise levels and times are those of a diffusers scheduler with the same keywords. The argument `levels` names
    the class of that scheduler, and a keyword that is None takes the default of that class. The state is alpha x_0 +
    sigma eps, which is also the input of the network. `scale_model_input` therefore leaves it unchanged, and
    `init_noise_sigma` is the scale of the first state.

    Keywords that configure diffusers' own solvers, such as `solver_order`, `solver_type` and `algorithm_type`, also set
    the corresponding options of "dpm-solver++" and "unipc", unless the solver string sets these options itself. All
    other solvers ignore them.

    Args:
        solver: Solver string, such as "er-sde:order=2" (default "er-sde"; see [`build`][gms_fast.solvers.build]). The
            named schedulers, such as [`ERSDEScheduler`][gms_fast.ERSDEScheduler], have the options of their solver as
            keywords instead.
        levels: Name of the diffusers class whose noise levels and times are used. By default, this is
            FlowMatchEulerDiscreteScheduler if prediction_type is "flow_prediction" and use_flow_sigmas is not set.
            Otherwise it depends on the solver: DDIMScheduler for "ddim", DDPMScheduler for "ddpm" and "sn-ddpm",
            UniPCMultistepScheduler for "unip" and "unipc", EulerDiscreteScheduler for "euler", HeunDiscreteScheduler
            for "heun", and DPMSolverMultistepScheduler for all others.
        grid: Time grid of this package to use in place of the time grid of the diffusers class: "solver" (the solver's
            own), "uniform", "quadratic", "log-snr", "karras" or "angle". None (default) keeps the grid of the diffusers
            class.
        network_moments: Kind of noise moments in network outputs with 2C or 3C channels, where the sample has C
            channels. "raw" (default) stands for E[eps^k|x_t]. "central" stands for e1 = E[eps|x_t], followed by E[(eps
            - e1)^k|x_t] for k = 2 and 3.
        clip_sample: If True, E[x_0|x_t] is clipped, whichever solver is used.
        clip_sample_range: Bound r of the clipping: E[x_0|x_t] is clipped to [-r, r].
        thresholding: If True, dynamic thresholding is applied to E[x_0|x_t]. It must be False for solvers that use the
            second or third noise moment.
        dynamic_thresholding_ratio: Quantile of |x_0| that is used as the threshold in dynamic thresholding (default
            0.995).
        sample_max_value: Largest threshold in dynamic thresholding (default 1).
        prediction_type: Quantity that the network predicts: "epsilon", "sample", "v_prediction" or "flow_prediction".
        variance_type: Kind of variance, as in DDPMScheduler. With "learned_range", the network has 2C output channels,
            and the second half of them is a learned variance.
        num_train_timesteps: Number of time steps in training.
        beta_start: First beta in training.
        beta_end: Last beta in training.
        beta_schedule: Formula for the betas: "linear", "scaled_linear" or "squaredcos_cap_v2".
        trained_betas: The betas themselves, in place of `beta_start`, `beta_end` and `beta_schedule`.
        rescale_betas_zero_snr: If True, the betas are rescaled so that the last training time has zero SNR.
        snr_shift_scale: Shift of the SNR in CogVideoX.
        timestep_spacing: Spacing of the times: "linspace", "leading" or "trailing".
        steps_offset: Offset that is added to the times if timestep_spacing is "leading".
        timestep_type: Kind of times in EulerDiscreteScheduler: "discrete" or "continuous".
        interpolation_type: Interpolation of the noise levels in EulerDiscreteScheduler: "linear" or "log_linear".
        set_alpha_to_one: If True, DDIM ends at alpha = 1; if False, it ends at the lowest noise level in training.
        final_sigmas_type: Last noise level: "zero", or "sigma_min" for the lowest noise level in training.
        use_karras_sigmas: If True, the noise levels are spaced as in Karras et al. 2022.
        use_exponential_sigmas: If True, the noise levels are spaced exponentially.
        use_beta_sigmas: If True, the noise levels are spaced by the quantiles of a beta distribution.
        use_lu_lambdas: If True, the noise levels are spaced uniformly in log(alpha/sigma).
        use_flow_sigmas: If True, a variance-preserving (VP) scheduler uses the noise levels of flow matching.
        flow_shift: Shift of the noise levels if `use_flow_sigmas` is True.
        lambda_min_clipped: Smallest log(alpha/sigma) of the noise levels in DPMSolverMultistepScheduler.
        shift: Shift of the noise levels in flow matching.
        shift_terminal: Value to which the last shifted noise level is stretched.
        use_dynamic_shifting: If True, the noise levels are shifted by the argument `mu` of `set_timesteps`.
        time_shift_type: Formula for the dynamic shift: "exponential" or "linear".
        base_shift: Shift for the sequence length `base_image_seq_len`. Pipelines use it to compute `mu`.
        max_shift: Shift for the sequence length `max_image_seq_len`. Pipelines use it to compute `mu`.
        base_image_seq_len: Sequence length of the smallest image.
        max_image_seq_len: Sequence length of the largest image.
        invert_sigmas: Not supported; must be False.
        sigma_min: Lowest noise level of EDM.
        sigma_max: Highest noise level of EDM.
        sigma_data: Standard deviation of the data in EDM.
        sigma_schedule: Spacing of the noise levels of EDM: "karras" or "exponential".
        rho: Exponent of EDM's "karras" noise levels.
        algorithm_type: "dpmsolver++" or "sde-dpmsolver++"; used by "dpm-solver++".
        solver_order: Order of the solver; used by "dpm-solver++" and "unipc".
        solver_type: "midpoint" or "heun" for "dpm-solver++", and "bh1" or "bh2" for "unipc".
        lower_order_final: If True, the order decreases in the last steps; used by "dpm-solver++" and "unipc".
        euler_at_final: Has no effect, because a last step to zero noise has order 1 anyway. Must be False for
            "dpm-solver++" with final_sigmas_type="sigma_min".
        disable_corrector: Indices of the steps whose result is not corrected; used by "unipc".
        predict_x0: Must not be False for "unip" and "unipc".
        solver_p: Must be None for "unip" and "unipc".
        stochastic_sampling: Must be False for "ddim".

    Raises:
        ValueError: If a keyword has an invalid value, or a value that this solver does not support.
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
        """Build a scheduler from the configuration of another scheduler.

        The new scheduler has the same noise levels, times and prediction type. If the configuration sets options of a
        diffusers solver, they also apply to the same kind of solver here, unless you set these options.

        Args:
            config: Configuration, such as `pipe.scheduler.config`.
            return_unused_kwargs: If True, the unused keywords are returned too.
            **keywords: Keywords of the constructor, which take precedence over the configuration.

        Returns:
            The scheduler, or (scheduler, unused keywords).

        Raises:
            TypeError: If a keyword is unknown.
            ValueError: If the noise levels of the other scheduler are not known to this package.
        """
        if isinstance(config, Mapping):
            config = words.adopted(config, cls._solver, cls._ours)
        known = inspect.signature(cls).parameters
        if unknown := [word for word in keywords if word not in known and not return_unused_kwargs]:
            raise TypeError(f"{cls.__name__} got unexpected keywords {', '.join(unknown)}")
        return super().from_config(config, return_unused_kwargs, **keywords)

    @classmethod
    def load_config(cls, pretrained_model_name_or_path: Any, *arguments: Any, **keywords: Any) -> Any:
        """Load the configuration from a folder, and find the statistics and tables saved with it."""
        loaded = super().load_config(pretrained_model_name_or_path, *arguments, **keywords)
        folder = Path(str(pretrained_model_name_or_path), keywords.get("subfolder") or "")
        if isinstance(loaded, tuple):
            return (tables.found(loaded[0], folder), *loaded[1:])
        return tables.found(loaded, folder)

    def save_config(self, save_directory: Any, push_to_hub: bool = False, **keywords: Any) -> None:
        """Save the configuration, with copies of the statistics and tables that it names."""
        config = self.config
        try:
            self._internal_dict = FrozenDict(tables.kept(config, Path(save_directory)))
            super().save_config(save_directory, push_to_hub, **keywords)
        finally:
            self._internal_dict = FrozenDict({**self._internal_dict, **config})

    def _set_up(self) -> None:
        """Build all that does not depend on `set_timesteps`."""
        if self.config.network_moments not in _MOMENTS:
            raise ValueError(f"network_moments must be raw or central: got {self.config.network_moments!r}")
        host = self._host()
        config = words.merged(self.config, levels.defaults(host))
        self._itself: Solver = words.solver_of(self._solver, config)
        self._internal_dict = FrozenDict(words.filled(self._solver, config, self._itself, type(self).__name__))
        if self.config.get("thresholding") and self._itself.moments_needed > 1:
            name = type(self._itself).__name__
            raise ValueError(
                f"thresholding must be False for {name}, which uses noise moments: use clip_sample instead"
            )
        walking = self._itself.onward()
        if isinstance(walking, (Euler, Heun)) and walking.churn:
            raise ValueError(
                "churn must be 0 in a scheduler, because the pipeline sets the times of the network's calls"
            )
        if isinstance(self._itself, Teleport) and self._itself.direct:
            raise ValueError("direct must be False in a scheduler, because the pipeline draws the first state")
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
            raise ValueError(f"timestep_spacing must be one of {known} (use grid for others): got {spacing!r}")
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
        """Index of the next step in `timesteps`; None before the first step."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Index in `timesteps` at which the run starts, if a pipeline has set it."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Set the index in `timesteps` at which the run starts."""
        self._begin_index = begin_index

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: Any = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Set the times of a new run from their number, or from given timesteps or noise levels.

        Pass exactly one of `num_inference_steps`, `timesteps` and `sigmas`.

        Args:
            num_inference_steps: Number of network evaluations, >= 1. For "heun", the number of steps.
            device: Device of the attribute `timesteps`.
            timesteps: Training times in decreasing order.
            sigmas: Noise levels sigma/alpha in decreasing order, or sigma for flow matching.
            mu: Shift parameter for `use_dynamic_shifting`.

        Raises:
            ValueError: If none or more than one of the three is given, if the values do not decrease, or if the
                selected diffusers class does not support the arguments.
        """
        given = {name: _listed(v) for name, v in (("timesteps", timesteps), ("sigmas", sigmas)) if v is not None}
        if len(given) > 1 or (not given and num_inference_steps is None):
            raise ValueError("exactly one of num_inference_steps, timesteps and sigmas must be given")
        if num_inference_steps not in (None, *map(len, given.values())) and given:
            raise ValueError(
                f"num_inference_steps must be None together with {', '.join(given)}: got {num_inference_steps}"
            )
        if any(not a > b for times in given.values() for a, b in pairwise(times)):
            raise ValueError(f"{', '.join(given)} must decrease: got {given}")
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

        If the time occurs twice, the second index is returned, because a run that begins at this time starts there. If
        the time does not occur, a warning is issued and the index of the nearest time is returned.

        Args:
            timestep: Time to find.
            schedule_timesteps: Times to search. None (default) searches `timesteps`.

        Returns:
            Index into the times.
        """
        times = self._set_walk().times if schedule_timesteps is None else _listed(schedule_timesteps)
        t = float(timestep)
        places = [i for i, listed in enumerate(times) if listed == t or abs(listed - t) <= 1e-6 * abs(t)]
        if places:
            return places[min(1, len(places) - 1)]
        nearest = min(range(len(times)), key=lambda i: abs(times[i] - t))
        warnings.warn(
            f"timestep must be one of scheduler.timesteps: got {t:g}, so the nearest one, {times[nearest]:g}, is used",
            stacklevel=3,
        )
        return nearest

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Return the input of the network, which is the state itself.

        With a Teleport, however, the call before the first step returns the state at the end of the teleport.

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
        """Take one step and return the state at the next time.

        If the run draws noise, its first step draws the seeds of the noise from the generators: a single seed from one
        generator, or one seed per sample from a list. With a list, a sample does not depend on the other samples in the
        batch. Each run draws new seeds, so its results differ from those of the preceding run unless you reseed the
        generators.

        Args:
            model_output: Output of the network: a tensor shaped like `sample`, a tensor of noise moments with 2 or 3
                times as many channels, or `NoiseMoments`.
            timestep: Time of the sample, which is one of `timesteps`.
            sample: State (n, C, H, W).
            generator: One generator, or a list of one generator per sample. A number is taken as DDIM's `eta`, which
                diffusers has in this position.
            return_dict: If False, only the tuple `(state,)` is returned and E[x_0|x_t] is not computed.
            variance_noise: Standard normal noise that replaces the seeded noise.
            eta: Value that replaces the eta of "ddim". 0, which pipelines pass by default, keeps the eta of the solver.
            use_clipped_model_output: Must be None or False; `DDIMPipeline` passes this argument. To get the effect of
                True, use the solver "ddim:clipped_noise=true".

        Returns:
            `SolverSchedulerOutput` with `prev_sample` and `pred_original_sample`, or a tuple.

        Raises:
            ValueError: If the shape of the sample changes within a run, if the output has the wrong number of channels,
                if `eta` is given to a solver other than "ddim", if `use_clipped_model_output` is true, or if
                `set_timesteps` was not called.
        """
        if use_clipped_model_output:
            raise ValueError(
                f"use_clipped_model_output must be None or False: got {use_clipped_model_output!r}; use the solver "
                '"ddim:clipped_noise=true", which computes the noise from the clipped x_0'
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
                "scale_model_input must be called before the network, because the teleport takes place in it; this "
                "pipeline does not call it, so use the solver after the teleport alone"
            )
        if self.order > 1 and i > 0 and walk.levels[0][0] == 0:
            raise ValueError(
                "begin_index must be 0 for heun if the first noise level has no signal, because the first step then "
                "calls the network only once; use dpm-solver++ instead"
            )
        walk = self._with_eta(walk, eta)
        self._walk = walk = walk.begun(seeds(generator, sample) if walk.draws else 0)
        self._shape = sample.shape
        return walk, i

    def _with_eta(self, walk: walks.Walk, eta: float) -> walks.Walk:
        if not eta:
            return walk
        if not isinstance(self._itself, DDIM):
            raise ValueError(f"eta must be 0 unless the solver is ddim: got {eta:g}")
        return walk.by(replace(self._itself, eta=eta))

    def _set_walk(self) -> walks.Walk:
        if self._walk is None:
            raise ValueError("set_timesteps must be called before the scheduler is used")
        return self._walk

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Return alpha x_0 + sigma eps at the given times, in the dtype of x_0.

        If all of the times occur in the run, they are taken as times of the run; otherwise they are taken as training
        times. If a pipeline has set `begin_index`, the times are ignored. The noise level is then the one at which the
        next step starts; before the first step, this is the noise level of `begin_index`.

        Args:
            original_samples: x_0, (B, C, H, W).
            noise: eps, with the shape of x_0.
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
        """Return the velocity: alpha eps - sigma x_0, or eps - x_0 for flow matching.

        Args:
            sample: x_0, (B, C, H, W).
            noise: eps, with the shape of x_0.
            timesteps: Times (B,), as in `add_noise`.

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
