"""Arithmetic of a process: the settings of torch and of the ops that change the last bits of pictures, or more."""

from typing import Any

import torch

from gms_fast.ops import dispatch


def arithmetic(device: torch.device) -> dict[str, str]:
    """Settings that differ from the ordinary on a device; on a GPU also the precision of products, which torch chooses.

    Of the backends of the ops the plain one alone is named: the others give the same bits.
    """
    kind, found = device.type, {}
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        found["autocast"] = str(torch.get_autocast_dtype(kind))
    if dispatch.chosen(kind) == "torch":
        found["backend"] = "torch"
    if kind == "cuda":
        found["products"] = _precision(torch.backends.cuda.matmul)
        found["convolutions"] = _precision(getattr(torch.backends.cudnn, "conv", torch.backends.cudnn))
    return found


def _precision(backend: Any) -> str:
    """ "tf32" or "ieee", asked in the way that goes whichever of its two ways the precision was set in."""
    said = getattr(backend, "fp32_precision", None)
    if said is None:  # of torch before 2.9
        return "tf32" if backend.allow_tf32 else "ieee"
    if said == "none":
        said = getattr(torch.backends, "fp32_precision", said)
    return "ieee" if said == "none" else str(said)
