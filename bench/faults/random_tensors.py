"""Random tensors of every layout, dtype and size of values."""

import math
import random
from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
SIZES = (0, 1, 1, 2, 3, 4, 5, 8)
MANY = ((3, 6000), (2, 700), (5, 3, 16, 15))  # several blocks; the first is large enough for two threads
APART = ("dense", "dense", "permuted", "sliced", "channels last", "offset")  # layouts that can be written to
SHARING = ("expanded", "overlapping", "negated")
ODD = (0.0, -0.0, 1e-45, -1e-40, 1e-38, 6e-5, 65504.0, 1e30, -3e38, 1e-300, 1e300, math.inf, -math.inf, math.nan)


class Tensors:
    """Source of random tensors of one shape and mostly one dtype; `numbers` makes other choices."""

    def __init__(self, seed: int) -> None:
        self.numbers, self._generator = random.Random(seed), torch.Generator().manual_seed(seed)
        self.choice = self.numbers.choice
        self.shape = self._shape()
        self._dtype = self.choice(DTYPES) if self.chance(0.7) else None

    def chance(self, share: float) -> bool:
        return self.numbers.random() < share

    def _shape(self) -> tuple[int, ...]:
        if self.chance(0.02):
            return self.choice(MANY)
        shape = [self.choice(SIZES) for _ in range(self.numbers.randint(1, 5))]
        return tuple(shape if self.chance(0.2) else [max(n, 1) for n in shape])

    def values(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Draw standard normal values, values of many magnitudes, or special ones."""
        x, kind = torch.randn(shape, generator=self._generator, dtype=torch.float64), self.numbers.random()
        if kind > 0.5:
            x = x * 10.0 ** torch.randint(-12, 13, shape, generator=self._generator)
        if kind > 0.8:
            x = torch.tensor(ODD, dtype=torch.float64)[torch.randint(len(ODD), shape, generator=self._generator)]
        return x.to(dtype)

    def integers(self, shape: Sequence[int]) -> Tensor:
        """Draw int64 numbers, contiguous or not."""
        words = torch.randint(-(1 << 62), 1 << 62, (*shape, 2), generator=self._generator)
        return words[..., 0] if self.chance(0.5) else words[..., 0].clone()

    def tensor(
        self,
        shape: Sequence[int] | None = None,
        dtype: torch.dtype | None = None,
        layouts: Sequence[str] = (*APART, *SHARING),
    ) -> Tensor:
        """Draw a tensor in one of the layouts, by default of this source's shape and dtype."""
        shape, dtype = self.shape if shape is None else tuple(shape), dtype or self._dtype or self.choice(DTYPES)
        layout = self.choice(layouts)
        if layout in ("expanded", "overlapping", "sliced", "permuted", "offset"):
            return getattr(self, f"_{layout}")(shape, dtype)
        values = self.values(shape, dtype)
        if layout == "channels last" and len(shape) == 4:
            return values.contiguous(memory_format=torch.channels_last)
        return torch._neg_view(values) if layout == "negated" else values

    def _permuted(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        order = self.numbers.sample(range(len(shape)), len(shape))
        return self.values([shape[i] for i in order], dtype).permute([order.index(i) for i in range(len(shape))])

    def _sliced(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        cuts = []
        for n in shape:
            first, by = self.choice((0, 0, 1)), self.choice((1, 1, 2))
            cuts.append(slice(first, first + n * by, by))
        return self.values([cut.stop for cut in cuts], dtype)[tuple(cuts)]

    def _expanded(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.values([self.choice((1, n)) for n in shape], dtype).expand(shape)

    def _offset(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return self.values([math.prod(shape) + 3], dtype)[3:].view(shape)

    def _overlapping(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        strides = [self.choice((0, 1, 1, 2, 3)) for _ in shape]
        room = 1 + sum((n - 1) * by for n, by in zip(shape, strides, strict=True) if n)
        return self.values([room], dtype).as_strided(shape, strides)
