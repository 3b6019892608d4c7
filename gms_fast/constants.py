"""Solvers and schedules as constants of a compiled graph.

torch.compile takes numbers, strings and classes for constants, but no objects: torch 2.11 refuses them, and torch 2.13
gives an object that the compiled function makes the defaults of its class. So an object travels as an id, and one
that the compiled function makes as its class and fields.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
_KNOWN: dict[int, "Identified"] = {}  # kept for good: graphs know these objects by id, which no other may get


def function(f: F) -> F:
    """Make torch.compile call `f` while it traces and take the result, plain values, for a constant."""
    # As torch.compiler.assume_constant_result, which takes a second to import.
    vars(f)["_dynamo_marked_constant"] = True
    return f


class Identified:
    """An object that a compiled graph knows by its identity: another one, even an equal one, makes another graph.

    unplanned  attributes that nothing depends on which is computed before the loop
    """

    unplanned: tuple[str, ...] = ()

    @function
    def keep(self) -> bool:
        """Let `unpack` find this object by its id; False for one without attributes, as those that the graph makes."""
        if vars(self):
            _KNOWN[id(self)] = self
            return True
        if not is_dataclass(self) and type(self).__init__ is not object.__init__:
            raise TypeError(f"{type(self).__name__} must be made outside of the compiled function")
        return False


def pack(value: Any) -> Any:
    """Constants that stand for an `Identified` object or for a constant; for traced code."""
    if not isinstance(value, Identified):
        return value
    if value.keep():
        return Identified, id(value)
    given: list[str] = [field.name for field in fields(value) if field.init] if is_dataclass(value) else []
    unplanned = value.unplanned
    return type(value), tuple((name, None if name in unplanned else pack(getattr(value, name))) for name in given)


def unpack(value: Any) -> Any:
    """The inverse of `pack`."""
    if not (isinstance(value, tuple) and value and isinstance(value[0], type)):
        return value
    kind, content = value
    return _KNOWN[content] if kind is Identified else kind(**{name: unpack(packed) for name, packed in content})
