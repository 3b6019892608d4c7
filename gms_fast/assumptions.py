"""Attributes of a model, and the assumptions where it has none (docs/models.md)."""

import inspect
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd as _Dropout

from gms_fast import prediction, schedules
from gms_fast.schedules import Schedule
from gms_fast.types import as_range

UNSAID = "model"  # default of `clip`: the model's attribute, else PICTURES
PICTURES = (-1.0, 1.0)
MOMENTS = ("raw", "central")
_INNER = ("module", "_orig_mod", "_fsdp_wrapped_module")  # attributes of torch's own wrappers
_NOTHING = object()
_DEPTH, _LOOKED_AT = 3, 64  # levels and objects searched inside a wrapper of unknown kind


def layers(model: object) -> Iterator[Any]:
    """Yield the model and the models inside wrappers that change nothing.

    Such wrappers are torch's own, partials, methods and decorated functions.
    """
    seen: list[object] = []
    while model is not None and not any(model is other for other in seen):
        seen.append(model)
        yield model
        model = _inner(model)


def unwrapped(model: object) -> Any:
    """Return the innermost model, inside all wrappers that change nothing."""
    for layer in layers(model):
        last = layer
    return last


def _inner(model: object) -> object | None:
    if isinstance(model, partial):
        return model.func
    if isinstance(model, types.MethodType):
        return model.__self__
    if type(model).__module__.partition(".")[0] == "torch":
        for name in _INNER:
            found = getattr(model, name, None)
            if callable(found):
                return found
    return getattr(model, "__wrapped__", None) if isinstance(model, types.FunctionType) else None


def attribute(model: object, name: str, default: Any = None) -> Any:
    """Return the model's attribute, also from inside wrappers that change nothing.

    An attribute that is None counts as missing, except `clip`, where None means no data range.
    """
    if torch.compiler.is_compiling():
        return getattr(model, name, default)
    for layer in layers(model):
        found = getattr(layer, name, _NOTHING)
        if found is not _NOTHING and (found is not None or name == "clip"):
            return found
    return default


def _parts(model: object) -> Iterator[object]:
    """Yield the parts of an object of unknown kind that may be models."""
    if isinstance(model, torch.nn.Module):
        yield from model.children()
    elif isinstance(model, types.FunctionType):
        yield from inspect.getclosurevars(model).nonlocals.values()
    yield from (value for value in getattr(model, "__dict__", {}).values() if callable(value))


def _hidden(model: object, name: str, fits: Callable[[Any], bool]) -> tuple[object, Any] | None:
    """Find the first (owner, value) of an attribute inside a wrapper of unknown kind."""
    level, seen = list(layers(model)), set[int]()
    for _ in range(_DEPTH):
        level = [part for owner in level for part in _parts(owner)]
        for part in level:
            if id(part) in seen or len(seen) > _LOOKED_AT or isinstance(part, type):
                continue
            seen.add(id(part))
            if name not in getattr(part, "__dict__", ()) and not hasattr(type(part), name):
                continue  # getattr of a module takes ten times as long for a missing attribute
            value = getattr(part, name, _NOTHING)
            if value is not _NOTHING and fits(value):
                return part, value
    return None


def _is_range(value: Any) -> bool:
    try:
        return value is None or bool(as_range(value))
    except ValueError:
        return False


_FITS: dict[str, Callable[[Any], bool]] = {
    "schedule": lambda value: isinstance(value, Schedule) or (isinstance(value, str) and value in schedules.names()),
    "sample_shape": lambda value: isinstance(value, (tuple, list)) and all(isinstance(n, int) for n in value),
    "prediction": lambda value: isinstance(value, str) and value in prediction.names(),
    "moments": lambda value: isinstance(value, str) and value in MOMENTS,
    "clip": _is_range,
}


def _assumed(model: object, name: str, value: Any) -> Any:
    """Return `value`; warn if a model inside has another."""
    if torch.compiler.is_compiling():
        return value
    hidden = _hidden(model, name, _FITS[name])
    if hidden is not None and hidden[1] != value:
        owner, said = hidden
        warnings.warn(
            f"model has no attribute `{name}`, so {value!r} is assumed, but the {type(owner).__name__} inside it has "
            f"{name} = {said!r}: set the attribute on the model itself, or use gms_fast.models.wrap(model, ..)",
            stacklevel=6,  # whoever called `sample`
        )
    return value


def _warn_of_training(model: object) -> None:
    """Warn of a module in training mode whose dropout or batch statistics change samples."""
    module = None if torch.compiler.is_compiling() else unwrapped(model)
    if not isinstance(module, torch.nn.Module) or not module.training:
        return
    for name, part in module.named_modules():
        dropout = isinstance(part, _Dropout) and part.p > 0
        if part.training and (dropout or isinstance(part, _BatchNorm)):
            warnings.warn(
                f"model is in training mode, where its {type(part).__name__} ({name or 'the model'}) changes samples: "
                "call model.eval() first",
                stacklevel=6,  # whoever called `sample`
            )
            return


def missing(model: object, name: str, argument: str | None = None) -> str:
    """Return the error message for an attribute that is missing.

    argument: name of the argument of `sample` that replaces it, if that differs.
    """
    hidden = _hidden(model, name, _FITS[name])
    hint = f"; the {type(hidden[0]).__name__} inside it has {hidden[1]!r}" if hidden else ""
    return f"{argument or name} must be given: this model has no attribute `{name}`{hint}"


@dataclass(frozen=True, kw_only=True)
class Description:
    """Description of a model, from the call, the model, or assumptions.

    Args:
        schedule: Schedule or its name.
        own: The model's own schedule, which fixes the network times if `schedule` does not.
        prediction: Meaning of a single output tensor.
        moments: "raw" or "central".
        clip: Data range, or None.
        clip_assumed: Whether neither the call nor the model has a data range.
    """

    schedule: Schedule | str
    own: Schedule | None
    prediction: str
    moments: str
    clip: tuple[float, float] | None
    clip_assumed: bool

    @property
    def central(self) -> bool:
        """Tell whether the second and third moments are about e1."""
        return self.moments == "central"

    def built(self) -> Schedule:
        """Return the schedule; network times that it does not fix are the model's own."""
        return schedules.build(self.schedule).asked_like(self.own)


def scheduled(model: object, schedule: Schedule | str | None) -> tuple[Schedule | str, Schedule | None]:
    """Return (the given schedule or the model's, the model's own).

    Raises TypeError or ValueError.
    """
    if not callable(model):
        raise TypeError(f"model must be callable as model(x, t): got {type(model).__name__}")
    own = attribute(model, "schedule")
    schedule = own if schedule is None else schedule
    if schedule is None:
        raise ValueError(missing(model, "schedule"))
    if not isinstance(schedule, (Schedule, str)):
        raise TypeError(f"schedule must be a Schedule or its name: got {schedule!r}")
    return schedule, own if isinstance(own, Schedule) else None


def ranged(model: object, clip: Any) -> tuple[tuple[float, float] | None, bool]:
    """Return (the given data range or the model's, whether it is assumed)."""
    assumed = False
    if isinstance(clip, str) and clip == UNSAID:
        clip = attribute(model, "clip", _NOTHING)
        assumed = clip is _NOTHING
        clip = PICTURES if assumed else clip
    return (None if clip is None else as_range(clip)), assumed


def describe(model: object, schedule: Schedule | str | None, form: str | None, clip: Any = UNSAID) -> Description:
    """Collect the call's arguments, else the model's attributes, else the assumptions.

    Raises TypeError or ValueError naming the argument.
    """
    schedule, own = scheduled(model, schedule)
    if attribute(model, "self_condition") is True:
        raise ValueError(
            "model is self-conditioned (self_condition = True): it expects its last estimate of x_0 as an input, which "
            "no solver passes on; wrap it in a callable (x, t) that does, or train it without self-conditioning"
        )
    _warn_of_training(model)
    form = form or attribute(model, "prediction") or _assumed(model, "prediction", "noise")
    if form not in prediction.names():
        raise ValueError(f"prediction must be one of {', '.join(prediction.names())}: got {form!r}")
    moments = attribute(model, "moments") or _assumed(model, "moments", "raw")
    if moments not in MOMENTS:
        raise ValueError(f'model.moments must be "raw" or "central": got {moments!r}')
    clip, assumed = ranged(model, clip)
    if assumed:
        _assumed(model, "clip", clip)
    return Description(schedule=schedule, own=own, prediction=form, moments=moments, clip=clip, clip_assumed=assumed)
