"""Convert schedulers from diffusers to schedules."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from gms_fast.schedules.base import Schedule, as_float64
from gms_fast.schedules.continuous import Flow
from gms_fast.schedules.discrete import VP
from gms_fast.schedules.levels import Levels

_FORMS = {"epsilon": "noise", "sample": "x0", "original_sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
_Ladder = Iterator[tuple[float, float, float]]  # (alpha, sigma, network time) of each level, noisiest first


def from_diffusers(scheduler: Any) -> tuple[Schedule, list[float] | None, str]:
    """Convert a diffusers scheduler to arguments of `sample`.

    If `set_timesteps` has not been called, the result contains the training schedule. Otherwise it contains a
    [`Levels`][gms_fast.schedules.Levels] schedule with all noise levels that the scheduler would visit, including the
    final one, and with the network times that the scheduler would use.

    The state x = alpha x_0 + sigma eps is the network's input, that is, the result of `scale_model_input`.

    Args:
        scheduler: Scheduler of one of the supported diffusers classes.

    Returns:
        Tuple (schedule, timesteps, prediction) of arguments for [`sample`][gms_fast.sample]. `timesteps` is None if
            `set_timesteps` has not been called.

    Raises:
        ValueError: If the class or the settings of the scheduler are not supported. The message names them.

    Note:
        If a scheduler's final level has noise, diffusers stops there. To do the same, pass `denoise=False` to `sample`.

        DDIM and similar schedulers assume that the next time lies T//steps below the current one. This is wrong for
        the spacing "linspace", and for "trailing" if T/steps is not an integer. The state then has a different noise
        level than the scheduler assumes. Here, the state always has the noise level of the next time.

    Examples:
        >>> from diffusers import DDIMScheduler
        >>> scheduler = DDIMScheduler()
        >>> gms_fast.schedules.from_diffusers(scheduler)
        (VP(T=1000), None, 'noise')
        >>> scheduler.set_timesteps(4)
        >>> gms_fast.schedules.from_diffusers(scheduler)
        (Levels(n=5), [4.0, 3.0, 2.0, 1.0, 0.0], 'noise')
    """
    family = _family(scheduler)
    form = family.form(scheduler)
    if not _is_set(scheduler):
        return family.training(scheduler), None, form
    levels = Levels(*zip(*_distinct(family.visited(scheduler)), strict=True))
    return levels, levels.times, form


def rests(scheduler: Any) -> bool:
    """Return True if the last step of a set scheduler leaves the noise level unchanged."""
    if _family(scheduler) is _Table:
        *_, before, last = _Table.visited(scheduler)
        return before[:2] == last[:2]
    sigmas = scheduler.sigmas.tolist()
    return bool(sigmas[-1] == sigmas[len(scheduler.timesteps) - 1])


def training_of(scheduler: Any) -> tuple[Schedule, str]:
    """Return (training schedule, prediction) of a scheduler, whatever steps are set."""
    family = _family(scheduler)
    return family.training(scheduler), family.form(scheduler)


class _Table:
    """Schedulers that look up alphas at integer times, as DDPM and DDIM."""

    names: tuple[str, ...] = (
        "DDPMScheduler",
        "DDPMParallelScheduler",
        "DDIMScheduler",
        "DDIMParallelScheduler",
        "CogVideoXDDIMScheduler",
        "CogVideoXDPMScheduler",
        "PNDMScheduler",
        "LCMScheduler",
        "TCDScheduler",
        "UnCLIPScheduler",
    )

    @staticmethod
    def form(scheduler: Any) -> str:
        return _form_of(scheduler)

    @staticmethod
    def training(scheduler: Any) -> Schedule:
        """Return the schedule of the betas, or of the table of alphas if that was changed later."""
        kept, betas = as_float64(scheduler.alphas_cumprod), as_float64(scheduler.betas)
        if torch.allclose(kept, (1 - betas).cumprod(0), rtol=0, atol=1e-5):
            return VP(betas)
        return Levels(kept.sqrt(), (1 - kept).sqrt())

    @classmethod
    def visited(cls, scheduler: Any) -> _Ladder:
        times = scheduler.timesteps.tolist()
        for t in times:
            yield *_of_square(scheduler.alphas_cumprod[t]), t
        yield *_of_square(cls._last(scheduler, times[-1])), 0.0

    @staticmethod
    def _last(scheduler: Any, t: int) -> float | Tensor:
        """Return alpha^2 at the end: 1, or the scheduler's own value for times before the first."""
        name = type(scheduler).__name__
        if name == "TCDScheduler":
            return scheduler.alphas_cumprod[0]
        if name == "LCMScheduler" or not hasattr(scheduler, "final_alpha_cumprod"):
            return 1.0
        previous = t - scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        return scheduler.final_alpha_cumprod if previous < 0 else scheduler.alphas_cumprod[previous]


class _Ratio(_Table):
    """Schedulers of levels s = sigma/alpha at any time; flow matching if their config says so."""

    names = (
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DPMSolverSDEScheduler",
        "UniPCMultistepScheduler",
        "DEISMultistepScheduler",
        "SASolverScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
        "KDPM2AncestralDiscreteScheduler",
    )

    @classmethod
    def training(cls, scheduler: Any) -> Schedule:
        return _flow(scheduler, "flow_shift") if is_flow(scheduler) else super().training(scheduler)

    @classmethod
    def visited(cls, scheduler: Any) -> _Ladder:
        return _ladder(scheduler, _of_flow if is_flow(scheduler) else _of_ratio)


class _EDM:
    """Schedulers that scale the input and output of a raw network (Karras et al. 2022)."""

    names = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CosineDPMSolverMultistepScheduler")

    @staticmethod
    def form(scheduler: Any) -> str:
        """Return the prediction form of D = c_skip x + c_out F, in the network's scaling."""
        config = scheduler.config
        form = {("epsilon", 0.5): "edm", ("v_prediction", 1.0): "v"}.get((config.prediction_type, config.sigma_data))
        if form is None:
            raise ValueError(
                "scheduler must predict epsilon with sigma_data=0.5 or v_prediction with sigma_data=1 for class "
                f"{type(scheduler).__name__}: got {config.prediction_type} with sigma_data={config.sigma_data:g}"
            )
        return form

    @classmethod
    def training(cls, scheduler: Any) -> Schedule:
        return Levels(*zip(*_distinct(cls.visited(type(scheduler).from_config(scheduler.config))), strict=True))

    @staticmethod
    def visited(scheduler: Any) -> _Ladder:
        if float(scheduler.sigmas[-1]) > 0:  # without a last step the sample would stay in the network's scaling
            raise ValueError(
                f'scheduler must have final_sigmas_type="zero" for class {type(scheduler).__name__}: got "sigma_min"'
            )
        squared = scheduler.config.sigma_data**2
        return _ladder(scheduler, lambda s: (1.0, 0.0) if s == 0 else _over((s * s + squared) ** 0.5, s))


class _FlowMatching:
    names = (
        "FlowMatchEulerDiscreteScheduler",
        "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler",
        "LTXEulerAncestralRFScheduler",
    )

    @staticmethod
    def form(scheduler: Any) -> str:
        return "flow"

    @staticmethod
    def training(scheduler: Any) -> Schedule:
        return _flow(scheduler, "shift")

    @staticmethod
    def visited(scheduler: Any) -> _Ladder:
        return _ladder(scheduler, _of_flow)


_SET_WHEN_MADE = (  # their constructor sets as many steps as the training has
    "DPMSolverSDEScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
_FAMILIES = (_Table, _Ratio, _EDM, _FlowMatching)


def names() -> list[str]:
    """Return the classes of diffusers whose levels are known here."""
    return [name for family in _FAMILIES for name in family.names]


def _family(scheduler: Any) -> Any:
    """Return the family of the scheduler's class.

    A subclass may sample differently, so it must be listed by its own name.
    """
    name = type(scheduler).__name__
    for family in _FAMILIES:
        if name in family.names:
            if getattr(scheduler.config, "invert_sigmas", False):
                raise ValueError(f"scheduler must have decreasing noise levels: got {name} with invert_sigmas=True")
            return family
    raise ValueError(f"scheduler must be one of diffusers' {', '.join(names())}: got {name}")


def _form_of(scheduler: Any) -> str:
    said = scheduler.config.prediction_type
    if said not in _FORMS:
        raise ValueError(f"scheduler.config.prediction_type must be one of {', '.join(_FORMS)}: got {said!r}")
    return _FORMS[said]


def _is_set(scheduler: Any) -> bool:
    """Tell whether `set_timesteps` was called.

    Not all schedulers keep a number of steps when they are given times.
    """
    steps, trained = getattr(scheduler, "num_inference_steps", None), scheduler.config.num_train_timesteps
    if steps is not None:
        return not (steps == trained and type(scheduler).__name__ in _SET_WHEN_MADE)
    times = getattr(scheduler, "timesteps", None)
    return getattr(scheduler, "custom_timesteps", False) or (times is not None and len(times) < trained)


def is_flow(scheduler: Any) -> bool:
    """Tell whether a scheduler is one of flow matching, x = (1 - sigma) x_0 + sigma eps."""
    return _family(scheduler) is _FlowMatching or bool(getattr(scheduler.config, "use_flow_sigmas", False))


def _flow(scheduler: Any, name: str) -> Flow:
    """Return flow matching with the scheduler's shift.

    A dynamic shift counts as none: it moves the grid but no noise level.
    """
    config = scheduler.config
    moves = getattr(config, "use_dynamic_shifting", False)
    shift: Any = 1.0 if moves else getattr(scheduler, name, None) or getattr(config, name, 1.0)
    return Flow(shift=float(shift), time_scale=float(config.num_train_timesteps))


def _ladder(scheduler: Any, pair: Callable[[float], tuple[float, float]]) -> _Ladder:
    """Yield all of `sigmas` with their times.

    Schedulers with two calls per step list levels twice; the later time is the one they use.
    """
    sigmas, times = scheduler.sigmas.tolist(), scheduler.timesteps.tolist()
    for s, following, t in zip(sigmas[:-1], sigmas[1:], times, strict=False):
        if s != following:
            yield *pair(s), t
    if sigmas[-1] == sigmas[len(times) - 1]:  # the last step leaves the level unchanged
        yield *pair(sigmas[-1]), times[-1]
    else:
        yield *pair(sigmas[-1]), sigmas[-1] * scheduler.config.num_train_timesteps if pair is _of_flow else 0.0


def _distinct(ladder: _Ladder) -> list[tuple[float, float, float]]:
    """Drop repeated levels; the first of each stays."""
    levels: list[tuple[float, float, float]] = []
    for level in ladder:
        if not levels or level[:2] != levels[-1][:2]:
            levels.append(level)
    return levels


def _of_square(alpha_squared: float | Tensor) -> tuple[float, float]:
    return float(alpha_squared) ** 0.5, (1 - float(alpha_squared)) ** 0.5


def _of_ratio(s: float) -> tuple[float, float]:
    return _over((1 + s * s) ** 0.5, s)


def _of_flow(s: float) -> tuple[float, float]:
    return 1 - s, s


def _over(scale: float, s: float) -> tuple[float, float]:
    return 1 / scale, s / scale
