"""Digit classifiers whose last hidden layer gives the features of Frechet and kernel distance, precision and recall.

They see digits only, so their distances are not the FID of the literature. `bench/assets/classifier.py` trains them.
"""

from importlib import resources
from pathlib import Path

import torch
from torch import Tensor, nn

from gms_fast.storage import tensors

SIDES = {"mnist5k": 28, "digits": 8}  # data set: side of its images
FEATURES = 64
WEIGHTS = Path(str(resources.files("gms_fast.quality") / "classifiers"))
_AT_A_TIME = 500


class DigitClassifier(nn.Module):
    """Two 3x3 convolutions, each with ReLU and pooling, a hidden layer of `FEATURES`, ten classes.

    Call: images (N, 1, side, side) in [-1, 1] -> logits (N, 10).
    """

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side
        self.hidden = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, FEATURES), nn.ReLU()),
        )
        self.classes = nn.Sequential(nn.Dropout(0.4), nn.Linear(FEATURES, 10))

    def forward(self, images: Tensor) -> Tensor:
        return self.classes(self.hidden(images))

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """(N, FEATURES) of images (N, 1, side, side). Raises ValueError for another shape."""
        if images.ndim != 4 or tuple(images.shape[1:]) != (1, self.side, self.side):
            raise ValueError(f"images must be (N, 1, {self.side}, {self.side}): got {tuple(images.shape)}")
        return torch.cat([self.hidden(part) for part in images.float().split(_AT_A_TIME)])

    @torch.no_grad()
    def confidence(self, features: Tensor) -> Tensor:
        """Probability (N,) of the class that each row of features most likely has."""
        return self.classes(features).softmax(1).amax(1)


def load(data: str) -> DigitClassifier:
    """The classifier of a data set, in eval mode. Raises ValueError where there is none."""
    if data not in SIDES:
        raise ValueError(f"there are classifiers for {', '.join(SIDES)}: got {data!r}")
    net = DigitClassifier(SIDES[data])
    tensors.load_into(net, WEIGHTS / f"{data}.safetensors")
    return net.requires_grad_(False).eval()
