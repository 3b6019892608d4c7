"""Bounded reading of files that may be damaged: one type of error, and limits for JSON."""

import errno
import json
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from gms_fast.storage import schema
from gms_fast.storage.schema import Want, short

LONGEST_JSON = 24 << 20  # bytes; parsed values may take twelve times as much memory, text four times
LITTLE = 64 << 20  # unpacked bytes that are always allowed
_MOST_CONTAINERS = 1 << 18  # lists and mappings, which take more memory than their text
_REASON = 300  # most characters kept of a library's message


def most(size: int, times: int) -> int:
    """Return the most bytes that a compressed file may unpack to.

    Args:
        size: Bytes of the file.
        times: Largest ratio of unpacked to packed bytes for files of this kind.
    """
    return max(LITTLE, times * size)


def below(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and its subfolders, without hidden ones such as scratch."""
    for inner, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(inner, name) for name in files if not name.startswith("."))


@contextmanager
def refusing(said: str, path: str | Path) -> Iterator[None]:
    """Turn every error except system errors into a ValueError `{said}: {reason}`.

    `said` names `path`. A ValueError that names `path` already passes unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # EINVAL: a bad offset in the file
            raise
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        raise ValueError(f"{said}: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the text of an error as one line of bounded length."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it asks for more memory than there is"
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _REASON else text[: _REASON - 3] + "..."


def exactly(file: IO[bytes], size: int) -> bytes:
    """Read exactly `size` bytes; raise ValueError if there are fewer."""
    data = file.read(size)
    if len(data) != size:
        raise ValueError(f"it ends after {len(data)} of {size} expected bytes")
    return data


def fill(file: IO[bytes], target: memoryview) -> None:
    """Fill `target` in small reads; raise ValueError if the file ends before."""
    done = 0
    while done < len(target):
        part = file.read(min(1 << 20, len(target) - done))
        if not part:
            raise ValueError(f"it ends after {done} of {len(target)} expected bytes")
        target[done : done + len(part)] = part
        done += len(part)


def json_value(data: bytes | str, *, infinite: bool = False) -> Any:
    """Parse JSON text.

    Raises ValueError for NaN, for infinity unless `infinite`, and for a key given twice. Also raises it for more than
    `LONGEST_JSON` bytes and for nesting too deep to read.
    """
    if len(data) > LONGEST_JSON:
        raise ValueError(f"it has {len(data)} bytes of JSON, wanted at most {LONGEST_JSON}")
    text = data.decode() if isinstance(data, bytes) else data
    if text.count("[") + text.count("{") > _MOST_CONTAINERS:
        raise ValueError(f"it has more than {_MOST_CONTAINERS} lists and mappings")

    def constant(name: str) -> float:
        if name == "NaN" or not infinite:
            raise ValueError(f"it holds {name}, wanted finite numbers")
        return math.inf if name == "Infinity" else -math.inf

    return json.loads(text, object_pairs_hook=_mapping, parse_constant=constant)


def read_json(path: Path, *, infinite: bool = False) -> Any:
    """Parse a JSON file as `json_value` does."""
    return json_value(read_bytes(path), infinite=infinite)


def read_bytes(path: Path) -> bytes:
    """Read a text file as `whole_text` does."""
    with path.open("rb") as file:
        return whole_text(file)


def whole_text(file: IO[bytes]) -> bytes:
    """Read an open file to its end; raise ValueError beyond `LONGEST_JSON` bytes."""
    data = file.read(LONGEST_JSON + 1)
    if len(data) > LONGEST_JSON:
        raise ValueError(f"it has more than {LONGEST_JSON} bytes")
    return data


def metadata(stored: dict[str, str], wants: dict[str, Want]) -> dict[str, Any]:
    """Parse and check the JSON values in a file's metadata; raise ValueError with the key."""
    return {key: _said(key, stored[key], want) for key, want in wants.items()}


def _said(key: str, text: str, want: Want) -> Any:
    try:
        value = json_value(text, infinite=True)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"metadata: {key}: {reason(error)}") from error
    schema.check("metadata", value, want, key)
    return value


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"it has the key {short(twice)} twice")
    return found
