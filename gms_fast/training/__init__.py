"""Two-stage training of noise networks with moment heads."""

from gms_fast.training.loop import Settings as Settings
from gms_fast.training.loop import train_moment_heads as train_moment_heads
from gms_fast.training.loop import train_noise_network as train_noise_network
