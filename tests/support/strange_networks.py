"""Small user networks on which moment heads are trained."""

import torch
from torch import nn

from gms_fast.schedules import VPLinear


class Convolutional(nn.Module):
    """Noise network of images; `last` reads eight feature maps.

    With classes it takes one label per sample.
    """

    def __init__(self, channels=1, classes=0):
        super().__init__()
        self.first = nn.Conv2d(channels, 8, 3, padding=1)
        self.labels = nn.Embedding(classes, 8) if classes else None
        self.norm, self.last = nn.GroupNorm(2, 8), nn.Conv2d(8, channels, 3, padding=1)

    def forward(self, x, t, label=None):
        h = self.first(x) + torch.cos(t.to(x.dtype) / 100).view(-1, 1, 1, 1)
        h = h if self.labels is None else h + self.labels(label)[:, :, None, None]
        return self.last(torch.tanh(self.norm(h)))


def convolutional(**options):
    torch.manual_seed(0)
    return Convolutional(**options).eval()


OF_PICTURES = {"schedule": VPLinear(), "prediction": "noise", "sample_shape": (1, 8, 8)}


def learned(model, scale=0.1):
    """Change the heads of the model at random, as training would."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.head_parameters().values():
            weight.add_(scale * torch.randn(weight.shape, generator=generator))
    return model
