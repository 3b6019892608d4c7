"""Two-stage training of noise networks with moment heads.

[`train_noise_network`][gms_fast.training.train_noise_network] trains a network to predict the noise.
[`train_moment_heads`][gms_fast.training.train_moment_heads] then trains heads that predict higher moments of the noise,
while the network is frozen.
"""

from gms_fast.training.loop import train_moment_heads as train_moment_heads
from gms_fast.training.loop import train_noise_network as train_noise_network
from gms_fast.training.settings import Settings as Settings

__all__ = [
    "Settings",
    "train_moment_heads",
    "train_noise_network",
]
