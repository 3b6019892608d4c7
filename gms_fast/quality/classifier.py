"""Classifiers whose last hidden layer gives features for distances between image sets.

They are used for Frechet and kernel distance, precision and recall. They are trained on digits or small photographs, so
these distances are not the FID of the literature. `bench/assets/classifier.py` and `bench/assets/colour_classifier.py`
train them.
"""

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from gms_fast.storage import tensors

SHAPES = {"mnist5k": (1, 28, 28), "digits": (1, 8, 8), "cifar10": (3, 32, 32)}  # name: shape of an image
WEIGHTS = Path(str(resources.files("gms_fast.quality") / "classifiers"))
_AT_A_TIME = 500


class Classifier(nn.Module):
    """Classifier made of a network `hidden` with `width` outputs and a layer `classes`.

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
        """Return features (N, width) of images (N, *shape).

        Raises ValueError for another shape.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.shape:
            wanted = ", ".join(map(str, self.shape))
            raise ValueError(f"images must be (N, {wanted}): got {tuple(images.shape)}")
        return torch.cat([self.hidden(part) for part in images.float().split(_AT_A_TIME)])

    @torch.no_grad()
    def confidence(self, features: Tensor) -> Tensor:
        """Return the probability (N,) of the most likely class for each row of features."""
        return self.classes(features).softmax(1).amax(1)


class DigitClassifier(Classifier):
    """Small convolutional network for grey images (1, side, side).

    Two 3x3 convolutions, each with ReLU and pooling, then a hidden layer of 64.
    """

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
    """Small residual network for colour images (3, 32, 32).

    Seven 3x3 convolutions with batch norm and ReLU, then the mean over all pixels. There are 32 channels, then 64 at
    half the resolution and 128 at a quarter. At each of the two lower resolutions a residual pair of convolutions
    follows (He et al. 2015, arXiv 1512.03385).
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
    """x + f(x), where f is two convolutions."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


def _convolution(given: int, made: int, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(given, made, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(made), nn.ReLU())


def load(name: str) -> Classifier:
    """Load the classifier of a name in `SHAPES`, in eval mode; raise ValueError for other names."""
    if name not in SHAPES:
        raise ValueError(f"name must be one of the classifiers {', '.join(SHAPES)}: got {name!r}")
    net = ColourClassifier() if name == "cifar10" else DigitClassifier(SHAPES[name][-1])
    tensors.load_into(net, WEIGHTS / f"{name}.safetensors")
    return net.requires_grad_(False).eval()
