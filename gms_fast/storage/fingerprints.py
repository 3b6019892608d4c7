"""Fingerprints: short hexadecimal digests of data, networks and settings."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def of_tensors(tensors: Iterable[Tensor]) -> str:
    """Return 16 digits of the shapes and exact values of tensors."""
    return _digits(part for tensor in tensors for part in (str(tuple(tensor.shape)).encode(), _bytes(tensor)))


def of_numbers(tensor: Tensor) -> str:
    """Return 16 digits of a tensor's exact values, without its shape."""
    return _digits([_bytes(tensor)])


def of_named(tensors: Mapping[str, Tensor]) -> str:
    """Return 16 digits of the names, shapes and exact values of tensors, sorted by name."""
    named = sorted(tensors.items(), key=lambda item: item[0])
    return _digits(p for name, value in named for p in (f"{name} {tuple(value.shape)}".encode(), _bytes(value)))


def of_values(*values: Any) -> str:
    """Return 16 digits of values that JSON can represent."""
    return _digits(json.dumps(value).encode() for value in values)


def of_files(files: Mapping[str, Path]) -> str:
    """Return 12 digits of the names and contents of files."""
    return _digits((name.encode() + hashlib.sha256(file.read_bytes()).digest() for name, file in files.items()), 12)


def _digits(parts: Iterable[bytes], count: int = 16) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()[:count]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
