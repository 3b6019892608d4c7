"""Adapter for U-Nets of guided-diffusion, improved-diffusion and their descendants.

They are called as model(x, timesteps, y=None).
"""

from typing import Any

from gms_fast.models.hosts.base import Host, dtype_of_weights, first_of, has, range_of, square
from gms_fast.models.hosts.gaussian_diffusion import network_of, told
from gms_fast.schedules import Schedule


def recognises(bare: object) -> bool:
    parts = ("input_blocks", "middle_block", "output_blocks", "model_channels", "in_channels", "num_classes")
    return has(network_of(bare), *parts)


def host(network: Any, bare: Any, schedule: Schedule | None, prediction: str | None) -> Host:
    network, bare, schedule, prediction, learned = told(network, bare, schedule, prediction)
    enlarges = type(bare).__name__ == "SuperResModel"  # takes the image and a smaller one, of as many channels
    channels = getattr(bare, "in_channels", None)
    channels = channels // 2 if enlarges and channels is not None else channels
    labels = ("y",) if getattr(bare, "num_classes", None) is not None else ()
    return Host(
        network=network,
        bare=bare,
        schedule=schedule,
        prediction=prediction,
        sample_shape=square(channels, getattr(bare, "image_size", None)),
        clip=range_of(channels),
        learned=learned,
        needed=("low_res", *labels) if enlarges else labels,
        features=first_of(bare, "out"),
        dtype=lambda bare: dtype_of_weights(getattr(bare, "out", bare)),  # inner layers may be float16
    )
