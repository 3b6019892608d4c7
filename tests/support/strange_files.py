"""Saved models with one value changed, and equality of loaded ones."""

import json

import torch

from bench.faults import damage_files
from gms_fast import io


def saved(tmp_path, key=None, value=None, inside="config"):
    """Save a model with one value of its description changed."""
    io.save(damage_files.network(), tmp_path / "m")
    file = tmp_path / "m" / io.CONFIG
    described = json.loads(file.read_text())
    if key is not None:
        described[inside][key] = value
    file.write_text(json.dumps(described))
    return tmp_path / "m"


def same(a, b):
    if isinstance(a, torch.Tensor):
        return (
            a.dtype == b.dtype
            and a.shape == b.shape
            and torch.equal(*(w.float() if w.is_floating_point() else w for w in (a, b)))
        )
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
