"""Named tensors and what they mean, in one safetensors file."""

import json
from collections.abc import Collection
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from gms_fast.storage import atomic

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


def write(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str], *, parents: bool = False) -> None:
    """Write the file as a whole; equal arguments give equal bytes, which the library's own writer does not promise."""
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    flat, end = {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):  # every one aligned
        value = tensors[name]
        flat[name] = value.detach().to("cpu").contiguous().reshape(-1)
        start, end = end, end + flat[name].nbytes
        header[name] = {"dtype": _NAMES[value.dtype], "shape": list(value.shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic.writing(path, parents=parents) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for value in flat.values():
            file.write(memoryview(value.view(torch.uint8).numpy()))


def metadata(path: Path) -> dict[str, str]:
    """What a file says about its tensors; nothing for one that is no safetensors file."""
    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except Exception:
        return {}


def read(
    path: Path, form: str, tensors: Collection[str], metadata: Collection[str], what: str = "statistics"
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a file of `what`, whose metadata say `form` for "format".

    Raises FileNotFoundError where there is none, ValueError naming the file and what it lacks.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no {what} at {path}")
    try:
        with safe_open(path, "pt") as file:
            found, stored = file.metadata() or {}, {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise ValueError(f"{what} {path}: truncated or no safetensors file: {error}") from error
    if found.get("format") != form:
        raise ValueError(f"{what} {path}: format is {found.get('format')!r}, wanted {form!r}")
    for name, have, want in (("metadata", found, metadata), ("tensors", stored, tensors)):
        if missing := [key for key in want if key not in have]:
            raise ValueError(f"{what} {path}: there is no {name} {', '.join(missing)}")
    return stored, found
