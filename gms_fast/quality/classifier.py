"""Classifiers whose last hidden layer gives the features of Frechet and kernel distance, precision and recall.

They see pictures like those they were trained on, digits or small photographs, so their distances are not the FID of
the literature. `bench/assets/classifier.py` and `bench/assets/colour_classifier.py` train them.
"""

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from gms_fast.storage import tensors

SHAPES = {"mnist5k": (1, 28, 28), "digits": (1, 8, 8), "cifar10": (3, 32, 32)}  # name: shape of a picture
WEIGHTS = Path(str(resources.files("gms_fast.quality") / "classifiers"))
_AT_A_TIME = 500


class Classifier(nn.Module):
    """A hidden layer `hidden` of `width` numbers, and ten classes `classes` of them.

    Call: images (N, *shape) in [-1, 1] -> logits (N, 10).
    """

    width: int
    hidden: nn.Module
    classes: nn.Module

    def __init__(self, shape: tuple[int, int, int]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(self.hidden(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, width) of images (N, *shape). Raises ValueError for another shape."""
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"images must be (N, {wanted}): got {tuple(images.shape)}")
        return torch.cat([self.hidden(part) for part in images.float().split(_AT_A_TIME)])

    @torch.no_grad()
    def confidence(self, features: Tensor) -> Tensor:
        """Probability (N,) of the class that each row of features most likely has."""
        return self.classes(features).softmax(1).amax(1)


class DigitClassifier(Classifier):
    """Two 3x3 convolutions, each with ReLU and pooling, a hidden layer of 64, for grey pictures (1, side, side)."""

    width = 64

    def __init__(self, side: int) -> None:
        super().__init__((1, side, side))
        self.hidden = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, self.width), nn.ReLU()),
        )
        self.classes = nn.Sequential(nn.Dropout(0.4), nn.Linear(self.width, 10))


class ColourClassifier(Classifier):
    """Seven 3x3 convolutions with batch norm and ReLU, and the mean over places, for pictures (3, 32, 32).

    The channels are 32, 64 at half the side and 128 at a quarter, where a pair of convolutions is residual (He and
    others, arXiv 1512.03385).
    """

    width = 128

    def __init__(self) -> None:
        super().__init__((3, 32, 32))
        self.hidden = nn.Sequential(
            _convolution(3, 32),
            *(_convolution(32, 64, stride=2), _Residual(64)),
            *(_convolution(64, self.width, stride=2), _Residual(self.width)),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten()),
        )
        self.classes = nn.Linear(self.width, 10)


class _Residual(nn.Module):
    """x + f(x), f two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def _convolution(given: int, made: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(given, made, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(made), nn.ReLU())


def load(name: str) -> Classifier:
    """The classifier of a name of `SHAPES`, in eval mode. Raises ValueError where there is none."""
    if name not in SHAPES:
        raise ValueError(f"there are classifiers for {', '.join(SHAPES)}: got {name!r}")
    net = ColourClassifier() if name == "cifar10" else DigitClassifier(SHAPES[name][-1])
    tensors.load_into(net, WEIGHTS / f"{name}.safetensors")
    return net.requires_grad_(False).eval()
