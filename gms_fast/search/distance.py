"""Differentiable score of a search: the unbiased squared kernel distance of features (KID)."""

import math
import operator
from collections.abc import Callable, Iterable
from functools import reduce

import torch
from torch import Tensor

from gms_fast.ops.checks import check_choice

KERNELS = ("cubic", "linear")
_LEAST = 0.05  # least spread, as a share of the largest: keeps a feature that hardly varies from being scaled up
_ROWS = 1000


class Units:
    """Standardisation of features by their mean and standard deviation on data.

    A call maps features f (N, D) to (f - mean)/std, in float64. As a result, all features and all powers in the kernel
    have similar weight. Standard deviations below 0.05 times the largest one are raised to that value.

    Args:
        real: Features (M, D) of the data, M >= 2.

    Raises:
        ValueError: If the features are not finite or do not vary.

    Examples:
        >>> features = gms_fast.search.load_features("digits")
        >>> real = features(gms_fast.data.load("digits")[:200])
        >>> units = gms_fast.search.Units(real)
        >>> bool(units(real).std(0).max() < 1.001)
        True
    """

    def __init__(self, real: Tensor) -> None:
        real = real.detach().double()
        self.centre, spread = real.mean(0), real.std(0)
        if not 0 < float(spread.max()) < math.inf:
            raise ValueError(
                f"features of data must be finite and vary: their largest standard deviation is {float(spread.max()):g}"
            )
        self.spread = spread.clamp(min=_LEAST * float(spread.max()))

    def __call__(self, features: Tensor) -> Tensor:
        return (features.double() - self.centre) / self.spread


class KernelDistance:
    """Unbiased squared kernel distance between the features of samples and of data.

    For features f of samples and g of data, the distance is

        mean_{i!=j} k(f_i, f_j) + mean_{i!=j} k(g_i, g_j) - 2 mean_{ij} k(f_i, g_j).

    A call maps features f (N, D) to a float64 scalar that is differentiable in f. Because the estimate is unbiased, it
    may be negative. The term that depends only on the data is computed once.

    Args:
        real: Features (M, D) of the data, M >= 2.
        kernel: "cubic" for k(f, g) = (f.g/D + 1)^3, as in the kernel inception distance, or "linear" for
            k(f, g) = f.g, which compares only the means.

    Raises:
        ValueError: If `kernel` is unknown, or if features have fewer than two rows or a width other than D.

    Examples:
        >>> features = gms_fast.search.load_features("digits")
        >>> images = gms_fast.data.load("digits")
        >>> distance = gms_fast.search.KernelDistance(features(images[:200]))
        >>> bool(distance(features(images[200:400])) < distance(features(-images[200:400])))
        True

    References:
        Binkowski et al. 2018, arXiv 1801.01401.
    """

    def __init__(self, real: Tensor, kernel: str = "cubic") -> None:
        check_choice("kernel", kernel, KERNELS)
        if real.ndim != 2 or len(real) < 2:
            raise ValueError(f"real must be (M, D) with at least two rows: got {tuple(real.shape)}")
        self.kernel, self.real = kernel, real.detach().double()
        with torch.no_grad():
            self.own = self._among(self.real)

    def __call__(self, features: Tensor) -> Tensor:
        """Return the distance for features (N, D), N >= 2, as a float64 scalar."""
        if features.ndim != 2 or len(features) < 2 or features.shape[1] != self.real.shape[1]:
            raise ValueError(
                f"features must be (N, {self.real.shape[1]}) with at least two rows: got {tuple(features.shape)}"
            )
        features = features.double()
        return self._among(features) + self.own - 2 * self._between(features)

    def _among(self, f: Tensor) -> Tensor:
        """Return the mean of k over pairs of different rows."""
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
    """Return the loss and the score of a search, both functions of images.

    Both are kernel distances of the features `see(images)` in `Units`. The score compares with a share `held_out` of
    the data, drawn by the seed; the loss compares with the rest.
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
