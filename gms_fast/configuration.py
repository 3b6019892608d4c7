"""Whether work that is to be gone on with is the work asked for."""

from typing import Any


def check_same(stored: dict[str, Any], wanted: dict[str, Any], message: str) -> None:
    """Raise ValueError with the message and every setting that differs, a line each."""
    lines = [
        f"  {k}: {stored.get(k)!r} there, {wanted.get(k)!r} asked for"
        for k in sorted(stored.keys() | wanted.keys())
        if stored.get(k) != wanted.get(k)
    ]
    if lines:
        raise ValueError("\n".join([f"{message}:", *lines]))
