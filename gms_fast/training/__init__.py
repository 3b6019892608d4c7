"""Two-stage training of noise networks with moment heads.

[`train_noise_network`][gms_fast.training.train_noise_network] learns the noise.
[`train_moment_heads`][gms_fast.training.train_moment_heads] then learns its higher moments
with the network frozen.
"""

from gms_fast.training.loop import train_moment_heads as train_moment_heads
from gms_fast.training.loop import train_noise_network as train_noise_network
from gms_fast.training.settings import Settings as Settings

__all__ = [
    "Settings",
    "train_moment_heads",
    "train_noise_network",
]
