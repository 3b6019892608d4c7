"""Transformers of the DiT repository: model(x, t, y)."""

from typing import Any

from gms_fast.models.hosts.base import Host, has, range_of, square
from gms_fast.schedules import Schedule


def recognises(bare: object) -> bool:
    """True for DiT by its name, too: SiT has the same parts, and time the other way round."""
    return type(bare).__name__.startswith("DiT") and has(bare, "x_embedder", "t_embedder", "y_embedder", "learn_sigma")


def host(network: Any, bare: Any, schedule: Schedule | None, prediction: str | None) -> Host:
    channels = getattr(bare, "in_channels", None)
    return Host(
        network=network,
        bare=bare,
        schedule=schedule,
        prediction=prediction or "noise",
        sample_shape=square(channels, getattr(getattr(bare, "x_embedder", None), "img_size", None)),
        clip=range_of(channels),
        learned=True,
        needed=("y",),
    )
