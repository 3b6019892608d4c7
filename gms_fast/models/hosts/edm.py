"""Preconditioned networks D(x; sigma) = E[x_0|x_0 + sigma eps] (Karras et al. 2022)."""

from typing import Any

import torch

from gms_fast.models.hosts.base import Host, has, range_of, square
from gms_fast.schedules import EDM, Levels, Schedule

_LAST = ("aux_norm", "out_norm", "out_conv")  # of their U-Nets, and of EDM2's
_LOWEST, _HIGHEST = 0.002, 80.0  # of the paper's sampling, within what the network knows


def recognises(bare: object) -> bool:
    return has(bare, "img_resolution", "img_channels", "label_dim")


def host(network: Any, bare: Any, schedule: Schedule | None, prediction: str | None) -> Host:
    return Host(
        network=network,
        bare=bare,
        schedule=schedule or _schedule(bare),
        prediction=prediction or "x0",
        sample_shape=square(getattr(bare, "img_channels", None), getattr(bare, "img_resolution", None)),
        clip=range_of(getattr(bare, "img_channels", None)),
        needed=("class_labels",) if getattr(bare, "label_dim", 0) else (),  # it would take zeros
        features=_features(bare),
        dtype=lambda bare: torch.float32,  # whatever its torso computes in
    )


def _features(bare: Any) -> str | None:
    """The norm or convolution of the highest resolution, which comes last."""
    named = bare.named_modules() if isinstance(bare, torch.nn.Module) else ()
    return ([None] + [name for name, _ in named if name.endswith(_LAST)])[-1]


def _schedule(bare: Any) -> Schedule:
    lowest, highest = max(_LOWEST, getattr(bare, "sigma_min", 0)), min(_HIGHEST, getattr(bare, "sigma_max", _HIGHEST))
    if not hasattr(bare, "u"):
        return EDM(lowest, highest)
    known = bare.u.double().cpu()  # the levels of improved DDPM, to which this network rounds
    known = known[(known >= lowest) & (known <= highest)]
    sigmas = torch.cat([known, torch.zeros(1, dtype=known.dtype)])
    return Levels(torch.ones_like(sigmas), sigmas, sigmas)
