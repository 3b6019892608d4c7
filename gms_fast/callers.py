"""Place in a user's code that a warning is about."""

import sys
from pathlib import Path

_PACKAGE = str(Path(__file__).parent)
_BETWEEN = ("torch", "contextlib", "sys")  # modules that call us for the user


def stacklevel() -> int:
    """Return the `stacklevel` of `warnings.warn` for the first caller outside us and torch."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None:
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if module not in _BETWEEN and not frame.f_code.co_filename.startswith(_PACKAGE):
            break
        frame, level = frame.f_back, level + 1
    return level
