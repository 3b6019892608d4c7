"""Gaussian statistics of data, measured in one pass over batches."""

import copy
import math
from collections.abc import Iterable

import torch
from torch import Tensor
from tqdm import tqdm

from gms_fast.measure.moments import Moments
from gms_fast.tables.gaussian import Gaussian
from gms_fast.tables.wide import on_cpu

DENSE = 4096  # elements up to which all eigenvectors take about a minute


def gaussian(
    data: Tensor | Iterable[Tensor],
    rank: int | None = None,
    *,
    flips: bool = False,
    batch_size: int = 1024,
    progress: bool = False,
) -> Gaussian:
    """Measure the mean and the covariance of data in one pass.

    The estimate of the covariance is unbiased and computed in float64. The result keeps the leading eigenvectors with
    their eigenvalues. The average variance in all other directions becomes `residual`.

    Args:
        data: Samples (M, *sample), or an iterable of batches (b, *sample) that is read once. The samples are floating
            point and scaled like the network's training data. Use the training images, or a few thousand samples from
            the model.
        rank: Number of eigenvectors to keep, starting with the largest eigenvalue. None (default) keeps as many as M
            samples can determine, which is min(D, M - 1) for samples with D elements.
        flips: Also count a mirrored copy of every image (flipped along the last dimension), for networks trained with
            random flips (default False).
        batch_size: Rows of a tensor that are processed at once, >= 1 (default 1024). It limits the memory and does not
            change the result.
        progress: Show a progress bar on stderr (default False).

    Returns:
        [`Gaussian`][gms_fast.statistics.Gaussian] that includes the `range` and the `count` of the data.

    Raises:
        ValueError: If the data is not finite, if shapes differ, or if there are too few samples for `rank`.
        TypeError: If the data is not floating point, or is neither a tensor nor an iterable.

    Examples:
        >>> statistics = gms_fast.statistics.gaussian(gms_fast.data.load("digits"), rank=8)
        >>> statistics.eigenvectors.shape, statistics.count
        (torch.Size([64, 8]), 1797)

    Note:
        The covariance needs 8 D^2 bytes of memory, and computing all of its eigenvectors about three times as much. For
        D > 4096 and rank <= D/8, subspace iteration (Halko, Martinsson & Tropp 2011) computes the eigenvectors in much
        less memory. 64x64x3 images then take minutes on two cores. The eigenvalues and the fraction of the variance
        that they account for are accurate to 1e-6, even if the k-th eigenvalue decreases no faster than 1/k.

    References:
        Wang & Vastola 2024, arXiv 2412.09726.
    """
    _check_rank(rank, None, None)
    sums = _Sums()
    for batch in tqdm(_batches(data, batch_size), disable=not progress, unit="batch"):
        sums.add(batch)
    moments = sums.moments
    if moments.count < 2:
        raise ValueError(f"data must hold at least 2 samples: got {moments.count}")
    if flips:
        sums.mirror()
    D = len(moments.mean)
    most = min(D, moments.count - 1)
    _check_rank(rank, most, moments.count)
    covariance = moments.scatter.div_(moments.count - 1)
    total = float(covariance.trace())
    kept = most if rank is None else rank
    eigenvalues, vectors = _leading(covariance, kept)
    residual = max(total - float(eigenvalues.sum()), 0.0) / (D - kept) if kept < D else 0.0
    return Gaussian(
        moments.mean.view(sums.shape),
        vectors,
        eigenvalues,
        residual if kept < most else 0.0,
        range=(sums.low, sums.high),
        count=moments.count,
    )


def _leading(covariance: Tensor, kept: int) -> tuple[Tensor, Tensor]:
    """Return the largest eigenvalues in descending order, and their eigenvectors."""
    if len(covariance) <= DENSE or 8 * kept > len(covariance):
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        return eigenvalues.flip(0)[:kept].clamp(min=0), vectors[:, -kept:].flip(1)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for the first subspace
        vectors, eigenvalues, _ = torch.svd_lowrank(covariance, q=kept + kept // 2 + 8, niter=8)
    return eigenvalues[:kept], vectors[:, :kept]


class _Sums:
    """Moments and range of all samples so far."""

    def __init__(self) -> None:
        self.low, self.high = math.inf, -math.inf
        self.shape, self.moments = torch.Size(), Moments(0)  # until the first batch

    def add(self, batch: object) -> None:
        if not isinstance(batch, Tensor) or not batch.is_floating_point():
            got = getattr(batch, "dtype", type(batch).__name__)
            raise TypeError(f"data must be floating point (M, *) in the units of the network: got {got}")
        if not self.shape and batch.ndim > 1:
            self.shape, self.moments = batch.shape[1:], Moments(math.prod(batch.shape[1:]))
        if batch.ndim < 2 or batch.shape[1:] != self.shape or not batch[:1].numel():
            raise ValueError(f"data must be (M, *) of one shape: got {tuple(batch.shape)}")
        if not bool(batch.isfinite().all()):
            raise ValueError("data must be finite: it holds NaN or infinity")
        if len(batch):
            flat = on_cpu(batch).flatten(1)
            self.low, self.high = min(self.low, float(flat.min())), max(self.high, float(flat.max()))
            self.moments.add(flat)

    def mirror(self) -> None:
        """Add every sample once more with its last dimension reversed."""
        order = torch.arange(len(self.moments.mean), device="cpu").view(self.shape).flip(-1).flatten()
        mirrored = copy.copy(self.moments)
        mirrored.mean, mirrored.rest = self.moments.mean[order], self.moments.rest[order]
        mirrored.scatter = self.moments.scatter[order][:, order]
        self.moments.merge(mirrored)


def _batches(data: Tensor | Iterable[Tensor], batch_size: int) -> Iterable[Tensor]:
    if not isinstance(batch_size, int) or isinstance(batch_size, bool) or batch_size < 1:
        raise ValueError(f"batch_size must be a positive integer: got {batch_size!r}")
    if isinstance(data, Tensor):
        return data.split(batch_size) if data.ndim else [data]
    if not isinstance(data, Iterable):
        raise TypeError(f"data must be a tensor (M, *) or batches of one: got {type(data).__name__}")
    return data


def _check_rank(rank: object, most: int | None, count: int | None) -> None:
    if rank is None:
        return
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise ValueError(f"rank must be a positive integer, or None: got {rank!r}")
    if most is not None and rank > most:
        raise ValueError(f"rank must be at most {most}, all that {count} samples can have: got {rank}")
