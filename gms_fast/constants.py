"""Solvers and schedules as constants of a compiled graph.

torch.compile accepts numbers, strings and classes as constants, but no objects. torch 2.11 refuses them, and torch
2.13 gives an object made inside the compiled function the defaults of its class. So an object is passed by its id, and
one made inside the compiled function by its class and fields.
"""

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])
_KNOWN: dict[int, "Identified"] = {}  # never freed: graphs refer to these objects by id, which must stay unique


def function(f: F) -> F:
    """Make torch.compile call `f` while tracing and treat its plain result as a constant."""
    # As torch.compiler.assume_constant_result, which takes a second to import.
    vars(f)["_dynamo_marked_constant"] = True
    return f


class Identified:
    """Object that a compiled graph knows by identity.

    Another object, even an equal one, makes another graph.

    Attributes:
        unplanned: Names of attributes that nothing computed before the loop depends on.
    """

    unplanned: tuple[str, ...] = ()

    @function
    def keep(self) -> bool:
        """Let `unpack` find this object by its id.

        False for objects without attributes, such as those that the graph makes.
        """
        if vars(self):
            _KNOWN[id(self)] = self
            return True
        if not is_dataclass(self) and type(self).__init__ is not object.__init__:
            raise TypeError(f"{type(self).__name__} must be made outside of the compiled function")
        return False


def pack(value: Any) -> Any:
    """Return constants that stand for an `Identified` object or a constant; for traced code."""
    if not isinstance(value, Identified):
        return value
    if value.keep():
        return Identified, id(value)
    given: list[str] = [field.name for field in fields(value) if field.init] if is_dataclass(value) else []
    unplanned = value.unplanned
    return type(value), tuple((name, None if name in unplanned else pack(getattr(value, name))) for name in given)


def unpack(value: Any) -> Any:
    """Return the object or constant that `pack` packed."""
    if not (isinstance(value, tuple) and value and isinstance(value[0], type)):
        return value
    kind, content = value
    return _KNOWN[content] if kind is Identified else kind(**{name: unpack(packed) for name, packed in content})
