"""Heads for the second and third noise moment on the activations of any network."""

import math

import torch
from torch import Tensor, nn

from gms_fast.models.activations import Layout
from gms_fast.models.unet import ModulatedNorm, zeroed

FORMS = ("simple", "complex")
_GROUPS, _EMBEDDED = 8, 64
_FASTEST = 640.0  # highest angular frequency of the embedding of the angle arctan(sigma/(alpha s))


class Heads(nn.Module):
    """One trunk for both moments on the grid of the activations, and a zero-initialised layer.

    A call maps activations h of the layout, samples x (B, C, *) and angles arctan(sigma/(alpha s)) (B, 1, ..) to two
    tensors like x. Maps go through convolutions of size 3. Tokens, which attention has mixed already, go through linear
    layers one by one.

    Args:
        layout: Layout of the activations.
        channels: Channels C of the samples.
        axes: Number of axes of the grid.
        form: "simple": norm, SiLU, layer. "complex": a projection to few channels, a residual block conditioned on the
            noise level, norm, SiLU, layer.
        positive: Make the second moment positive.
    """

    def __init__(self, layout: Layout, channels: int, axes: int, form: str, *, positive: bool) -> None:
        super().__init__()
        self.layout, self.positive = layout, positive
        kind: type[_OnMaps | _OnTokens] = _OnMaps if layout.kind == "map" else _OnTokens
        width = layout.features
        self.trunk = None
        if form == "complex":
            width = max(2 * _GROUPS, min(kind.widest, width // _GROUPS * _GROUPS))
            self.trunk = Trunk(kind(axes), layout.features, width)
        made = kind(axes)
        last = zeroed(made.layer(width, 2 * channels * layout.patch**axes, 3))
        self.out = nn.Sequential(made.norm(width), nn.SiLU(), last)

    def forward(self, h: Tensor, x: Tensor, angle: Tensor) -> tuple[Tensor, Tensor]:
        # contiguous: in channels-last torch 2.13 may crash in the backward pass of a group norm on a CPU
        h = h.to(next(self.out.parameters()).dtype).contiguous()
        if self.trunk is not None:
            h = self.trunk(h, angle.flatten())
        second, third = self.layout.parts(self.out(h), x)
        return nn.functional.softplus(second) if self.positive else second, third


class _OnMaps:
    """Layers for maps (B, F, *grid)."""

    widest = 64

    def __init__(self, axes: int) -> None:
        self.axes = axes

    def layer(self, cin: int, cout: int, size: int) -> nn.Module:
        if self.axes == 0:
            return nn.Linear(cin, cout)
        return (nn.Conv1d, nn.Conv2d, nn.Conv3d)[self.axes - 1](cin, cout, size, padding=size // 2)

    def norm(self, channels: int) -> nn.Module:
        """Return a group norm with 8 groups, or with one where 8 does not divide the channels."""
        return nn.GroupNorm(_GROUPS if channels % _GROUPS == 0 else 1, channels)

    def modulated(self, channels: int) -> nn.Module:
        return ModulatedNorm(_GROUPS, channels)


class _OnTokens:
    """Layers for tokens (B, *, F)."""

    widest = 128

    def __init__(self, axes: int) -> None:
        pass

    def layer(self, cin: int, cout: int, size: int) -> nn.Module:
        return nn.Linear(cin, cout)

    def norm(self, channels: int) -> nn.Module:
        return nn.LayerNorm(channels)

    def modulated(self, channels: int) -> nn.Module:
        return _ModulatedTokens(channels)


class _ModulatedTokens(nn.LayerNorm):
    """Layer norm followed by scale and shift: norm(x) (1 + scale) + shift.

    x is (B, *, C); scale and shift are (B, C).
    """

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
        view = (len(x), *[1] * (x.ndim - 2), x.shape[-1])
        return torch.addcmul(shift.view(view), super().forward(x), 1 + scale.view(view))


class Trunk(nn.Module):
    """A projection and a residual block from activations to `width` features.

    The block is conditioned on the angles arctan(sigma/(alpha s)) (B,). It has few operations, since each takes a good
    part of the call of a small network.
    """

    _bits: Tensor

    def __init__(self, made: _OnMaps | _OnTokens, features: int, width: int) -> None:
        super().__init__()
        self.project = made.layer(features, width, 1)
        self.level = nn.Linear(_EMBEDDED, 2 * width)
        self.norm = made.modulated(width)
        self.layer_1, self.layer_2 = made.layer(width, width, 3), zeroed(made.layer(width, width, 3))
        frequencies = torch.logspace(math.log10(_FASTEST), 0, _EMBEDDED // 2, dtype=torch.float64)
        # stored as integers, which `module.to(torch.bfloat16)` does not convert
        self.register_buffer("_bits", frequencies.float().view(torch.int32), persistent=False)

    def forward(self, h: Tensor, angle: Tensor) -> Tensor:
        h = self.project(h)
        phases = angle[:, None] * self._bits.view(torch.float32)
        scale, shift = self.level(torch.cat([phases.cos(), phases.sin()], dim=1).to(h.dtype)).chunk(2, dim=1)
        inner = self.layer_1(nn.functional.silu(self.norm(h, scale, shift)))
        return h + self.layer_2(nn.functional.silu(inner))
