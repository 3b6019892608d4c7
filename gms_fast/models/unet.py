"""The improved-DDPM U-Net with output heads for noise moments (docs/notation.md).

Parameter names are those of the released improved-DDPM and GMS checkpoints (`time_embed`, `input_blocks`,
`middle_block`, `output_blocks`, `out`, and the heads `out2`, `out3`), so that their weights load unchanged.
Sources: Nichol & Dhariwal 2021, arXiv 2102.09672; Guo et al. 2023, arXiv 2311.00941.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import peek_interpreter_stack
from torch.autograd import forward_ad

from gms_fast.finite import recorded
from gms_fast.models.classes import check_classes
from gms_fast.models.level_table import LevelTable
from gms_fast.models.normalised import moments as normalised_moments
from gms_fast.schedules import Schedule, VPLinear, rescaled
from gms_fast.storage.schema import Choice, Either, Flag, Integer, Listed, Optional, Real, argument
from gms_fast.types import NoiseMoments

GROUPS = 32
HEADS = (None, "simple", "complex")
_COUNT = Integer(1, 1 << 16)
ARGUMENTS = {  # allowed values of each argument of `MomentUNet`, except the schedule
    "image_size": _COUNT,
    "in_channels": _COUNT,
    "model_channels": _COUNT,
    "channel_mult": Listed(_COUNT, 32, 1),
    "num_res_blocks": Integer(1, 1000),
    "attention_resolutions": Listed(Integer(1), 64),
    "num_heads": _COUNT,
    "dropout": Real(0, 1, open=True),
    "use_scale_shift_norm": Flag(),
    "head": Either(Choice(HEADS), Listed(Choice(HEADS), 2, 2)),
    "out_channels": Optional(_COUNT),
    "moments": Choice(("raw", "central")),
    "normalised": Flag(),
    "num_classes": Optional(_COUNT),
    "null_class": Flag(),
}


def timestep_embedding(t: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Return sinusoidal features (cos, then sin) of network times t (B,), (B, dim) float32."""
    half = dim // 2
    frequencies = torch.exp(-math.log(max_period) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[:, None] * frequencies[None]
    features = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return nn.functional.pad(features, (0, dim - 2 * half))


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)


class ModulatedNorm(nn.GroupNorm):
    """Group norm followed by scale and shift in one pass: norm(x) (1 + scale) + shift.

    scale and shift are (B, C). The batch is treated as one sample with B C channels and B times the groups, so that
    each channel of each sample has a weight of its own.
    """

    def forward(self, x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:  # type: ignore[override]
        if not x.numel():
            return x  # `group_norm` needs at least one group
        weight, bias = (self.weight * (1 + scale)).flatten(), (self.bias * (1 + scale) + shift).flatten()
        whole = x.reshape(1, -1, *x.shape[2:])
        return torch.group_norm(whole, len(x) * self.num_groups, weight, bias, self.eps).view(x.shape)


def zeroed(module: nn.Module) -> nn.Module:
    """Set the weights of a module to zero and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class Zeros:
    """Test of a zero-initialised layer: True while all of its weights are zero.

    Reading weights waits for a GPU. Once they are found to be nonzero, they are not read again; nor are they read while
    a CUDA graph is captured, where the answer is False.
    """

    def __init__(self) -> None:
        self._nonzero = False

    def __call__(self, layer: nn.Module) -> bool:
        if self._nonzero or any(recorded(weight) for weight in layer.parameters()):
            return False
        self._nonzero = any(bool(weight.any()) for weight in layer.parameters())
        return not self._nonzero


def _conv(cin: int, cout: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(cin, cout, 3, stride=stride, padding=1)


class Skip(nn.Conv2d):
    """A 1x1 convolution of x added to h, in one matrix product."""

    def forward(self, x: Tensor, h: Tensor) -> Tensor:  # type: ignore[override]
        h = h if self.bias is None else h + self.bias[:, None, None]
        weight = self.weight[..., 0, 0].expand(len(x), -1, -1)
        return torch.baddbmm(h.flatten(2), weight, x.flatten(2)).view(h.shape)


class ResBlock(nn.Module):
    """Two 3x3 convolutions and a skip connection, conditioned on the time embedding.

    The embedding enters before the second convolution.
    """

    def __init__(self, cin: int, cout: int, emb: int, dropout: float, scale_shift: bool) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(_norm(cin), nn.SiLU(inplace=True), _conv(cin, cout))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, (2 if scale_shift else 1) * cout))
        norm = ModulatedNorm(GROUPS, cout) if scale_shift else _norm(cout)
        self.out_layers = nn.Sequential(norm, nn.SiLU(inplace=True), nn.Dropout(dropout), zeroed(_conv(cout, cout)))
        self.skip_connection = nn.Identity() if cin == cout else Skip(cin, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h, e = self.in_layers(x), self.emb_layers(emb)  # e: (B, C or 2C)
        norm, silu, dropout, conv = self.out_layers
        h = norm(h, *e.chunk(2, dim=1)) if self.scale_shift else norm(h + e[..., None, None])
        h, skip = conv(dropout(silu(h))), self.skip_connection
        return skip(x, h) if isinstance(skip, Skip) else skip(x) + h


class Pointwise(nn.Conv1d):
    """A convolution of size 1 on tokens (B, HW, C)."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__(cin, cout, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return nn.functional.linear(tokens, self.weight.squeeze(-1), self.bias)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return softmax(q k^T/sqrt(C)) v.

    Torch's fast kernels have no forward mode, and that for CPUs has no second derivatives; both cases are computed in
    plain operations.
    """
    if _transformed() or (q.is_cpu and torch.is_grad_enabled() and not torch.compiler.is_compiling()):
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v
    return nn.functional.scaled_dot_product_attention(q, k, v)


def _transformed() -> bool:
    """Return True in a call under forward-mode derivatives or a transform of torch.func."""
    if torch.compiler.is_compiling():
        return False
    return forward_ad._current_level >= 0 or peek_interpreter_stack() is not None


class AttentionBlock(nn.Module):
    """Self-attention over positions.

    Channels of `qkv` are ordered head by head, with q, k, v inside each.
    """

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        if channels % heads:
            raise ValueError(f"num_heads must divide the channels: got {heads} heads for {channels} channels")
        self.heads = heads
        self.norm = _norm(channels)
        self.qkv = Pointwise(channels, 3 * channels)
        self.proj_out = Pointwise(channels, channels)
        zeroed(self.proj_out)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        b, c, h, w = x.shape
        tokens = self.norm(x).reshape(b, c, h * w).transpose(1, 2)  # (B, HW, C)
        qkv = self.qkv(tokens).view(b, h * w, self.heads, 3, c // self.heads)
        # each (B, heads, HW, C/heads); the fast kernels need contiguous channels
        q, k, v = qkv.transpose(1, 2).unbind(3)
        a = _attention(q, k, v).transpose(1, 2).reshape(b, h * w, c)
        return x + self.proj_out(a).transpose(1, 2).reshape(b, c, h, w)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = _conv(channels, channels, stride=2)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.op(x)


class Enlarging(nn.Conv2d):
    """A 3x3 convolution of the image with each pixel repeated 2x2."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or _transformed():
            return super().forward(nn.functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        # Taps on copies of the same pixel are added first: an output takes 4 products instead of 9.
        taps = nn.functional.avg_pool2d(self.weight, 2, stride=1, padding=1, divisor_override=1)  # (C, C, 4, 4)
        x = x.contiguous(memory_format=torch.channels_last)
        return nn.functional.conv_transpose2d(x, taps.flip(2, 3).transpose(0, 1), self.bias, stride=2, padding=1)


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Enlarging(channels)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.conv(x)


class Narrow(nn.Conv2d):
    """A 3x3 convolution to few channels."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.dtype.itemsize < 4 or torch.is_autocast_enabled("cpu"):
            return super().forward(x)
        # CPU kernels compute at least 16 channels. One product gives the 9 taps instead, which are shifted and added.
        # In 16 bits each tap would be rounded, so those take the plain way.
        weight = self.weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)
        taps = nn.functional.fold(weight @ x.flatten(2), x.shape[2:], 3, padding=1)
        return taps if self.bias is None else taps + self.bias[:, None, None]


class Stem(nn.Conv2d):
    """The first convolution, which ignores the embedding that every layer of a block gets."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


class Block(nn.Sequential):
    """Layers in sequence that all get the time embedding."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb)
        return x


def _output(channels: int, out_channels: int) -> list[nn.Module]:
    return [_norm(channels), nn.SiLU(inplace=True), zeroed(Narrow(channels, out_channels))]


class ComplexHead(nn.Sequential):
    """A residual block with time embedding, then group norm, SiLU and a 3x3 convolution.

    The convolution is zero-initialised.
    """

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        block, norm, silu, conv = self
        return conv(silu(norm(block(x, emb))))


class SimpleHead(nn.Sequential):
    """Group norm, SiLU and a zero-initialised 3x3 convolution."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x)


def _forms(head: object) -> tuple[str | None, str | None]:
    """Return the forms of the heads of the second and third moment.

    Raises ValueError unless `head` describes them.
    """
    second, third = head if isinstance(head, (list, tuple)) and len(head) == 2 else (head, head)
    if second not in HEADS or third not in HEADS:
        raise ValueError(f'head must be None, "simple", "complex" or a pair of these: got {head!r}')
    if second is None and third is not None:
        raise ValueError(f"head must not have a third moment without a second: got {head!r}")
    return second, third


class MomentUNet(nn.Module):
    """U-Net that predicts E[eps|x_t] and, with moment heads, E[eps^2|x_t] and E[eps^3|x_t].

    A call with x (B, C, H, W) and network times t (B,) returns [`NoiseMoments`][gms_fast.NoiseMoments] shaped like x,
    or only the predicted noise if `head` is None. All moments come from a single forward pass. A network with classes
    also needs the class labels y, of shape (B,) or (1,). H and W must be divisible by 2^(levels - 1). The attribute
    `clip` is the data range, (-1, 1).

    Args:
        image_size: Height and width of the training images, which determine `sample_shape`.
        in_channels: Number of image channels C.
        model_channels: Width of the first level, a multiple of 32.
        channel_mult: Width of each level as a multiple of `model_channels`. Its length is the number of levels.
        num_res_blocks: Number of residual blocks per level in the downsampling path. The upsampling path has one more
            per level.
        attention_resolutions: Downsampling factors (1, 2, 4, ...) of the levels with attention blocks. The middle of
            the network always has one attention block.
        num_heads: Number of attention heads, which must divide the number of channels.
        dropout: Dropout probability in the residual blocks, in [0, 1).
        use_scale_shift_norm: Whether the time embedding scales and shifts the output of a norm. If False, it is added
            to the activations.
        head: Architecture of the moment heads: None, "simple" (one convolution) or "complex" (a residual block followed
            by a convolution). A pair sets the heads for the second and third moment separately. For example, released
            "simple" checkpoints use ("simple", "complex"), and (head, None) omits the third moment.
        out_channels: Number of output channels for the noise, C or 2C. 2C is for checkpoints with a learned variance,
            of which only the first C channels are used. Defaults to C.
        moments: What the heads predict: "raw" moments E[eps^k|x_t] or "central" moments E[(eps - e1)^k|x_t].
        normalised: Whether to train the heads in the units of `gms_fast.models.normalised`, in which their targets are
            of order one at every noise level. The predicted second moment is then always positive, and calls still
            return moments in ordinary units. Requires moments="central".
        schedule: Noise schedule that the network is trained with. Defaults to `VPLinear()`. The network times are
            1000 t/T, as in improved-diffusion, unless the schedule specifies others.
        num_classes: Number K of classes y = 0 .. K-1. Their embedding is added to the time embedding. By default, the
            network has no classes.
        null_class: Whether to add a class `no_class` = K that means "no class", as needed for classifier-free guidance.

    Raises:
        ValueError: If an argument has the wrong type or is out of range, or if a call gets a tensor of the wrong shape
            or an invalid class.

    Examples:
        >>> net = gms_fast.models.MomentUNet(image_size=8, in_channels=1, model_channels=32,
        ...                                  channel_mult=(1, 2), num_res_blocks=1)
        >>> moments = net(torch.zeros(2, 1, 8, 8), torch.tensor([10.0, 500.0]))
        >>> moments.e1.shape, moments.e3.shape
        (torch.Size([2, 1, 8, 8]), torch.Size([2, 1, 8, 8]))

    References:
        Nichol & Dhariwal 2021, arXiv 2102.09672; Guo et al. 2023, arXiv 2311.00941.
    """

    origin: str | None = None  # embedded name or folder from which it was loaded

    prediction = "noise"
    clip = (-1.0, 1.0)
    data_std = 1.0  # s of normalised heads
    needed: tuple[str, ...]  # ("y",) of a network with classes; others have no such attribute

    def __init__(
        self,
        *,
        image_size: int = 32,
        in_channels: int = 3,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (2, 4),
        num_heads: int = 4,
        dropout: float = 0.0,
        use_scale_shift_norm: bool = True,
        head: str | Sequence[str | None] | None = "complex",
        out_channels: int | None = None,
        moments: str = "raw",
        normalised: bool = False,
        schedule: Schedule | None = None,
        num_classes: int | None = None,
        null_class: bool = True,
    ) -> None:
        given = locals()
        second, third = _forms(head)
        given = {name: argument(name, given[name], want) for name, want in ARGUMENTS.items()}
        super().__init__()
        if normalised and (moments != "central" or second is None):
            raise ValueError(f'normalised heads need moments="central" and a head: got {moments!r}, head={head!r}')
        schedule = VPLinear() if schedule is None else schedule
        schedule = rescaled(schedule) if isinstance(schedule, Schedule) else schedule
        if model_channels % GROUPS:
            raise ValueError(f"model_channels must be a multiple of {GROUPS}: got {model_channels}")
        out_channels = in_channels if out_channels is None else out_channels
        if out_channels not in (in_channels, 2 * in_channels):
            raise ValueError(f"out_channels must be {in_channels} or {2 * in_channels}, or None: got {out_channels}")
        self.config: dict[str, Any] = {
            **given,
            "channel_mult": list(channel_mult),
            "attention_resolutions": list(attention_resolutions),
            "head": list(head) if isinstance(head, (list, tuple)) else head,
            "out_channels": out_channels,
        }
        if num_classes is None:
            del self.config["num_classes"]
        if null_class:
            del self.config["null_class"]
        self.sample_shape = (in_channels, image_size, image_size)
        self.schedule = schedule
        self.moments = moments
        self.levels = LevelTable(schedule, self.data_std) if normalised else None
        self.in_channels, self.model_channels = in_channels, model_channels

        emb = 4 * model_channels
        self.time_embed = nn.Sequential(nn.Linear(model_channels, emb), nn.SiLU(), nn.Linear(emb, emb))

        if num_classes is not None:
            self.label_emb, self.needed = nn.Embedding(num_classes + null_class, emb), ("y",)

        def res(cin: int, cout: int) -> ResBlock:
            return ResBlock(cin, cout, emb, dropout, use_scale_shift_norm)

        def level(cin: int, cout: int, factor: int) -> list[nn.Module]:
            attention = [AttentionBlock(cout, num_heads)] if factor in attention_resolutions else []
            return [res(cin, cout), *attention]

        ch, factor = model_channels, 1
        self.input_blocks = nn.ModuleList([Block(Stem(in_channels, ch, 3, padding=1))])
        skips = [ch]
        for i, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                self.input_blocks.append(Block(*level(ch, mult * model_channels, factor)))
                ch = mult * model_channels
                skips.append(ch)
            if i + 1 < len(channel_mult):
                self.input_blocks.append(Block(Downsample(ch)))
                skips.append(ch)
                factor *= 2
        self.factor = factor
        self.middle_block = Block(res(ch, ch), AttentionBlock(ch, num_heads), res(ch, ch))
        self.output_blocks = nn.ModuleList()
        for i, mult in reversed(list(enumerate(channel_mult))):
            for j in range(num_res_blocks + 1):
                layers = level(ch + skips.pop(), mult * model_channels, factor)
                ch = mult * model_channels
                if i > 0 and j == num_res_blocks:
                    layers.append(Upsample(ch))
                    factor //= 2
                self.output_blocks.append(Block(*layers))
        self.out = nn.Sequential(*_output(ch, out_channels))

        def head_of(form: str | None) -> nn.Sequential | None:
            if form == "complex":
                return ComplexHead(res(ch, ch), *_output(ch, in_channels))
            return None if form is None else SimpleHead(*_output(ch, in_channels))

        self.out2, self.out3 = head_of(second), head_of(third)
        self._zeros = Zeros()

    @property
    def normalised(self) -> bool:
        """True if the heads are trained in the units of `gms_fast.models.normalised`."""
        return bool(self.config["normalised"])

    @property
    def no_class(self) -> int | None:
        """Value of y that means "no class", or None if there is no such value."""
        return self.config.get("num_classes") if self.config.get("null_class", True) else None

    @property
    def has_heads(self) -> bool:
        """True if the network has moment heads."""
        return self.out2 is not None

    @property
    def untrained(self) -> bool:
        """True if the network has moment heads that were never trained."""
        return self.out2 is not None and self._zeros(self.out2[-1])

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Return the parameters of the heads by name."""
        return {name: weight for name, weight in self.named_parameters() if name.startswith(("out2.", "out3."))}

    def features(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Compute the features before the output convolution, and the time embedding.

        Args:
            x: States (B, C, H, W).
            t: Network times (B,).
            y: Class labels (B,) or (1,), for a network with classes.

        Returns:
            Features (B, model_channels, H, W), and time embedding (B, 4 model_channels).

        Raises:
            ValueError: If a shape or `y` does not fit the network.
        """
        if x.ndim != 4 or x.shape[1] != self.in_channels or x.shape[2] % self.factor or x.shape[3] % self.factor:
            raise ValueError(
                f"x must be (B, {self.in_channels}, H, W) with H and W divisible by {self.factor}: got {tuple(x.shape)}"
            )
        emb = self._embedding(x, t, y)
        h, skips = x, []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
        return h, emb

    def _embedding(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """Return the embedding of time and class, (B, 4 model_channels)."""
        emb: Tensor = self.time_embed(timestep_embedding(t, self.model_channels).to(x.dtype))
        if "num_classes" not in self.config:
            if y is not None:
                raise ValueError("y must not be given: the network was created without num_classes")
            return emb
        if y is None:
            raise ValueError('y must be given, as in sample(model, condition={"y": ..}): this MomentUNet has classes')
        check_classes(y, len(x), self.config["num_classes"], self.no_class)
        return emb + self.label_emb(y.to(x.device).long())

    def heads(self, h: Tensor, emb: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute the second and third moments from features, in the units of the heads.

        Args:
            h: Features, as returned by [`features`][gms_fast.models.MomentUNet.features].
            emb: Time embedding, as returned by `features`.

        Returns:
            The second moment, and the third moment or None if there is no head for it.

        Raises:
            ValueError: If the network has no moment heads.
        """
        if self.out2 is None:
            raise ValueError('model has no moment heads: create it with head="simple" or "complex"')
        second, third = self.out2(h, emb), None if self.out3 is None else self.out3(h, emb)
        return (nn.functional.softplus(second) if self.normalised else second), third

    def observed(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Compute E[eps|x_t] and the inputs of `heads`.

        Args:
            x: States (B, C, H, W).
            t: Network times (B,).
            y: Class labels (B,) or (1,), for a network with classes.

        Returns:
            E[eps|x_t], and the pair (features, time embedding).
        """
        h, emb = self.features(x, t, y)
        return self.out(h)[:, : self.in_channels], (h, emb)

    def first_moment(self, x: Tensor, t: Tensor, **condition: Tensor) -> Tensor:
        """Return only E[eps|x_t], without computing the heads.

        Args:
            x: States (B, C, H, W).
            t: Network times (B,).
            **condition: Class labels `y`, for a network with classes.

        Returns:
            Tensor shaped like x.
        """
        return self.observed(x, t, **condition)[0]

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> NoiseMoments | Tensor:
        e1, seen = self.observed(x, t, y)
        if not self.has_heads:
            return e1
        second, third = self.heads(*seen)
        if self.levels is None:
            return NoiseMoments(e1, second, third)
        return normalised_moments(e1, second, third, self.levels(t, x).unit)
