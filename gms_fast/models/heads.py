"""Heads for the second and third moment of the noise on activations of any network."""

import math

import torch
from torch import Tensor, nn

from gms_fast.models.activations import Layout, unpatched
from gms_fast.models.unet import ModulatedNorm, timestep_embedding, zeroed

FORMS = ("simple", "complex")
_GROUPS, _EMBEDDED = 8, 64
_WIDEST = {1: 128, 3: 64}  # channels of a trunk by the size of its convolutions
_PERIODS = 1000.0  # of the fastest sine in the angle from data to noise


class Heads(nn.Module):
    """One trunk for both moments on the grid of the activations, and a convolution that is zero at first.

    Call: activations of the layout, samples x (B, C, *), alpha and sigma (B, 1, ..) -> two tensors like x. Convolutions
    are of size 3 on maps, 1 on tokens, which have seen each other.

    form      "simple": norm, SiLU, convolution; "complex": a projection to a few channels, a residual block that knows
              the noise level, norm, SiLU, convolution
    positive  whether the first of them is made positive
    """

    def __init__(self, layout: Layout, channels: int, axes: int, form: str, data_std: float, *, positive: bool) -> None:
        super().__init__()
        self.layout, self.data_std, self.positive = layout, data_std, positive
        size = 3 if layout.kind == "map" else 1
        width = layout.features
        self.trunk = None
        if form == "complex":
            width = max(2 * _GROUPS, min(_WIDEST[size], width // _GROUPS * _GROUPS))
            self.trunk = Trunk(axes, layout.features, width, size)
        last = zeroed(_conv(axes, width, 2 * channels * layout.patch**axes, size))
        self.out = nn.Sequential(_norm(width), nn.SiLU(), last)

    def forward(self, h: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        h = self.layout.as_map(h.to(next(self.out.parameters()).dtype), x)
        if self.trunk is not None:
            h = self.trunk(h, torch.atan2(sigma, alpha * self.data_std).flatten())
        second, third = unpatched(self.out(h), self.layout.patch).chunk(2, dim=1)
        second = nn.functional.softplus(second) if self.positive else second
        return self.layout.like(second), self.layout.like(third)


class Trunk(nn.Module):
    """A projection and a residual block: (B, F, *grid), angles from data to noise (B,) -> (B, width, *grid)."""

    def __init__(self, axes: int, features: int, width: int, size: int) -> None:
        super().__init__()
        self.norm_in, self.project = _norm(features), _conv(axes, features, width, 1)
        self.level = nn.Sequential(nn.Linear(_EMBEDDED, _EMBEDDED), nn.SiLU(), nn.Linear(_EMBEDDED, 2 * width))
        self.norm_1, self.conv_1 = _norm(width), _conv(axes, width, width, size)
        self.norm_2, self.conv_2 = ModulatedNorm(_GROUPS, width), zeroed(_conv(axes, width, width, size))

    def forward(self, h: Tensor, angle: Tensor) -> Tensor:
        h = self.project(self.norm_in(h))
        sines = timestep_embedding(_PERIODS * 2 / math.pi * angle, _EMBEDDED).to(h.dtype)
        scale, shift = self.level(sines).chunk(2, dim=1)
        inner = self.conv_1(nn.functional.silu(self.norm_1(h)))
        return h + self.conv_2(nn.functional.silu(self.norm_2(inner, scale, shift)))


def _norm(channels: int) -> nn.GroupNorm:
    """A norm of a few groups, of one where they do not divide the channels."""
    return nn.GroupNorm(_GROUPS if channels % _GROUPS == 0 else 1, channels)


def _conv(axes: int, cin: int, cout: int, size: int) -> nn.Module:
    if axes == 0:
        return nn.Linear(cin, cout)
    return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1](cin, cout, size, padding=size // 2)
