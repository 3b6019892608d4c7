"""Types, ranges and lengths of plain values, for arguments and for the contents of files.

A `Want` describes allowed values, and its `str` is that description. `check` raises an error that names the file and
the key of a wrong value; `argument` raises one that names the argument.
"""

import math
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeGuard, TypeVar

_LONGEST, _NODES = 160, 1_000_000
Given = TypeVar("Given")


class _Shaped(Protocol):
    """Array or tensor, recognised by its attributes so that torch is not imported here."""

    @property
    def shape(self) -> Iterable[int]: ...

    @property
    def dtype(self) -> object: ...


class _Repr(reprlib.Repr):
    """Short text of values; tensors, which torch prints at length, by shape and dtype."""

    def repr_instance(self, x: object, level: int) -> str:
        """Return the text of any object that is not of a built-in type."""
        return _tensor(x) if _is_tensor(x) else super().repr_instance(x, level)

    def repr_bytes(self, x: bytes, level: int) -> str:
        """Return the text of bytes, formatting no more of them than are shown."""
        return self.repr_instance(x[: self.maxother], level)


def _is_tensor(value: object) -> TypeGuard[_Shaped]:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _tensor(value: _Shaped) -> str:
    return f"a tensor {tuple(value.shape)} of {value.dtype}"


_SHORT = _Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 100
_SHORT.maxlist = _SHORT.maxtuple = 8
_SHORT.maxdict = 20
_SHORT.maxlevel = 3


class MismatchError(ValueError):
    """A value that does not match its description, with its key."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(f"{key} {text}" if key else text)


class Want:
    """Description of allowed values; `str` gives it as text."""

    def fits(self, value: object) -> bool:
        """Return True for an allowed value."""
        raise NotImplementedError

    def check(self, value: object, key: str) -> None:
        """Raise `MismatchError` that names the wrong key, or the wrong key inside of it."""
        if not self.fits(value):
            raise MismatchError(key, f"is {short(value)}, wanted {self}")


@dataclass(frozen=True)
class Integer(Want):
    """An integer from `low` to `high`; True and False do not count."""

    low: int | None = None
    high: int | None = None

    def fits(self, value: object) -> bool:
        if not isinstance(value, int) or isinstance(value, bool):
            return False
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        if self.low is None:
            return "an integer"
        return (
            f"an integer of at least {self.low}" if self.high is None else f"an integer from {self.low} to {self.high}"
        )


@dataclass(frozen=True)
class Real(Want):
    """A number in [low, high], or in [low, high) if `open`.

    It is finite unless `infinite`, and may be NaN only if `nan`.
    """

    low: float = -math.inf
    high: float = math.inf
    open: bool = field(default=False, kw_only=True)
    infinite: bool = field(default=False, kw_only=True)
    nan: bool = field(default=False, kw_only=True)

    def fits(self, value: object) -> bool:
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            return False
        if isinstance(value, int) and value.bit_length() > 1023:  # too large for a float
            return False
        if math.isnan(value) or math.isinf(value):
            return self.nan if math.isnan(value) else self.infinite
        return self.low <= value and (value < self.high if self.open else value <= self.high)

    def __str__(self) -> str:
        name = "a number" if self.infinite else "a finite number"
        if (self.low, self.high) == (-math.inf, math.inf):
            return name
        return f"{name} in [{self.low:g}, {self.high:g}{')' if self.open or self.high == math.inf else ']'}"


@dataclass(frozen=True)
class Flag(Want):
    """True or False."""

    def fits(self, value: object) -> bool:
        return isinstance(value, bool)

    def __str__(self) -> str:
        return "True or False"


@dataclass(frozen=True)
class Text(Want):
    """A string of at most `longest` characters."""

    longest: int = 1000

    def fits(self, value: object) -> bool:
        return isinstance(value, str) and len(value) <= self.longest

    def __str__(self) -> str:
        return f"text of at most {self.longest} characters"


@dataclass(frozen=True)
class Choice(Want):
    """One of `values`, also equal in type."""

    values: tuple[object, ...]

    def fits(self, value: object) -> bool:
        return any(type(value) is type(v) and value == v for v in self.values)

    def __str__(self) -> str:
        return "one of " + ", ".join(map(repr, self.values)) if len(self.values) > 1 else repr(self.values[0])


@dataclass(frozen=True)
class Optional(Want):
    """None, or a value that fits `of`."""

    of: Want

    def fits(self, value: object) -> bool:
        return value is None or self.of.fits(value)

    def check(self, value: object, key: str) -> None:
        if value is not None:
            self.of.check(value, key)

    def __str__(self) -> str:
        return f"{self.of}, or None"


@dataclass(frozen=True)
class Listed(Want):
    """A list or tuple of `shortest` to `longest` values."""

    of: Want
    longest: int
    shortest: int = 0

    def fits(self, value: object) -> bool:
        if not isinstance(value, (list, tuple)) or not self.shortest <= len(value) <= self.longest:
            return False
        return all(map(self.of.fits, value))

    def check(self, value: object, key: str) -> None:
        if not isinstance(value, (list, tuple)) or not self.shortest <= len(value) <= self.longest:
            counted = f" of {len(value)}" if isinstance(value, (list, tuple)) else ""
            raise MismatchError(key, f"is {short(value)}{counted}, wanted {self}")
        for i, item in enumerate(value):
            self.of.check(item, f"{key}[{i}]")

    def __str__(self) -> str:
        count = f"{self.shortest}" if self.shortest == self.longest else f"{self.shortest} to {self.longest}"
        return f"a list of {count}, each {self.of}"


@dataclass(frozen=True)
class Either(Want):
    """A value that fits one description or the other."""

    one: Want
    other: Want

    def fits(self, value: object) -> bool:
        return self.one.fits(value) or self.other.fits(value)

    def __str__(self) -> str:
        return f"{self.one}, or {self.other}"


@dataclass(frozen=True)
class Fields(Want):
    """A mapping with given keys.

    Args:
        wanted: Required keys and their values.
        optional: Optional keys and their values.
        others: Values of any other key, which must be text; None: other keys are refused.
    """

    wanted: Mapping[str, Want]
    optional: Mapping[str, Want] = field(default_factory=dict)
    others: Want | None = None

    def fits(self, value: object) -> bool:
        try:
            self.check(value, "")
        except MismatchError:
            return False
        return True

    def check(self, value: object, key: str) -> None:
        if not isinstance(value, dict):
            raise MismatchError(key or "it", f"is {short(value)}, wanted {self}")
        place = f"{key}." if key else ""
        for name in value:
            if not isinstance(name, str):
                raise MismatchError(key or "it", f"has a key {short(name)}, wanted text")
            if name not in self.wanted and name not in self.optional and self.others is None:
                known = ", ".join([*self.wanted, *self.optional]) or "none"
                raise MismatchError(f"{place}{_name(name)}", f"is not known, wanted some of {known}")
        for name, want in self.wanted.items():
            if name not in value:
                raise MismatchError(f"{place}{_name(name)}", f"is missing, wanted {want}")
        for name, item in value.items():
            if kind := self.wanted.get(name) or self.optional.get(name) or self.others:  # always true here
                kind.check(item, f"{place}{_name(name)}")

    def __str__(self) -> str:
        return "names with values" + (f": {', '.join(self.wanted)}" if self.wanted else "")


@dataclass(frozen=True)
class Plain(Want):
    """None, numbers, text, and lists and mappings of these with text keys; at most a million.

    Shared parts count each time they occur.
    """

    def fits(self, value: object) -> bool:
        left, todo = _NODES, [value]
        while todo and left:
            left -= 1
            item = todo.pop()
            if isinstance(item, dict) and all(isinstance(key, str) for key in item):
                todo += item.values()
            elif isinstance(item, (list, tuple)):
                todo += item
            elif not (item is None or isinstance(item, (bool, int, float, str))):
                return False
            if len(todo) > left:
                return False
        return not todo

    def __str__(self) -> str:
        return "numbers, text, lists and mappings by text"


def check(where: object, value: object, want: Want, key: str = "") -> None:
    """Raise ValueError that names the file or place, the key, the value and what is allowed.

    The place may be empty if the caller adds it.
    """
    try:
        want.check(value, key)
    except MismatchError as error:
        raise ValueError(f"{where}: {error}" if where else str(error)) from None


def argument(name: str, value: Given, want: Want) -> Given:
    """Return an argument's value if it fits `want`, else raise ValueError.

    Numbers of other libraries become Python's.
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()
    if not want.fits(value):
        raise ValueError(f"{name} must be {want}: got {short(value)}")
    return value


def short(value: object, longest: int = _LONGEST) -> str:
    """Describe any value, however large, in one line of at most `longest` characters."""
    if _is_tensor(value):
        return _tensor(value)
    try:
        text = _SHORT.repr(value)
    except ValueError:  # an integer with more digits than Python prints
        return f"a {type(value).__name__} too long to show"
    text = " ".join(text.split())
    return text if len(text) <= longest else text[: longest - 3] + "..."


def _name(key: str) -> str:
    return key if key.isidentifier() and len(key) <= 60 else short(key)
