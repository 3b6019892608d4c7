"""The differentiable score of a search: the squared kernel distance of features without bias (KID's statistic)."""

import math
import operator
from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor

from gms_fast.ops.checks import check_choice

KERNELS = ("cubic", "linear")
_LEAST = 0.05  # of the largest spread of a feature: one that hardly varies is not made to count as much
_ROWS = 1000


class Units:
    """Features (N, D) less the mean of those of data, each in units of its spread there: then they, and the powers of
    the kernel, weigh alike.
    """

    def __init__(self, real: Tensor) -> None:
        real = real.detach().double()
        self.centre, spread = real.mean(0), real.std(0)
        if not 0 < float(spread.max()) < math.inf:
            raise ValueError(f"features of data must be finite and differ: their spread is {float(spread.max()):g}")
        self.spread = spread.clamp(min=_LEAST * float(spread.max()))

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.centre) / self.spread


class KernelDistance:
    """mean_{i!=j} k(f_i, f_j) + mean_{i!=j} k(g_i, g_j) - 2 mean_{ij} k(f_i, g_j) of features f of samples to those g
    of data, without bias, so it may be negative. Differentiable in f; the middle term is computed once.

    real    (M, D) features of data, M >= 2
    kernel  "cubic": (f g/D + 1)^3, as in the kernel inception distance; "linear": f g, |E f - E g|^2, means alone
    """

    def __init__(self, real: Tensor, kernel: str = "cubic") -> None:
        check_choice("kernel", kernel, KERNELS)
        if real.ndim != 2 or len(real) < 2:
            raise ValueError(f"real must be (M, D), at least two rows: got {tuple(real.shape)}")
        self.kernel, self.real = kernel, real.detach().double()
        with torch.no_grad():
            self.own = self._among(self.real)

    def __call__(self, features: Tensor) -> Tensor:
        """The distance of features (N, D), N >= 2, a float64 scalar."""
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != self.real.shape[1]:
            raise ValueError(
                f"features must be (N, {self.real.shape[1]}), at least two rows: got {tuple(features.shape)}"
            )
        features = features.double()
        return self._among(features) + self.own - 2 * self._between(features)

    def _among(self, f: Tensor) -> Tensor:
        """Mean of k over pairs of different rows."""
        n = len(f)
        if self.kernel == "linear":
            return (f.sum(0).square().sum() - f.square().sum()) / (n * (n - 1))
        whole = _total(_cubic(part, f) for part in f.split(_ROWS))
        return (whole - ((f.square().sum(1) / f.shape[1] + 1) ** 3).sum()) / (n * (n - 1))

    def _between(self, f: Tensor) -> Tensor:
        if self.kernel == "linear":
            return f.mean(0) @ self.real.mean(0)
        return _total(_cubic(f, part) for part in self.real.split(_ROWS)) / (len(f) * len(self.real))


def _total(parts: Iterable[Tensor]) -> Tensor:
    return reduce(operator.add, (part.sum() for part in parts))


def _cubic(f: Tensor, g: Tensor) -> Tensor:
    return (f @ g.T / f.shape[1] + 1) ** 3


def distances(
    see: Callable[[Tensor], Tensor], data: Tensor, *, kernel: str, held_out: float, seed: int
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """(loss, score) of images: the distance of what `see` makes of them from most of the data, and from the share of it
    that is held out, drawn by the seed; in `Units`.
    """
    with torch.no_grad():
        real = see(data)
    units = Units(real)
    real = units(real)
    held = min(max(round(held_out * len(data)), 2), len(data) - 2)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed % (1 << 32)), device="cpu")
    parts = [KernelDistance(real[index], kernel) for index in (order[held:], order[:held])]
    loss, score = (lambda images, distance=distance: distance(units(see(images))) for distance in parts)
    return loss, score
