"""Feature extractors for the search loss: digit classifiers, any module, or the pixels.

The classifiers differ in architecture from those of `gms_fast.quality`, so that a search is not judged by the features
that it was trained on.
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
    """Feature network for images of digits.

    A call maps images (N, 1, side, side) in [-1, 1] to features (N, 160). The network has three small branches in
    parallel: strided convolutions, convolutions with pooling, and large kernels on an image of half the resolution. A
    search exploits the weaknesses of its feature network, and three different branches share fewer weaknesses than one
    branch has. `classes` maps features to ten logits. The embedded weights were trained by
    `python -m bench.assets.classifier --search`.

    Args:
        side: Height and width of the images, a multiple of 4.

    Raises:
        ValueError: If a call gets images of a different shape.

    Examples:
        >>> net = gms_fast.search.DigitFeatures(8).eval()
        >>> net(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 160])
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        area = (side // 4) ** 2  # positions that every tower leaves of an image whose side is a multiple of 4
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
        """Return the concatenated outputs of the branches, (N, 160).

        Args:
            images: Images (N, 1, side, side) in [-1, 1].
        """
        return torch.cat([tower(images) for tower in self.towers], dim=1)


def load_features(data: str) -> DigitFeatures:
    """Load the embedded feature network for a data set.

    Args:
        data: Name of the data set, "mnist5k" (28x28 images) or "digits" (8x8 images).

    Returns:
        Frozen [`DigitFeatures`][gms_fast.search.DigitFeatures] in eval mode.

    Raises:
        ValueError: If there is no feature network for `data`.

    Examples:
        >>> features = gms_fast.search.load_features("digits")
        >>> features(gms_fast.data.load("digits")[:2]).shape
        torch.Size([2, 160])
    """
    if data not in NAMES:
        raise ValueError(f"features must be one of {', '.join(NAMES)}: got {data!r}")
    net = DigitFeatures(NAMES[data])
    tensors.load_into(net, WEIGHTS / f"{data}.safetensors")
    return net.requires_grad_(False).eval()


def pixels(images: Tensor) -> Tensor:
    """Return the pixels of images as features (N, D)."""
    return images.flatten(1)


def described(features: Features) -> str:
    """Return a string that identifies features: a module's fingerprint or a function's name."""
    name: str = getattr(features, "__qualname__", type(features).__qualname__)
    return fingerprint(features) or name


def seen(features: Features, images: Tensor) -> Tensor:
    """Return features of images, which are first converted to the dtype of the module."""
    return features(images.to(dtypes_of(features, images)[0]))
