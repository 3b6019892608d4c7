"""Feature networks that tests name by import path, or put into files."""

import torch
from torch import nn


class Seen(nn.Module):
    """Features that say what the network was given: mean, largest value, channels and whether they were bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float()
        what = torch.tensor([float(x.shape[1]), float(images.dtype == torch.uint8)], device=x.device)
        numbers = torch.stack([x.flatten(1).mean(1), x.flatten(1).amax(1)], 1)
        return self.weight * torch.cat([numbers, what.expand(len(x), 2)], 1)


class Asked(nn.Module):
    """Classes, or features where they are asked for as StyleGAN's Inception is; of bytes in three channels alone."""

    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        assert images.dtype == torch.uint8
        assert images.shape[1] == 3
        features = images.float().mean((2, 3))
        return features if return_features else features.sum(1, keepdim=True)


class Answer(nn.Module):
    """A network that gives what it is told."""

    def __init__(self, make=lambda x: x.flatten(1)) -> None:
        super().__init__()
        self.make = make

    def forward(self, images):
        return self.make(images)


def small():
    """A network of three channels and five features, in training mode and half precision, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = (nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.Dropout(), nn.AdaptiveAvgPool2d(1))
        return nn.Sequential(*layers).half()


def shifted():
    """The same with another buffer."""
    net = small()
    net[1].running_mean.add_(1)
    return net


network, half, number = Answer(), small(), 3
