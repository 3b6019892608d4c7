"""Distances between samples and real data.

x and reference are points or features (N, D), N at least `LEAST`, more if a measure says so. All return a float; lower
is better unless stated. All raise ValueError with the counts for NaN, infinity, different widths or too few rows.

No measure is enough alone: energy distance and distances of pixels respond mostly to mean and covariance.
"""

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from torchmetrics import Metric

LEAST = 50


def wasserstein(x: Tensor, reference: Tensor) -> float:
    """Wasserstein-1 distance of numbers (N, 1), in the unit of the data (scipy)."""
    from scipy.stats import wasserstein_distance

    x, reference = _pair(x, reference)
    if x.shape[1] != 1:
        raise ValueError(f"x must be (N, 1) for the Wasserstein distance: got {tuple(x.shape)}")
    return float(wasserstein_distance(x[:, 0].numpy(), reference[:, 0].numpy()))


def sliced_wasserstein(x: Tensor, reference: Tensor, projections: int = 512) -> float:
    """Root of the mean squared Wasserstein-2 distance over random lines (POT), in data units."""
    import ot

    x, reference = _pair(x, reference)
    return float(ot.sliced_wasserstein_distance(x.numpy(), reference.numpy(), n_projections=projections, seed=0))


def energy_distance(x: Tensor, reference: Tensor) -> float:
    """Unbiased energy distance 2 E|x - y| - E|x - x'| - E|y - y'|.

    It may be slightly negative (Szekely & Rizzo 2013).
    """
    x, reference = _pair(x, reference)
    return float(2 * torch.cdist(x, reference).mean() - _mean_distance(x) - _mean_distance(reference))


def frechet_distance(x: Tensor, reference: Tensor) -> float:
    """Frechet distance of two sets, by `frechet_of_moments`.

    It needs more rows than columns. It is biased upwards by about D/N: compare at equal N. On Inception features it is
    called FID; the features of this package are others.
    """
    x, reference = _pair(x, reference)
    for name, rows in (("x", x), ("reference", reference)):
        check_rows(name, len(rows), rows.shape[1])
    return frechet_of_moments(x.mean(0) - reference.mean(0), torch.cov(x.T), torch.cov(reference.T))


def frechet_of_moments(apart: Tensor, covariance: Tensor, other: Tensor) -> float:
    """Frechet distance of two Gaussians: |mu - mu'|^2 + tr(S + S' - 2 (S S')^1/2).

    With S = R R^T and S' = Q Q^T, tr (S S')^1/2 is the sum of the singular values of R^T Q. These are accurate to about
    D eps of the largest one. Roots of the eigenvalues of S S' near zero would have half the digits. The error is about
    D eps (tr S + tr S') if no direction is flat in one set only.

    Args:
        apart: mu - mu', (D,), float64.
        covariance: S, (D, D), float64.
        other: S', (D, D), float64.

    References:
        Dowson & Landau 1982.
    """
    covariance, other = covariance.reshape(len(apart), -1), other.reshape(len(apart), -1)  # cov of one column is ()
    overlap = torch.linalg.svdvals(_root(covariance).T @ _root(other)).sum()
    return max(float(apart @ apart + covariance.trace() + other.trace() - 2 * overlap), 0.0)


def _root(covariance: Tensor) -> Tensor:
    """Return R (D, r) with R R^T = S.

    Eigenvalues within D eps of zero are rounding errors of the others and are left out.
    """
    values, vectors = torch.linalg.eigh(covariance)
    some = values > len(values) * torch.finfo(values.dtype).eps * values[-1].clamp(min=0)
    return vectors[:, some] * values[some].sqrt()


def check_rows(name: str, count: int, width: int) -> None:
    """Raise ValueError unless there are more rows than columns.

    Fewer make any covariance singular.
    """
    if count <= width:
        raise ValueError(f"{name} must have more than {width} rows for a covariance: got {count}")


def kernel_distance(x: Tensor, reference: Tensor) -> float:
    """Squared maximum mean discrepancy for the kernel (x y/D + 1)^3, unbiased.

    Computed by torchmetrics; on Inception features it is called KID.
    """
    from torchmetrics.image.kid import KernelInceptionDistance

    x, reference = _pair(x, reference)
    size = min(len(x), len(reference))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torchmetrics warns that it keeps the rows
        metric = KernelInceptionDistance(_Identity(x.shape[1]), subsets=1, subset_size=size)
        torch.manual_seed(0)  # selects the rows of the larger set
        return _torchmetrics(metric, x, reference)


def precision_recall(x: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Share of x within the reference's manifold, and of the reference within that of x.

    Higher is better. A set's manifold is the union of balls around its points; each radius is the distance to the k-th
    neighbour. Both shares depend on the counts: compare at equal N.

    References:
        Kynkaanniemi et al. 2019, arXiv 1904.06991.
    """
    x, reference = _pair(x, reference)
    between = torch.cdist(x, reference)
    real, drawn = (torch.cdist(y, y).kthvalue(k + 1).values for y in (reference, x))  # + 1: the point itself
    within = ((between <= real[None]).any(1), (between <= drawn[:, None]).any(0))
    precision, recall = (float(inside.double().mean()) for inside in within)
    return precision, recall


def faithfulness(x: Tensor, guide: Tensor) -> float:
    """Mean over images of the Euclidean norm |x - guide|, in units of the data; (N, *) both.

    0 means the guide itself, so read it together with a measure of realism.

    References:
        Meng et al. 2021 (SDEdit), arXiv 2108.01073.
    """
    if x.shape != guide.shape:
        raise ValueError(f"x and guide must be of one shape: got {tuple(x.shape)} and {tuple(guide.shape)}")
    return float((x - guide).detach().cpu().double().flatten(1).norm(dim=1).mean())


def moment_errors(x: Tensor, reference: Tensor) -> tuple[float, float, float]:
    """Root mean square over elements of the errors in mean, variance and third central moment.

    Units are those of x, x^2 and x^3.
    """
    x, reference = _pair(x, reference)
    errors = (a - b for a, b in zip(_central_moments(x), _central_moments(reference), strict=True))
    mean, variance, third = (float(e.square().mean().sqrt()) for e in errors)
    return mean, variance, third


def _pair(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    for name, rows in (("x", x), ("reference", reference)):
        if rows.ndim != 2:
            raise ValueError(f"{name} must be (N, D): got {tuple(rows.shape)}")
        if len(rows) < LEAST:
            raise ValueError(f"{name} must have at least {LEAST} rows: got {len(rows)}")
        if bad := int((~torch.isfinite(rows)).any(1).sum()):
            raise ValueError(f"{name} must be finite: {bad} of {len(rows)} rows hold NaN or infinity")
    if x.shape[1] != reference.shape[1]:
        raise ValueError(f"x and reference must be of one width: got {x.shape[1]} and {reference.shape[1]}")
    return x.detach().cpu().double(), reference.detach().cpu().double()


def _mean_distance(x: Tensor) -> Tensor:
    return torch.pdist(x).mean()


def _central_moments(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean = x.mean(0)
    return mean, x.var(0), ((x - mean) ** 3).mean(0)


class _Identity(nn.Module):
    """Network that returns its input, for torchmetrics, which wants one."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.num_features = width

    def forward(self, x: Tensor) -> Tensor:
        return x


def _torchmetrics(metric: "Metric", x: Tensor, reference: Tensor) -> float:
    metric.update(reference, real=True)
    metric.update(x, real=False)
    value = metric.compute()
    return float(value[0] if isinstance(value, tuple) else value)
