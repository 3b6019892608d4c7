"""What a search looks through: digit classifiers of its own, any module, or nothing.

They are not those of `gms_fast.quality` but of another architecture: what is learned through one is judged through the
other.
"""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

NAMES = {"mnist5k": 28, "digits": 8}  # data set: side of its images
WIDTH = 96
WEIGHTS = Path(str(resources.files("gms_fast.search") / "networks"))

Features = Callable[[Tensor], Tensor]


class DigitFeatures(nn.Module):
    """Three convolutions, two of them strided, with smooth GELU, and a hidden layer: images (N, 1, side, side) in
    [-1, 1] -> (N, `WIDTH`).

    `classes` makes ten logits of them; `bench/classifier.py` trains both.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        rest = -(-side // 4)  # rounded up
        self.hidden = nn.Sequential(
            *(nn.Conv2d(1, 24, 3, padding=1), nn.GELU()),
            *(nn.Conv2d(24, 48, 5, stride=2, padding=2), nn.GELU()),
            *(nn.Conv2d(48, 48, 3, stride=2, padding=1), nn.GELU()),
            *(nn.Flatten(), nn.Linear(48 * rest**2, WIDTH), nn.GELU()),
        )
        self.classes = nn.Linear(WIDTH, 10)

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or tuple(images.shape[1:]) != (1, self.side, self.side):
            raise ValueError(f"images must be (N, 1, {self.side}, {self.side}): got {tuple(images.shape)}")
        return self.hidden(images)


def load_features(data: str) -> DigitFeatures:
    """The network for a data set, "mnist5k" or "digits", in eval mode. Raises ValueError where there is none."""
    if data not in NAMES:
        raise ValueError(f"features must be one of {', '.join(NAMES)}: got {data!r}")
    net = DigitFeatures(NAMES[data])
    stored = safetensors.torch.load_file(WEIGHTS / f"{data}.safetensors")
    net.load_state_dict({name: weight.float() for name, weight in stored.items()})
    return net.requires_grad_(False).eval()


def pixels(images: Tensor) -> Tensor:
    """The images themselves, (N, D)."""
    return images.flatten(1)


def check_features(features: object, shape: tuple[int, ...], device: torch.device) -> int:
    """Width of the features (N, width) of samples (N, *shape). Raises TypeError or ValueError for what is none.

    They must be finite, one row a sample, and let a gradient through.
    """
    if not callable(features):
        raise TypeError(f"features must be callable as features(images) -> (N, D): got {type(features).__name__}")
    probe = torch.linspace(-1, 1, 2 * torch.Size(shape).numel(), device=device).view(2, *shape).requires_grad_()
    with torch.enable_grad():
        found = features(probe)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"features must return (N, D) for images (N, {', '.join(map(str, shape))}): got {got}")
        if not bool(found.isfinite().all()):
            raise ValueError("features must be finite: they hold NaN or infinity for images in [-1, 1]")
        slope = torch.autograd.grad(found.sum(), probe, allow_unused=True)[0] if found.requires_grad else None
    if slope is None:
        raise ValueError(
            "features must let a gradient through to the images: they return a tensor without one; "
            "look for torch.no_grad, detach or rounding in them"
        )
    return found.shape[1]
