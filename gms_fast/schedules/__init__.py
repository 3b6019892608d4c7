"""Noise schedules: x_t = alpha_t x_0 + sigma_t eps, in float64.

Each schedule has its own time variable: 0 .. T-1 for discrete variance-preserving schedules, t for continuous
ones, and sigma for EDM. A schedule maps a time to alpha_t, sigma_t and log(alpha_t/sigma_t), and to the network time,
which is the time value that the network was trained on. It also provides the time grid of a run.
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
    """Return the names of the schedules that need no arguments.

    Returns:
        Sorted list of names. [`build`][gms_fast.schedules.build] and every argument called `schedule` accept them.

    Examples:
        >>> gms_fast.schedules.names()
        ['cosine', 'edm', 'flow', 'linear', 'vp', 'vp-cosine']
    """
    return sorted(_ALIASES)


def build(description: str | dict[str, object] | Schedule) -> Schedule:
    """Build a schedule from its name or its config.

    Args:
        description: One of the names that [`names`][gms_fast.schedules.names] returns, the name of a schedule class, or
            the `config` of a schedule. A [`Schedule`][gms_fast.schedules.Schedule] is returned unchanged.

    Returns:
        Schedule.

    Raises:
        ValueError: If the name is unknown.
        TypeError: If `description` is not a string, dict or schedule.

    Examples:
        >>> gms_fast.schedules.build("linear")
        VPLinear(T=1000)
        >>> gms_fast.schedules.build({"name": "EDM", "sigma_max": 40})
        EDM(sigma_min=0.002, sigma_max=40, rho=7)
    """
    if isinstance(description, Schedule):
        return description
    if not isinstance(description, (str, dict)):
        raise TypeError(f"schedule must be a Schedule, its name or its config: got {short(description)}")
    options = {"name": description} if isinstance(description, str) else dict(description)
    name = options.pop("name", None)
    kind = _BY_NAME.get(_ALIASES.get(str(name), str(name)))
    if kind is None:
        raise ValueError(f"schedule must be one of {', '.join(names())}: got {short(name)}")
    return kind(**options)


def stored(config: dict[str, object]) -> Schedule:
    """Build the schedule that is stored in a file.

    Files without `rescale_time` were written by versions that called every network at 1000 t/T.
    """
    schedule = build(config)
    return schedule if "rescale_time" in config or getattr(schedule, "T", 1000) == 1000 else rescaled(schedule)


def rescaled(schedule: Schedule) -> Schedule:
    """Return the schedule with network times 1000 t/T, unless it specifies others."""
    return schedule.asked_like(VPLinear(rescale_time=True))
