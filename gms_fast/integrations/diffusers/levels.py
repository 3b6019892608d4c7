"""Noise levels and times of a scheduler, taken from diffusers' own with the same keywords."""

import copy
import functools
import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
import torch

from gms_fast.schedules import Levels, hosts

SPACINGS = ("linspace", "leading", "trailing")  # known to diffusers
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
    """Return the keywords of all kinds of schedulers with their defaults.

    A default is None where the kinds differ; the scheduler's kind then decides.
    """
    kinds = [_signature(name) for name in (*_VP, _FLOW, _EDM, _VIDEO)]
    found: dict[str, Any] = {}
    for word in sorted(set().union(*kinds)):
        first, *others = (kind.get(word) for kind in kinds)
        found[word] = first if all(other == first for other in others) else None
    return found


def said_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords that another scheduler's configuration implies.

    They name its class, if that sets the levels.

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
        f"config must come from a scheduler whose noise levels are known (betas, flow matching or EDM): got {name}"
    )


def kind(solver: str, config: Mapping[str, Any]) -> str:
    """Return the diffusers class whose levels a solver uses."""
    if config.get("levels") is not None:
        return str(config["levels"])
    if config.get("prediction_type") == "flow_prediction" and not config.get("use_flow_sigmas"):
        return _FLOW
    return _OF_SOLVERS.get(solver, _USUAL)


def of_kind(name: str, config: Mapping[str, Any]) -> Any:
    """Build the diffusers scheduler that sets the levels, from the keywords that it knows."""
    if name not in hosts.names():
        raise ValueError(f"levels must be one of diffusers' {', '.join(hosts.names())}: got {name!r}")
    words = _signature(name).keys() - {"algorithm_type"}  # it describes steps, and makes some levels an error
    return getattr(diffusers, name)(**{w: v for w, v in config.items() if v is not None and w in words})


def defaults(host: Any) -> dict[str, Any]:
    """Return the defaults of such a scheduler; CogVideoX takes clip_sample but does not clip."""
    return {**host.config, **({"clip_sample": False} if type(host).__name__ == _VIDEO else {})}


def visited(host: Any, steps: int | None, given: Mapping[str, list[float]], mu: float | None) -> tuple[Levels, bool]:
    """Return the levels of a diffusers scheduler's run, and True if its last call does nothing.

    The run has `steps` steps, or the given timesteps or sigmas. A scheduler that takes no timesteps from the user uses
    its training levels there, and then its own last one.
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
        f"{refused} must not be given, because {name}, which sets the levels, does not accept it; "
        'levels="EulerDiscreteScheduler" accepts sigmas'
    )


def scales(host: Any) -> bool:
    """True for a scheduler whose state has another scale than the network's input."""
    return initial_scale(host) != float(getattr(host, "init_noise_sigma", 1.0))


def initial_scale(host: Any) -> float:
    """Return the scale of the first state as the network sees it."""
    scale = torch.tensor(float(getattr(host, "init_noise_sigma", 1.0)))
    if not hasattr(host, "scale_model_input"):
        return float(scale)
    return float(copy.deepcopy(host).scale_model_input(scale, host.timesteps[0]))


def _levels(host: Any) -> Levels:
    levels, _, _ = hosts.from_diffusers(host)
    assert isinstance(levels, Levels)
    return levels


def _of_training(host: Any, times: list[float]) -> Levels:
    """Return the training levels at some timesteps, followed by the scheduler's own last level."""
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
    """Return the parameters of a diffusers class and their defaults."""
    parameters = inspect.signature(getattr(diffusers, name).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD}
