"""Arithmetic of a process: the settings of torch and of the ops that change the last bits of pictures, or more."""

import torch

from gms_fast.ops import dispatch


def arithmetic(device: torch.device) -> dict[str, str]:
    """What differs from the ordinary on a device; on a GPU also the precision of its products, which torch chooses.

    Of the backends of the ops the plain one alone is named: the others give the same bits.
    """
    kind, found = device.type, {}
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        found["autocast"] = str(torch.get_autocast_dtype(kind))
    if dispatch.chosen(kind) == "torch":
        found["backend"] = "torch"
    if kind == "cuda":
        found["products"] = torch.get_float32_matmul_precision()
        found["convolutions"] = "tf32" if torch.backends.cudnn.allow_tf32 else "float32"
    return found
