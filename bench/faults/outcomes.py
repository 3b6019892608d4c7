"""Rules that every call of an op must satisfy.

A call with valid arguments gives the same bits as the call on contiguous copies of its tensors. It changes nothing but
the elements of `out`. A call with an invalid argument raises ValueError or TypeError.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

import gms_fast
from gms_fast import ops

Arguments = dict[str, object]


class Call(NamedTuple):
    """Call of an op.

    Args:
        op: Name of the op.
        arguments: Arguments by name.
        wrong: Name of the argument that must be refused, if any.
        backend: Backend to call; None: the default.
    """

    op: str
    arguments: Arguments
    wrong: str = ""
    backend: str | None = None

    def __str__(self) -> str:
        given = ", ".join(f"{name}={_shown(value)}" for name, value in self.arguments.items())
        return f"ops.{self.op}({given})" + (f" on {self.backend}" if self.backend else "")


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)} strides {value.stride() if value.layout is torch.strided else '-'}"
    return f"[{', '.join(map(_shown, value))}]" if isinstance(value, (list, tuple)) else repr(value)


def check(call: Call) -> str | None:
    """Make a call; return its fault, or None."""
    before, copies = _memory(call.arguments), {} if call.wrong else _each(call.arguments, _copy)
    with _on(call.backend):
        found = _outcome(call.op, call.arguments)
        fault = _refusal(found) if call.wrong else _difference(found, _outcome(call.op, copies), call.arguments)
    fault = fault or _changed(before, call.arguments, written=not call.wrong)
    return fault and f"{fault}: {call}"


@contextmanager
def _on(backend: str | None) -> Iterator[None]:
    gms_fast.set_backend(backend)
    try:
        yield
    finally:
        gms_fast.set_backend(None)


def _outcome(op: str, arguments: Arguments) -> tuple[Tensor, ...] | Exception:
    try:
        result = getattr(ops, op)(**arguments)
    except Exception as error:
        return error
    return result if isinstance(result, tuple) else (result,)


def _refusal(found: object) -> str | None:
    if isinstance(found, (ValueError, TypeError)) and str(found):
        return None
    return f"refused by {type(found).__name__}: {found}" if isinstance(found, Exception) else "not refused"


def _difference(found: object, wanted: object, arguments: Arguments) -> str | None:
    """Compare a call's results with those on copies, and with the requested `out` or layout."""
    for result, where in ((found, ""), (wanted, " on copies")):
        if isinstance(result, Exception):
            return f"refused{where}: {type(result).__name__}: {result}"
    first, out = next(iter(arguments.values())), arguments.get("out")
    if out is not None and found[0] is not out:
        return "another tensor than out is returned"
    if isinstance(first, Tensor) and out is None:
        like = torch.empty_like(first)
        if any((t.dtype, t.shape, t.stride()) != (like.dtype, like.shape, like.stride()) for t in found):
            return "dtype or layout are not those of the first tensor"
    same = len(found) == len(wanted) and all(map(_equal, found, wanted))
    return None if same else "other bits than on contiguous copies"


def _equal(a: Tensor, b: Tensor) -> bool:
    """Return True for equal bits; the bits of NaN do not count."""
    if a.dtype != b.dtype or a.shape != b.shape or not torch.equal(a.isnan(), b.isnan()):
        return False
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.itemsize]
    return torch.equal(*(t.masked_fill(t.isnan(), 0).contiguous().view(integers) for t in (a, b)))


def _each(value: object, change: Callable[[Tensor], object]) -> object:
    """Return `value` with every tensor in it changed."""
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, dict):
        return {key: _each(item, change) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_each(item, change) for item in value)
    return value


def _copy(tensor: Tensor) -> Tensor:
    return tensor.resolve_neg().clone(memory_format=torch.contiguous_format)


def _storages(arguments: Arguments) -> dict[int, Tensor]:
    """Return the bytes of all tensors' storages, by address."""
    found: dict[int, Tensor] = {}

    def note(tensor: Tensor) -> None:
        if tensor.layout is torch.strided and tensor.device.type == "cpu":
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = torch.empty(0, dtype=torch.uint8).set_(storage)

    _each(arguments, note)
    return found


def _memory(arguments: Arguments) -> dict[int, Tensor]:
    return {address: content.clone() for address, content in _storages(arguments).items()}


def _changed(before: dict[int, Tensor], arguments: Arguments, *, written: bool) -> str | None:
    """Return a fault if anything but the elements of `out` has changed.

    `written` says that `out` may change.
    """
    out = arguments.get("out")
    if written and out is not None:
        memory = before[out.untyped_storage().data_ptr()].view(out.dtype)
        memory.as_strided(out.shape, out.stride(), out.storage_offset()).copy_(out)
    same = all(torch.equal(content, before[address]) for address, content in _storages(arguments).items())
    return None if same else "memory was changed that is not an element of out"
