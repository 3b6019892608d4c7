"""The origin of a table: the schedule, and the network by a fingerprint of its parameters."""

from collections.abc import Callable

import torch
from torch import Tensor

from gms_fast.assumptions import unwrapped
from gms_fast.schedules import Schedule
from gms_fast.storage import fingerprints


def other_schedule(own: Schedule, other: Schedule, times: Tensor) -> list[str]:
    """A line if the other schedule differs at the times of what was made for the own one; else none."""
    if own.agrees(other, times):
        return []
    return [f"schedule: {own!r} there, {other!r} here, of other noise levels or network times"]


def other_network(own: str | None, model: Callable[..., object] | None) -> list[str]:
    """A line if the model, if given, has another fingerprint than the own one, if that is known; else none."""
    found = None if model is None or own is None else fingerprint(model)
    return [] if found is None or found == own else [f"network: {own} there, {found} here"]


def fingerprint(model: Callable[..., object]) -> str | None:
    """16 hexadecimal digits that tell a network's parameters from others; None for what has no parameters.

    Names, shapes, and values rounded to bfloat16: casting a network to bfloat16, or one that was loaded from a
    half-precision file to half precision, keeps them, and so does `torch.compile`.
    """
    model = unwrapped(getattr(unwrapped(model), "unguided", model))  # statistics are those of the network alone
    parameters = dict(model.named_parameters()) if isinstance(model, torch.nn.Module) else {}
    if not parameters:
        return None
    named = {name.replace("_orig_mod.", ""): value.detach().to(torch.bfloat16) for name, value in parameters.items()}
    return fingerprints.of_named(named)
