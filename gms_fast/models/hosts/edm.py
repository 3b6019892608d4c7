"""Adapter for preconditioned networks D(x; sigma) = E[x_0|x_0 + sigma eps].

Source: Karras et al. 2022, arXiv 2206.00364.
"""

from typing import Any

import torch

from gms_fast.models.hosts.base import Host, has, range_of, square
from gms_fast.schedules import EDM, Levels, Schedule

_LAST = ("aux_norm", "out_norm", "out_conv")  # last modules of their U-Nets and those of EDM2
_LOWEST, _HIGHEST = 0.002, 80.0  # noise levels of the paper's sampling


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
        needed=("class_labels",) if getattr(bare, "label_dim", 0) else (),  # it would use zeros without a word
        features=_features(bare),
        dtype=lambda bare: torch.float32,  # whatever dtype its inner layers compute in
    )


def _features(bare: Any) -> str | None:
    """Return the norm or convolution of the highest resolution, which comes last."""
    named = bare.named_modules() if isinstance(bare, torch.nn.Module) else ()
    return ([None] + [name for name, _ in named if name.endswith(_LAST)])[-1]


def _schedule(bare: Any) -> Schedule:
    lowest, highest = max(_LOWEST, getattr(bare, "sigma_min", 0)), min(_HIGHEST, getattr(bare, "sigma_max", _HIGHEST))
    if not hasattr(bare, "u"):
        return EDM(lowest, highest)
    known = bare.u.double().cpu()  # levels of improved DDPM, to which this network rounds
    known = known[(known >= lowest) & (known <= highest)]
    sigmas = torch.cat([known, torch.zeros(1, dtype=known.dtype)])
    return Levels(torch.ones_like(sigmas), sigmas, sigmas)
