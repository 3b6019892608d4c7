"""Named tensors and what they mean, in one safetensors file."""

import os
from collections.abc import Collection
from pathlib import Path

import safetensors.torch
from safetensors import safe_open
from torch import Tensor


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write the file so that a kill at any moment leaves either the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        safetensors.torch.save_file({n: t.contiguous() for n, t in tensors.items()}, temporary, metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


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
