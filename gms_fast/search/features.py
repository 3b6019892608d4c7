"""Feature extractors of a search: digit classifiers of its own, any module, or nothing.

They are not those of `gms_fast.quality` but of another architecture: what is learned through one is judged through the
other.
"""

from collections.abc import Callable
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from gms_fast.network import dtypes_of
from gms_fast.storage import tensors
from gms_fast.tables.origin import fingerprint

NAMES = {"mnist5k": 28, "digits": 8}  # data set: side of its images
WIDTH = 160
WEIGHTS = Path(str(resources.files("gms_fast.search") / "networks"))

Features = Callable[[Tensor], Tensor]


class DigitFeatures(nn.Module):
    """Three small towers side by side, of strided convolutions, of convolutions with pooling, and of large windows on a
    coarser picture: images (N, 1, side, side) in [-1, 1] -> (N, `WIDTH`).

    A search finds what one network overlooks; three that look differently leave it less. `classes` makes ten logits of
    them; `bench/assets/classifier.py` trains all.
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        area = (side // 4) ** 2  # of what every tower makes of a picture whose side is a multiple of 4
        self.towers = nn.ModuleList(
            [
                nn.Sequential(
                    *(nn.Conv2d(1, 24, 3, padding=1), nn.GELU()),
                    *(nn.Conv2d(24, 48, 5, stride=2, padding=2), nn.GELU()),
                    *(nn.Conv2d(48, 48, 3, stride=2, padding=1), nn.GELU()),
                    *(nn.Flatten(), nn.Linear(48 * area, 64), nn.GELU()),
                ),
                nn.Sequential(
                    *(nn.Conv2d(1, 24, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
                    *(nn.Conv2d(24, 48, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
                    *(nn.Flatten(), nn.Linear(48 * area, 64), nn.ReLU()),
                ),
                nn.Sequential(
                    nn.AvgPool2d(2),
                    *(nn.Conv2d(1, 32, 7, stride=2, padding=3), nn.GELU()),
                    *(nn.Flatten(), nn.Linear(32 * area, 32), nn.GELU()),
                ),
            ]
        )
        self.classes = nn.Sequential(nn.Dropout(0.4), nn.Linear(WIDTH, 10))

    def forward(self, images: Tensor) -> Tensor:
        if images.ndim != 4 or tuple(images.shape[1:]) != (1, self.side, self.side):
            raise ValueError(f"images must be (N, 1, {self.side}, {self.side}): got {tuple(images.shape)}")
        return self.hidden(images)

    def hidden(self, images: Tensor) -> Tensor:
        """The towers' outputs, joined."""
        return torch.cat([tower(images) for tower in self.towers], dim=1)


def load_features(data: str) -> DigitFeatures:
    """The network for a data set, "mnist5k" or "digits", in eval mode. Raises ValueError where there is none."""
    if data not in NAMES:
        raise ValueError(f"features must be one of {', '.join(NAMES)}: got {data!r}")
    net = DigitFeatures(NAMES[data])
    tensors.load_into(net, WEIGHTS / f"{data}.safetensors")
    return net.requires_grad_(False).eval()


def pixels(images: Tensor) -> Tensor:
    """The images themselves, (N, D)."""
    return images.flatten(1)


def described(features: Features) -> str:
    """The mark that tells features from others: the fingerprint of a module, the name of a function."""
    name: str = getattr(features, "__qualname__", type(features).__qualname__)
    return fingerprint(features) or name


def seen(features: Features, images: Tensor) -> Tensor:
    """Features of images, in the dtype of the module's weights if it has any."""
    return features(images.to(dtypes_of(features, images)[0]))
