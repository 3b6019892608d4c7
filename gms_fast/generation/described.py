"""Objects as JSON that tells them from others: networks by weights, functions by name and by what they hold.

What changes no picture is left out: wrappers of torch, the folder that a network was loaded from, private attributes.
"""

import enum
import hashlib
import inspect
import json
from collections.abc import Mapping, Set
from functools import partial
from pathlib import PurePath
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gms_fast.assumptions import attribute, unwrapped
from gms_fast.storage import fingerprints

_DEPTH = 6  # of objects in objects
_NUMBERS = (bool, int, float, str)
_HELD = (
    *_NUMBERS,
    Tensor,
    np.ndarray,
    Mapping,
    tuple,
    partial,
    FunctionType,
    MethodType,
    torch.dtype,
)  # told of others
_ELSEWHERE = ("training", "origin", "name_or_path", "unguided")
_COMPILED = "_orig_mod."


def described(value: Any, depth: int = _DEPTH) -> Any:
    """A value as JSON; of objects no more than `depth` inside of each other."""
    if isinstance(value, (enum.Enum, PurePath, torch.dtype, complex)):
        return str(value)
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, Tensor):
        return [str(value.dtype), fingerprints.of_tensors([value])]
    if isinstance(value, (bytes, np.ndarray)):
        return _array(np.asarray(value))
    if isinstance(value, type) or depth == 0:
        return (value if isinstance(value, type) else type(value)).__qualname__
    return _composed(value, depth - 1)


def _composed(value: Any, depth: int) -> Any:
    """What holds other values."""
    if isinstance(value, nn.Module):
        return _module(unwrapped(value), depth)
    if isinstance(value, partial):
        return {"partial": [described(v, depth) for v in (value.func, value.args, value.keywords)]}
    if isinstance(value, MethodType):
        return {"method": value.__func__.__qualname__, "of": described(value.__self__, depth)}
    if inspect.isroutine(value):
        name, held = f"{value.__module__}.{value.__qualname__}", _closed_over(value)
        return {"function": name, "holds": _each(held, depth)} if held else name
    if isinstance(value, Mapping):
        return _each(value, depth)
    if isinstance(value, (tuple, list)):
        return [described(v, depth) for v in value]
    if isinstance(value, Set):
        return sorted(json.dumps(described(v, depth)) for v in value)
    inside = {name: v for name, v in getattr(value, "__dict__", {}).items() if name[:1] != "_"}
    return {type(value).__qualname__: _each(inside, depth)}


def _each(values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    return {str(name): described(value, depth) for name, value in values.items()}


def _array(array: np.ndarray) -> Any:
    if array.dtype.hasobject:
        return described(array.tolist())
    return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()]


def _closed_over(function: Any) -> dict[str, Any]:
    """Networks, tensors, numbers and the like that a function takes from around it; lists may be but its notes."""
    if not isinstance(function, FunctionType):
        return {}
    try:
        found = inspect.getclosurevars(function)
    except ValueError:  # of a name that has no value yet
        return {}
    near = {name: v for name, v in found.nonlocals.items() if isinstance(v, (*_HELD, nn.Module))}
    far = {name: v for name, v in found.globals.items() if isinstance(v, (*_NUMBERS, Tensor, nn.Module))}
    return {**far, **near}


def _module(module: nn.Module, depth: int) -> dict[str, Any]:
    """A network by what it is, and its weights."""
    tensors = {name.replace(_COMPILED, ""): v for name, v in module.state_dict().items() if isinstance(v, Tensor)}
    return {**_own(module, depth), "weights": fingerprints.of_named(tensors)}


def _own(module: nn.Module, depth: int) -> dict[str, Any]:
    """A network's class and attributes, as of guidance scales and conditions, and those of the one that it guides."""
    public = {name: v for name, v in vars(module).items() if name[:1] != "_" and name not in _ELSEWHERE}
    held = {
        name: v for name, v in public.items() if isinstance(v, _HELD) and getattr(v, "__self__", None) is not module
    }
    told = _each(held, depth)
    found = {"class": type(module).__qualname__, "attributes": told}
    if (inner := attribute(module, "unguided")) is None:
        return found
    inner = unwrapped(inner)
    guides = _own(inner, depth - 1) if isinstance(inner, nn.Module) and depth else described(inner, depth)
    return {**found, "guides": guides}
