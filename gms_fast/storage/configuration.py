"""Compare the configuration of a stored run with the requested one before it is resumed."""

from typing import Any

from gms_fast.storage.schema import short

_FEW, _LONG = 30, 1000  # lines, and characters of a value


def check_same(stored: dict[str, Any], wanted: dict[str, Any], message: str) -> None:
    """Raise ValueError with `message` and the first settings that differ, one a line."""
    lines = [
        f"  {k if k.isprintable() else short(k)}: {short(stored.get(k), _LONG)} there, "
        f"{short(wanted.get(k), _LONG)} asked for"
        for k in sorted(stored.keys() | wanted.keys())
        if stored.get(k) != wanted.get(k)
    ]
    if lines:
        raise ValueError("\n".join([f"{message}:", *lines[:_FEW], *(["  ..."] if len(lines) > _FEW else [])]))
