"""Noise schedules: x_t = alpha_t x_0 + sigma_t eps, in float64.

A schedule maps its own times (0 .. T-1 for discrete variance-preserving ones, t for continuous ones, sigma for EDM) to
`alpha`, `sigma` and the log signal-to-noise ratio, proposes times to visit, and translates a time into what the network
was trained with.
"""

from gms_fast.schedules.base import Schedule as Schedule
from gms_fast.schedules.base import Times as Times
from gms_fast.schedules.continuous import EDM as EDM
from gms_fast.schedules.continuous import Flow as Flow
from gms_fast.schedules.continuous import VPContinuous as VPContinuous
from gms_fast.schedules.continuous import VPContinuousCosine as VPContinuousCosine
from gms_fast.schedules.discrete import VP as VP
from gms_fast.schedules.discrete import VPCosine as VPCosine
from gms_fast.schedules.discrete import VPLinear as VPLinear
from gms_fast.schedules.hosts import from_diffusers as from_diffusers
from gms_fast.schedules.levels import Levels as Levels
from gms_fast.storage.schema import short

__all__ = [
    "EDM",
    "Flow",
    "Levels",
    "Schedule",
    "VP",
    "VPContinuous",
    "VPContinuousCosine",
    "VPCosine",
    "VPLinear",
    "build",
    "from_diffusers",
    "names",
]

_BY_NAME = {k.__name__: k for k in (VP, VPLinear, VPCosine, VPContinuous, VPContinuousCosine, EDM, Flow, Levels)}
_ALIASES = {
    "linear": "VPLinear",
    "cosine": "VPCosine",
    "vp": "VPContinuous",
    "vp-cosine": "VPContinuousCosine",
    "edm": "EDM",
    "flow": "Flow",
}


def names() -> list[str]:
    """The schedules that a name alone describes."""
    return sorted(_ALIASES)


def build(description: str | dict[str, object] | Schedule) -> Schedule:
    """A schedule from a name of `names()` or from the `config` of one, or the schedule itself."""
    if isinstance(description, Schedule):
        return description
    if not isinstance(description, (str, dict)):
        raise TypeError(f"schedule must be a schedule, its name or its config: got {short(description)}")
    options = {"name": description} if isinstance(description, str) else dict(description)
    name = options.pop("name", None)
    kind = _BY_NAME.get(_ALIASES.get(str(name), str(name)))
    if kind is None:
        raise ValueError(f"schedule must be one of {', '.join(names())}: got {short(name)}")
    return kind(**options)


def stored(config: dict[str, object]) -> Schedule:
    """The schedule of a file. Files without `rescale_time` are of versions that asked all networks at 1000 t/T."""
    schedule = build(config)
    return schedule if "rescale_time" in config or getattr(schedule, "T", 1000) == 1000 else rescaled(schedule)


def rescaled(schedule: Schedule) -> Schedule:
    """The schedule, asking the network at 1000 t/T where it does not say how."""
    return schedule.asked_like(VPLinear(rescale_time=True))
