"""Descriptions of objects as JSON: networks by weights, functions by code and data.

Objects with equal descriptions are taken to give the same images. Details that do not change images are left out:
wrappers of torch, the folder of a network, devices. Objects of torch and of this package are described by their
versions, without code and private attributes.

Known gaps: lists, and functions that a function calls in other modules, are not described. A foreign network that
counts its calls gets another description with each call.
"""

import enum
import hashlib
import inspect
import json
import re
from collections.abc import Iterator, Mapping, Set
from contextvars import ContextVar
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gms_fast.assumptions import attribute, unwrapped
from gms_fast.storage import fingerprints

_DEPTH = 6  # levels of objects in objects
_LONG = 200  # characters up to which an attribute is described in full
_NUMBERS = (bool, int, float, str)
_HELD = (
    *_NUMBERS,
    Tensor,
    np.ndarray,
    Mapping,
    tuple,
    partial,
    FunctionType,
    BuiltinFunctionType,
    MethodType,
    enum.Enum,
    torch.dtype,
)  # attributes of these types are described
_ELSEWHERE = ("origin", "name_or_path", "source")  # attributes that tell where a network is from
_OF_TORCH = {*vars(nn.Module()), "_is_torch_compile"} - {"training"}
_KNOWN = ("torch", "gms_fast")  # packages described by their versions
_COMPILED = "_orig_mod"
_WITHIN: ContextVar[dict[nn.Module, str]] = ContextVar("_WITHIN", default={})  # noqa: B039 - never changed
_DEVICE = re.compile(r"(cpu|cuda|mps|xpu|meta)(:\d+)?")


def described(value: Any, depth: int = _DEPTH) -> Any:
    """Describe a value as JSON, with objects nested at most `depth` deep."""
    if isinstance(value, torch.device) or (isinstance(value, str) and _DEVICE.fullmatch(value)):
        return "a device"
    if isinstance(value, (enum.Enum, PurePath, torch.dtype, complex, slice)):
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
    if isinstance(value, CodeType):
        return _code(value)
    if isinstance(value, type) or depth == 0:
        return (value if isinstance(value, type) else type(value)).__qualname__
    return _composed(value, depth - 1)


def _composed(value: Any, depth: int) -> Any:
    """Describe a value that holds other values."""
    if isinstance(value, nn.Module):
        return _module(unwrapped(value), depth)
    if isinstance(value, partial):
        return {"partial": [described(v, depth) for v in (value.func, value.args, value.keywords)]}
    if isinstance(value, MethodType):
        return {"method": described(value.__func__, depth + 1), "of": described(value.__self__, depth)}
    if inspect.isroutine(value):
        return _function(value, depth)
    if isinstance(value, Mapping):
        return _each(value, depth)
    if isinstance(value, (tuple, list)):
        return [described(v, depth) for v in value]
    if isinstance(value, Set):
        return sorted(json.dumps(described(v, depth)) for v in value)
    return _object(value, depth)


def _each(values: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    """Describe each value of a mapping."""
    return {str(name): described(value, depth) for name, value in values.items()}


def _array(array: np.ndarray) -> Any:
    """Describe an array by type, shape and checksum."""
    if array.dtype.hasobject:
        return described(array.tolist())
    return [str(array.dtype), list(array.shape), hashlib.sha256(array.tobytes()).hexdigest()[:16]]


def _known(value: Any) -> bool:
    """True for objects of torch or of this package, which their version describes."""
    return str(getattr(value, "__module__", None)).partition(".")[0] in _KNOWN


def _tells(value: Any) -> bool:
    """True for values that images may depend on, unlike notes, bars and loggers."""
    return isinstance(value, (*_HELD, nn.Module)) or any(isinstance(v, nn.Module) for v in _inside(value).values())


def _inside(value: Any) -> dict[str, Any]:
    """Return the attributes of an object."""
    found: dict[str, Any] = getattr(value, "__dict__", {})
    return {} if isinstance(value, (type, ModuleType)) else found


def _object(value: Any, depth: int) -> dict[str, Any]:
    """Describe an object of an unknown kind by its attributes and the code of `__call__`."""
    kind, private = type(value), not _known(type(value))
    told = {name: v for name, v in _inside(value).items() if name[:1] != "_" or (private and _plain(v))}
    found = {kind.__qualname__: _each(told, depth)}
    if private and isinstance(call := kind.__call__, FunctionType):
        found["code"] = _function(call, depth)
    return found


# --- functions ---


def _function(function: Any, depth: int) -> Any:
    """Describe a function by name, code, and the values that it takes from outside."""
    function = getattr(function, "_torchdynamo_orig_callable", function)
    name = f"{function.__module__}.{function.__qualname__}"
    if not isinstance(function, FunctionType):
        return name
    found: dict[str, Any] = {"function": name}
    if not _known(function):
        found["code"] = fingerprints.of_values([_written(part, depth) for part in _called(function)])
    if held := _each(_closed_over(function), depth):
        found["holds"] = held
    return found if len(found) > 1 else name


def _called(function: FunctionType) -> list[FunctionType]:
    """Return the function and those of its own module that it calls, directly or not."""
    found = [function]
    for each in found:
        for called in map(each.__globals__.get, _names(each.__code__)):
            if isinstance(called, FunctionType) and called.__module__ == function.__module__ and called not in found:
                found.append(called)
    return found


def _written(function: FunctionType, depth: int) -> list[Any]:
    """Describe a function's code, defaults and outside values."""
    defaults = described([function.__defaults__, function.__kwdefaults__], depth + 2)
    return [_code(function.__code__), defaults, _each(_closed_over(function), depth)]


def _code(code: CodeType) -> str:
    """Return 16 digits of code, independent of file and line."""
    return fingerprints.of_values(code.co_code.hex(), code.co_names, [described(v) for v in code.co_consts])


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names of globals and attributes in a function and its inner functions."""
    yield from code.co_names
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _names(value)


def _closed_over(function: FunctionType) -> dict[str, Any]:
    """Describe the networks, tensors and numbers that a function takes from outside.

    Lists are skipped, as they may hold notes. Of other objects, such as parsed arguments, and of modules only the
    attributes named in the code count.
    """
    code, names = function.__code__, {*_names(function.__code__)}
    far = {name: function.__globals__[name] for name in names if name in function.__globals__}
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    near = {name: cell.cell_contents for name, cell in cells if cell != CellType()}  # an empty cell has no value yet
    found = {name: v for name, v in far.items() if not inspect.isroutine(v)} | near
    told = {name: v if _tells(v) else _named(v, names) for name, v in sorted(found.items()) if not isinstance(v, type)}
    return {name: v for name, v in told.items() if v is not None}


def _named(value: Any, names: set[str]) -> dict[str, Any] | None:
    """Return the attributes of an object, or the numbers of a module, with one of these names."""
    tells = _plain if isinstance(value, ModuleType) else _tells
    found = {name: v for name, v in getattr(value, "__dict__", {}).items() if name in names and tells(v)}
    return found or None


# --- networks ---


def _module(module: nn.Module, depth: int) -> Any:
    """Describe a network by class, layers and weights; one of its own layers by its name."""
    within = _WITHIN.get()
    if module in within:
        return {"layer": within[module]}
    names = {part: _uncompiled(name) for name, part in module.named_modules() if unwrapped(part) is part}
    state = {**dict(module.named_buffers()), **module.state_dict()}  # some buffers are not in the state dict
    weights = fingerprints.of_named({_uncompiled(name): v for name, v in state.items() if isinstance(v, Tensor)})
    token = _WITHIN.set({**within, **names})
    try:
        layers = sorted((name, _told(part, depth)) for part, name in names.items() if part is not module)
        inside = {"layers": fingerprints.of_values(layers)} if layers else {}
        return {**_own(module, depth), **inside, "weights": weights}
    finally:
        _WITHIN.reset(token)


def _uncompiled(name: str) -> str:
    """Remove the parts of a weight's or layer's name that torch.compile adds."""
    return ".".join(part for part in name.split(".") if part != _COMPILED)


def _own(module: nn.Module, depth: int) -> dict[str, Any]:
    """Describe a network's class and attributes, and the network that it guides."""
    found = _told(module, depth)
    found["attributes"] = {name: _short(value) for name, value in found["attributes"].items()}
    if (inner := attribute(module, "unguided")) is None:
        return found
    inner = unwrapped(inner)
    guides = _own(inner, depth - 1) if isinstance(inner, nn.Module) and depth else described(inner, depth)
    return {**found, "guides": guides}


def _told(module: nn.Module, depth: int) -> dict[str, Any]:
    """Describe a layer's class, attributes and code, without its weights and inner layers."""
    private = not _known(type(module))
    held = {name: v for name, v in vars(module).items() if _counts(name, v, private)}
    if config := _config(module):
        held["config"] = config
    found = {"class": type(module).__qualname__, "attributes": _each(held, depth)}
    if shown := module.extra_repr():
        found["shown"] = shown
    if private and isinstance(forward := inspect.unwrap(type(module).forward), FunctionType):
        found["code"] = _code(forward.__code__)
    return found


def _counts(name: str, value: Any, private: bool) -> bool:
    """True for attributes that images may depend on."""
    if name in _OF_TORCH or name == "unguided":
        return False
    if name.lstrip("_") in _ELSEWHERE and isinstance(value, (str, Mapping)):
        return False
    return private and _plain(value) if name[:1] == "_" else isinstance(value, _HELD)


def _plain(value: Any) -> bool:
    """True for numbers, text and tuples of these."""
    return all(map(_plain, value)) if isinstance(value, tuple) else isinstance(value, _NUMBERS)


def _config(module: nn.Module) -> dict[str, Any]:
    """Return the configuration that a library's network keeps, without the library's own notes."""
    config = getattr(module, "config", None)
    return {k: v for k, v in config.items() if str(k)[:1] != "_"} if isinstance(config, Mapping) else {}


def _short(value: Any) -> Any:
    """Return a description, or 16 digits of a long one."""
    return value if len(json.dumps(value)) <= _LONG else fingerprints.of_values(value)
