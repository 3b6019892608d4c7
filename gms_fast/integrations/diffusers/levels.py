"""Noise levels and times of a scheduler: those that diffusers' own of its kind visits, from the same words."""

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from gms_fast.schedules import Levels, hosts

SPACINGS = ("linspace", "leading", "trailing")  # of diffusers
_VP = (
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
)
_FLOW, _EDM, _VIDEO = "FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler", "CogVideoXDDIMScheduler"
_USUAL = "DPMSolverMultistepScheduler"
_OF_SOLVERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "sn-ddpm": "DDPMScheduler",
    "unip": "UniPCMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
    "euler": "EulerDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
}


@functools.cache
def words() -> dict[str, Any]:
    """Keywords of schedulers of every kind with their defaults; None: as the kind has it."""
    kinds = [_signature(name) for name in (*_VP, _FLOW, _EDM, _VIDEO)]
    found: dict[str, Any] = {}
    for word in sorted(set().union(*kinds)):
        first, *others = (kind.get(word) for kind in kinds)
        found[word] = first if all(other == first for other in others) else None
    return found


def said_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """Words for the meaning of another scheduler's configuration beyond its own: its class, where that says the levels.

    Raises ValueError naming a scheduler whose levels are unknown here.
    """
    if "sigma_data" in config and "sigma_schedule" in config:
        return {"levels": _EDM}
    if "snr_shift_scale" in config:
        return {"levels": _VIDEO}
    if "beta_schedule" in config:
        return {}
    if "shift" in config:
        return {"levels": _FLOW, "prediction_type": "flow_prediction"}
    name = config.get("_class_name", "one without beta_schedule, shift or sigma_data")
    raise ValueError(
        f"config must be that of a scheduler with betas, of flow matching or of EDM, for its noise levels: got {name}"
    )


def kind(solver: str, config: Mapping[str, Any]) -> str:
    """The class of diffusers whose levels a solver of that name visits."""
    if config.get("levels") is not None:
        return str(config["levels"])
    if config.get("prediction_type") == "flow_prediction" and not config.get("use_flow_sigmas"):
        return _FLOW
    return _OF_SOLVERS.get(solver, _USUAL)


def of_kind(name: str, config: Mapping[str, Any]) -> Any:
    """The scheduler of diffusers that says the levels, made of the words that it knows."""
    if name not in hosts.names():
        raise ValueError(f"levels must be one of diffusers' {', '.join(hosts.names())}: got {name!r}")
    words = _signature(name).keys() - {"algorithm_type"}  # which says how it steps, and would refuse levels
    return getattr(diffusers, name)(**{w: v for w, v in config.items() if v is not None and w in words})


def defaults(host: Any) -> dict[str, Any]:
    """Words of such a scheduler where a configuration does not say; CogVideoX's takes clip_sample and does not clip."""
    return {**host.config, **({"clip_sample": False} if type(host).__name__ == _VIDEO else {})}


def visited(host: Any, steps: int | None, given: Mapping[str, list[float]], mu: float | None) -> tuple[Levels, bool]:
    """The levels that a scheduler of diffusers visits in so many steps, or at the timesteps or sigmas that are given;
    and whether its last call leads nowhere.

    One that takes no times of the user visits the levels of its training there, and then its own last one.
    """
    asked = {**given, **({} if mu is None else {"mu": mu})}
    if asked.keys() <= inspect.signature(host.set_timesteps).parameters.keys():
        count = {} if given else {"num_inference_steps": steps}
        host.set_timesteps(**count, device="cpu", **asked)
        return _levels(host), hosts.rests(host)
    if asked.keys() == {"timesteps"}:
        return _of_training(host, given["timesteps"]), False
    refused, name = ", ".join(asked), type(host).__name__
    raise ValueError(
        f"{refused} must not be given: {name}, whose levels are visited, takes none; with "
        'levels="EulerDiscreteScheduler" sigmas may be'
    )


def scales(host: Any) -> bool:
    """Tell a scheduler whose state has another scale than what the network sees."""
    return initial_scale(host) != float(getattr(host, "init_noise_sigma", 1.0))


def initial_scale(host: Any) -> float:
    """The scale of the first state as the network sees it."""
    scale = torch.tensor(float(getattr(host, "init_noise_sigma", 1.0)))
    if not hasattr(host, "scale_model_input"):
        return float(scale)
    return float(copy.deepcopy(host).scale_model_input(scale, host.timesteps[0]))


def _levels(host: Any) -> Levels:
    levels, _, _ = hosts.from_diffusers(host)
    assert isinstance(levels, Levels)
    return levels


def _of_training(host: Any, times: list[float]) -> Levels:
    training, _ = hosts.training_of(host)
    training.check_times(times)
    host.set_timesteps(len(times), device="cpu")
    last = _levels(host)
    alphas, sigmas = (
        torch.cat([f(times), g([0.0])]) for f, g in ((training.alpha, last.alpha), (training.sigma, last.sigma))
    )
    return Levels(alphas, sigmas, [*training.network_time(times).tolist(), 0.0])


@functools.cache
def _signature(name: str) -> dict[str, Any]:
    """Arguments of a class of diffusers and their defaults."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}
