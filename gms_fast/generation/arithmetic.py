"""Arithmetic settings of torch and the ops that change images, by their last bits or more."""

from typing import Any

import torch

from gms_fast.ops import dispatch


def arithmetic(device: torch.device) -> dict[str, str]:
    """Return the settings that differ from the defaults on a device.

    On a GPU the precision of products is always included, because torch chooses it. Of the backends of the ops only the
    plain one is named: the others give the same bits.
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
    """Return "tf32" or "ieee", through whichever of torch's two interfaces it was set."""
    said = getattr(backend, "fp32_precision", None)
    if said is None:  # torch before 2.9
        return "tf32" if backend.allow_tf32 else "ieee"
    if said == "none":
        said = getattr(torch.backends, "fp32_precision", said)
    return "ieee" if said == "none" else str(said)
