"""Schedule and output of networks with a `GaussianDiffusion`.

It is that of guided-diffusion, improved-diffusion or DiT.
"""

from typing import Any, NamedTuple

from gms_fast.assumptions import unwrapped
from gms_fast.models.hosts.base import has
from gms_fast.schedules import VP, Schedule

_FORMS = {"EPSILON": "noise", "START_X": "x0"}


class Told(NamedTuple):
    """A network, and the properties that its diffusion states."""

    network: Any
    bare: Any
    schedule: Schedule | None
    prediction: str
    learned: bool


def network_of(bare: Any) -> Any:
    """Return the bare network of a (network, diffusion) pair; anything else unchanged."""
    pair = isinstance(bare, tuple) and len(bare) == 2 and has(bare[1], "betas", "model_mean_type", "model_var_type")
    return unwrapped(bare[0]) if pair else bare


def told(network: Any, bare: Any, schedule: Schedule | None, prediction: str | None) -> Told:
    """Return the properties that a pair's diffusion states, or the defaults for a network alone."""
    if not isinstance(bare, tuple):
        return Told(network, bare, schedule, prediction or "noise", True)
    network, diffusion = bare
    schedule, prediction = schedule or _schedule(diffusion), prediction or _form(diffusion)
    return Told(network, unwrapped(network), schedule, prediction, diffusion.model_var_type.name == "LEARNED_RANGE")


def _schedule(diffusion: Any) -> VP:
    kept = len(diffusion.betas)
    trained = getattr(diffusion, "original_num_steps", kept)
    if kept != trained:
        raise ValueError(
            f"diffusion must keep all training times: got {kept} of {trained}; create it with "
            "an empty timestep_respacing"
        )
    return VP(diffusion.betas, rescale_time=getattr(diffusion, "rescale_timesteps", False))


def _form(diffusion: Any) -> str:
    said = diffusion.model_mean_type.name
    if said not in _FORMS:
        raise ValueError(f"diffusion.model_mean_type must be one of {', '.join(_FORMS)}: got {said}")
    return _FORMS[said]
