"""Settings of a training run: everything it depends on besides the model and the data."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gms_fast.training.rates import learning_rate

BATCH_SIZE = 64  # default for data that does not come in batches
PRECISIONS = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that determine the result of a training run.

    [`train_noise_network`][gms_fast.training.train_noise_network] and
    [`train_moment_heads`][gms_fast.training.train_moment_heads] accept these settings as keyword arguments, with the
    same defaults.

    Args:
        steps: Total number of optimiser steps, >= 1.
        batch_size: Number of images per step, >= 1. None for 64. Must be None if the data is an iterable of batches.
        lr: Peak learning rate of Adam, > 0.
        warmup: Number of steps over which the learning rate rises to its peak, >= 0.
        decay: Decay of the learning rate: "cosine" or "linear" (both reach 0 after the last step), or "constant".
        ema: Decay of the averaged weights, in [0, 1).
        clip_norm: Norm to which larger gradients are scaled down, > 0.
        flips: Mirror each image with probability 1/2.
        label_dropout: Probability, in [0, 1), of replacing a label by "no class".
        precision: Arithmetic of the network, "float32", "bfloat16" or "float16".
        seed: Seed of all random numbers, in [0, 2^31).

    Raises:
        ValueError: If a setting is out of range.

    Examples:
        >>> run = gms_fast.training.Settings(steps=1000, lr=1e-3, warmup=10, decay="linear")
        >>> run.lr_at(0), run.lr_at(500)
        (0.0001, 0.0005)
    """

    steps: int
    batch_size: int | None = None
    lr: float = 2e-4
    warmup: int = 200
    decay: str = "cosine"
    ema: float = 0.999
    clip_norm: float = 1.0
    flips: bool = False
    label_dropout: float = 0.0
    precision: str = "float32"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} must be at least 1: got {value}")
        if not self.lr > 0:
            raise ValueError(f"lr must be positive: got {self.lr}")
        if self.decay not in ("cosine", "linear", "constant"):
            raise ValueError(f'decay must be "cosine", "linear" or "constant": got {self.decay!r}')
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}: got {self.precision!r}")
        if self.warmup < 0:
            raise ValueError(f"warmup must not be negative: got {self.warmup}")
        if not self.clip_norm > 0:
            raise ValueError(f"clip_norm must be positive: got {self.clip_norm}")
        if not 0 <= self.seed < 1 << 31:
            raise ValueError(f"seed must lie in [0, 2^31): got {self.seed}")
        for name in ("ema", "label_dropout"):
            if not 0 <= (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must lie in [0, 1): got {value}")

    @property
    def described(self) -> dict[str, Any]:
        """Settings by name, as they are stored in checkpoints.

        A `label_dropout` of 0 is left out, so that checkpoints from before this setting existed still match.
        """
        return {name: value for name, value in asdict(self).items() if name != "label_dropout" or value}

    def lr_at(self, step: int) -> float:
        """Return the learning rate of a step.

        Args:
            step: Index of the step, from 0 to steps - 1.

        Returns:
            Learning rate in (0, lr].
        """
        return learning_rate(self.lr, step, self.steps, self.warmup, self.decay)


@dataclass(frozen=True)
class Steering:
    """Settings that change a run by no more than rounding.

    They may differ when a run is resumed.
    """

    out: str | Path
    resume: bool
    checkpoint_every: int
    checkpoint_seconds: float | None
    micro_batch: int | None
    compile: bool
    progress: bool

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1: got {self.checkpoint_every}")
        if self.checkpoint_seconds is not None and not self.checkpoint_seconds > 0:
            raise ValueError(f"checkpoint_seconds must be positive, or None: got {self.checkpoint_seconds}")
        if self.micro_batch is not None and (not isinstance(self.micro_batch, int) or self.micro_batch < 1):
            raise ValueError(f"micro_batch must be an integer of at least 1, or None for all: got {self.micro_batch!r}")
