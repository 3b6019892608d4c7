"""Origin of a table: its schedule, and its network by a fingerprint of the parameters."""

from collections.abc import Callable

import torch
from torch import Tensor

from gms_fast.assumptions import unwrapped
from gms_fast.schedules import Schedule
from gms_fast.storage import fingerprints


def other_schedule(own: Schedule, other: Schedule, times: Tensor) -> list[str]:
    """Describe the difference if another schedule differs at these times; else return []."""
    if own.agrees(other, times):
        return []
    return [f"schedule {own!r}, not {other!r}, which has other noise levels or network times"]


def other_network(own: str | None, model: Callable[..., object] | None) -> list[str]:
    """Describe the difference if the model has another fingerprint; else return [].

    A missing model, or an unknown fingerprint, counts as equal.
    """
    found = None if model is None or own is None else fingerprint(model)
    return [] if found is None or found == own else [f"network {own}, not {found}"]


def fingerprint(model: Callable[..., object]) -> str | None:
    """Return a fingerprint of a network's parameters: 16 hexadecimal digits.

    It covers names, shapes, and values rounded to bfloat16. Casting a network to bfloat16 keeps it, and so does
    `torch.compile`. A network loaded from a half-precision file keeps it when cast to half precision.

    Args:
        model: Network; wrappers of guidance and of torch are removed first.

    Returns:
        The digits, or None for a model without parameters.

    Examples:
        >>> gms_fast.statistics.fingerprint(gms_fast.load("digits"))
        'f6dd6d46d48116d3'
    """
    model = unwrapped(getattr(unwrapped(model), "unguided", model))  # statistics are those of the network alone
    parameters = dict(model.named_parameters()) if isinstance(model, torch.nn.Module) else {}
    if not parameters:
        return None
    named = {name.replace("_orig_mod.", ""): value.detach().to(torch.bfloat16) for name, value in parameters.items()}
    return fingerprints.of_named(named)
