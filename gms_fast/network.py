"""What the sampling loop and the measurements ask of a model: how it is described, a weight, and a call."""

from collections.abc import Callable

import torch
from torch import Tensor

from gms_fast import prediction
from gms_fast.schedules import Schedule
from gms_fast.types import NoiseMoments


def described(model: object, schedule: Schedule | str | None, form: str | None) -> tuple[Schedule | str, str]:
    """The schedule, or its name, and the form of prediction: given, or the model's own.

    Raises TypeError or ValueError naming the argument.
    """
    if not callable(model):
        raise TypeError(f"model must be callable as model(x, t): got {type(model).__name__}")
    schedule = schedule if schedule is not None else getattr(model, "schedule", None)
    if schedule is None:
        raise ValueError("schedule must be given: this model has no attribute `schedule`")
    if not isinstance(schedule, (Schedule, str)):
        raise TypeError(f"schedule must be a schedule or its name: got {schedule!r}")
    form = form or getattr(model, "prediction", "noise")
    if form not in prediction.names():
        raise ValueError(f"prediction must be one of {', '.join(prediction.names())}: got {form!r}")
    return schedule, form


def weight_of(model: object) -> Tensor | None:
    """A parameter that tells device and dtype of the network."""
    parameters = model.parameters() if isinstance(model, torch.nn.Module) else ()
    for weight in parameters:  # next(.., None) is more than torch 2.8 compiles
        return weight
    return None


def call(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments], x: Tensor, time: Tensor, *, first: bool = False
) -> Tensor | NoiseMoments:
    """The model's output at x in the dtype of its weights: a float32 state may have a bfloat16 network.

    first  E[eps|x_t] alone, from models that have `first_moment` for it and save the rest
    """
    weight = weight_of(model)
    said = getattr(model, "first_moment", model) if first else model
    return said(x if weight is None else x.to(weight.dtype), time)
