"""Adapter for transformers of the DiT repository: model(x, t, y)."""

from typing import Any

from gms_fast.models.hosts.base import Host, first_of, has, range_of, square
from gms_fast.models.hosts.gaussian_diffusion import network_of, told
from gms_fast.schedules import Schedule


def recognises(bare: object) -> bool:
    """Return True for a DiT.

    The name of the class counts too, because SiT has the same parts and reversed time.
    """
    network = network_of(bare)
    parts = ("x_embedder", "t_embedder", "y_embedder", "learn_sigma")
    return type(network).__name__.startswith("DiT") and has(network, *parts)


def host(network: Any, bare: Any, schedule: Schedule | None, prediction: str | None) -> Host:
    network, bare, schedule, prediction, learned = told(network, bare, schedule, prediction)
    channels = getattr(bare, "in_channels", None)
    return Host(
        network=network,
        bare=bare,
        schedule=schedule,
        prediction=prediction,
        sample_shape=square(channels, getattr(getattr(bare, "x_embedder", None), "img_size", None)),
        clip=range_of(channels),
        learned=learned,
        needed=("y",),
        features=first_of(bare, "final_layer"),
    )
