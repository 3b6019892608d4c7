"""Safetensors files: named tensors with metadata.

The reader is our own, as the writer is. It maps no memory, so a file that shrinks cannot kill the process. It
allocates nothing before the sizes in the header match the file, and its errors name the tensor that is wrong.
"""

import hashlib
import json
import math
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from gms_fast.storage import atomic, schema
from gms_fast.storage.reading import LONGEST_JSON, exactly, fill, json_value, refusing
from gms_fast.storage.schema import Choice, Fields, Integer, Listed, Text

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
_DTYPES = {name: dtype for dtype, name in _NAMES.items()} | {"C64": torch.complex64}
_LONGEST_HEADER = LONGEST_JSON
_DIGEST = "gms_fast.sha256"  # of all bytes after the header; files of other writers may lack it
_AXIS = Integer(0, 1 << 48)
_ENTRY = Fields(
    {"dtype": Choice(tuple(_DTYPES)), "shape": Listed(_AXIS, 64), "data_offsets": Listed(_AXIS, 2, 2)},
)
_HEADER = Fields({}, {"__metadata__": Fields({}, others=Text(_LONGEST_HEADER))}, others=_ENTRY)


def write(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str], *, parents: bool = False) -> None:
    """Write a file of tensors atomically.

    Its metadata get a digest of all numbers, by which `load` detects damage. Equal arguments give equal bytes; the
    safetensors library does not promise that.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))  # widest first: all aligned
    flat = [tensors[name].detach().to("cpu").contiguous().reshape(-1).view(torch.uint8) for name in names]
    said = {**metadata, _DIGEST: _digest(flat)}
    header: dict[str, object] = {"__metadata__": dict(sorted(said.items()))}
    end = 0
    for name, data in zip(names, flat, strict=True):
        start, end, value = end, end + len(data), tensors[name]
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic.writing(path, parents=parents) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for data in flat:
            file.write(data.numpy().data)


def write_described(
    path: str | Path,
    tensors: dict[str, Tensor],
    form: str,
    known: dict[str, object],
    measurement: str | None = None,
) -> None:
    """Write a file of a named format and make its folder.

    Args:
        path: The file.
        tensors: Tensors by name.
        form: The format's name, which `read` asks for.
        known: Values that JSON can represent; `reading.metadata` gives them back.
        measurement: Fingerprint of all that the tensors depend on. A finished measurement recognises its file by it.
    """
    origin = {} if measurement is None else {"measurement": measurement}
    said = {"format": form, **origin, **{key: json.dumps(value) for key, value in known.items()}}
    write(path, tensors, said, parents=True)


def _digest(flat: Iterable[Tensor]) -> str:
    digest = hashlib.sha256()
    for data in flat:
        digest.update(data.numpy().data)
    return digest.hexdigest()


def metadata_of(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file; empty for any other file."""
    try:
        with path.open("rb") as file:
            return _header(file)[1]
    except (ValueError, RecursionError):
        return {}


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors of a safetensors file, and its metadata.

    Raises ValueError that says what is wrong with the file, without its name.
    """
    with open(path, "rb") as file:
        return load_open(file)


def load_into(module: torch.nn.Module, path: Path) -> None:
    """Load the weights of a file into a module, in float32."""
    stored, _ = load(path)
    module.load_state_dict({name: weight.float() for name, weight in stored.items()})


def load_open(file: BinaryIO) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors of an open file, and its metadata, as `load` does."""
    entries, metadata = _header(file)
    flat, found = [], {}
    for name, entry in entries:
        start, end = entry["data_offsets"]
        flat.append(torch.empty(end - start, dtype=torch.uint8, device="cpu"))
        fill(file, flat[-1].numpy().data)
        found[name] = flat[-1].view(_DTYPES[entry["dtype"]]).view(entry["shape"])
    if _DIGEST in metadata and metadata[_DIGEST] != _digest(flat):
        raise ValueError("it is damaged: its numbers do not match the SHA-256 in its metadata")
    return found, metadata


def _header(file: BinaryIO) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, str]]:
    """Read the tensors' entries, sorted by position, and the metadata.

    The file is then positioned at the first tensor.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(exactly(file, 8), "little")
    if length > min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"its header should have {length} bytes, but the file has {size}")
    header = json_value(exactly(file, length))
    schema.check("header", header, _HEADER)
    metadata = header.pop("__metadata__", {})
    entries = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    _check_sizes(entries, size - 8 - length)
    return entries, metadata


def _check_sizes(entries: list[tuple[str, dict[str, Any]]], size: int) -> None:
    """Raise ValueError unless the tensors fit their shapes and fill `size` bytes without gaps."""
    end = 0
    for name, entry in entries:
        start, stop = entry["data_offsets"]
        wanted = math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize
        if start != end or stop - start != wanted:
            place = f"bytes {start} to {stop}"
            raise ValueError(f"{schema.short(name)} lies at {place}, wanted {wanted} of them from {end} on")
        end = stop
    if end != size:
        raise ValueError(f"its tensors have {end} bytes, but {size} follow its header")


def read(
    path: Path,
    form: str,
    tensors: Collection[str] | None,
    metadata: Collection[str],
    what: str = "statistics",
    optional: Collection[str] = (),
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read and check the tensors and metadata of a file whose metadata "format" is `form`.

    Args:
        path: The file.
        form: Name of the format.
        tensors: Names of the required tensors; None accepts any. All must be floating point and finite.
        metadata: Required metadata keys.
        what: The file's content, for messages.
        optional: Names of tensors that may be there too.

    Raises FileNotFoundError if there is no file. Raises ValueError that names the file and what it lacks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    with refusing(f"{what} {path}: truncated or not a safetensors file", path):
        stored, found = load(path)
    if found.get("format") != form:
        raise ValueError(f"{what} {path}: format is {schema.short(found.get('format'))}, wanted {form!r}")
    for name, have, want in (("metadata", found, metadata), ("tensors", stored, tensors or ())):
        if missing := [key for key in want if key not in have]:
            raise ValueError(f"{what} {path}: missing {name} {', '.join(missing)}")
    if tensors is not None and (unknown := stored.keys() - {*tensors, *optional}):
        raise ValueError(f"{what} {path}: unknown tensors {few(unknown)}, wanted only {few([*tensors, *optional])}")
    check_numbers(stored, f"{what} {path}")
    return stored, found


def check_numbers(tensors: dict[str, Tensor], where: str) -> None:
    """Raise ValueError that names the tensors that are not floating point or not finite."""
    for name, value in tensors.items():
        if not value.is_floating_point():
            raise ValueError(f"{where}: {schema.short(name)} is of {value.dtype}, wanted floating-point numbers")
    if wild := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise ValueError(f"{where}: NaN or infinity in {few(wild)}, wanted finite numbers")


def few(names: Collection[str]) -> str:
    """List the first ten names, sorted."""
    shown = sorted(map(str, names))
    plain = (name if name.isprintable() and len(name) <= 80 else schema.short(name) for name in shown[:10])
    listed = ", ".join(plain)
    return listed + (", ..." if len(shown) > 10 else "")
