"""Feature networks that tests import by path or write to files."""

import torch
from torch import nn


class Seen(nn.Module):
    """Features that describe the input: mean, largest value, channels, and 1 for uint8."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float()
        what = torch.tensor([float(x.shape[1]), float(images.dtype == torch.uint8)], device=x.device)
        numbers = torch.stack([x.flatten(1).mean(1), x.flatten(1).amax(1)], 1)
        return self.weight * torch.cat([numbers, what.expand(len(x), 2)], 1)


class Asked(nn.Module):
    """Classes, or features on request as StyleGAN's Inception; takes three uint8 channels only."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        features = images.float().mean((2, 3))
        return features if return_features else features.sum(1, keepdim=True)


class Answer(nn.Module):
    """Network that returns the result of a given function."""

    def __init__(self, make=lambda x: x.flatten(1)) -> None:
        super().__init__()
        self.make = make

    def forward(self, images):
        return self.make(images)


def small():
    """Return a fixed network of three channels and five features, in half precision.

    It is in training mode.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(*layers).half()


def shifted():
    """Return `small` with another buffer."""
    net = small()
    net[1].running_mean.add_(1)
    return net


network, half, number = Answer(), small(), 3
