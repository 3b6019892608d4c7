"""Gauss quadrature of a law known by its moments: n weighted points for 2n - 1 moments.

It works element by element. For the posterior of x_0, x_s = A x_t + B node_i + sqrt(c) z, with node i drawn with its
weight, shares 2n - 1 moments with q(x_s|x_t). n = 2 is fit="free" where that changes its weight (docs/notation.md,
eq. 5). Sources: Golub & Welsch 1969; Gautschi 2004, Orthogonal Polynomials, section 2.1.7 (Chebyshev's algorithm).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

# In standard deviations. A node this far has weight 2^-52 at most, and eigh then resolves the near ones to 2^-26.
FARTHEST = 2.0**26
TINY = 1e-300


def quadrature(
    moments: Sequence[Tensor],
    nodes: int,
    node_range: tuple[float, float] | None = None,
    tolerance: float = 1e-12,
) -> tuple[Tensor, Tensor]:
    """Return (weights, nodes), each (*, n), nodes ascending, of laws with the given moments.

    moments     mean, variance, third, .., (2n-1)th central moment, tensors (*) of float64, in the data's unit and
    powers node_range  (lo, hi) around every mean; where inconsistent moments would put nodes outside, the highest ones
    give way tolerance   a law counts as one of k < n points if its k+1st orthogonal polynomial has a norm below this,
    relative to
                the moment of order 2k; its other n - k nodes then have weight 0

    Raises ValueError for too few moments.
    """
    if nodes < 1 or len(moments) < 2 * nodes - 1:
        raise ValueError(f"{nodes} nodes need nodes >= 1 and {2 * nodes - 1} moments: got {len(moments)}")
    mean, *central = moments[: 2 * nodes - 1]
    if nodes == 1:
        return torch.ones_like(mean)[..., None], mean[..., None]
    scale = central[0].clamp(min=0).sqrt()
    unit = torch.where(scale > 0, scale, 1)
    ends = [torch.full_like(mean, end) for end in (-FARTHEST, FARTHEST)]
    if node_range is not None:
        ends = [((e - mean) / unit).clamp(-FARTHEST, FARTHEST) for e in node_range]
    a, b = _limited(*_recurrence(_standardised(central, unit), tolerance), *ends)
    weights, z = _golub_welsch(a, b)
    points = mean[..., None] + scale[..., None] * z
    return weights, points if node_range is None else points.clamp(*node_range)


def pick(weights: Tensor, nodes: Tensor, u: Tensor) -> Tensor:
    """Return the node at quantile u in (0, 1] of each law.

    u (*) broadcasts against the laws (*) of `weights` and `nodes` (*, n).
    """
    above = (u[..., None] > weights.cumsum(-1)[..., :-1]).sum(-1, keepdim=True)
    return nodes.gather(-1, above.expand(*nodes.shape[:-1], 1))[..., 0]


def _standardised(central: Sequence[Tensor], unit: Tensor) -> list[Tensor]:
    """Return moments 0, 1, .. of (x - mean)/unit.

    The moments are divided by one unit at a time, because unit^n may underflow.
    """
    one = torch.ones_like(unit)
    mu = [one, torch.zeros_like(unit), one]
    for n, moment in enumerate(central[1:], start=3):
        for _ in range(n):
            moment = moment / unit
        mu.append(moment)
    return mu


def _recurrence(mu: Sequence[Tensor], tolerance: float) -> tuple[list[Tensor], list[Tensor]]:
    """Return a_0 .. a_(n-1) and b_1 .. b_(n-1) of the polynomials orthogonal for moments `mu`.

    p_(k+1)(x) = (x - a_k) p_k(x) - b_k p_(k-1)(x). Chebyshev's algorithm works on rows s_k[j] = <p_k, x^(k+j)>. From
    the first k whose norm s_k[0] is only rounding, both are 0: the Jacobi matrix splits, and its first block is the
    law.
    """
    older, row = [torch.zeros_like(mu[0])] * (len(mu) + 2), list(mu)
    a, b, last_b = [mu[1]], [], torch.zeros_like(mu[0])
    alive = torch.ones_like(mu[0], dtype=torch.bool)
    for k in range(1, len(mu) // 2):
        new = [x2 - a[-1] * x1 - last_b * y for x2, x1, y in zip(row[2:], row[1:], older[2:], strict=False)]
        a_k, b_k = new[1] / new[0] - row[1] / row[0], new[0] / row[0]
        alive = alive & (new[0] > tolerance * mu[2 * k]) & torch.isfinite(b_k) & ~torch.isnan(a_k)
        a.append(torch.where(alive, a_k, 0))
        b.append(torch.where(alive, b_k, 0))
        older, row, last_b = row, new, b[-1]
    return a, b


def _limited(a: Sequence[Tensor], b: Sequence[Tensor], lo: Tensor, hi: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Return the nearest coefficients whose nodes lie in [lo, hi]; a_0 = 0 lies between the two.

    Each coefficient is bounded given those before it. q_k = p_k/p_(k-1) at an end obeys q_(k+1) = end - a_k - b_k/q_k,
    and nodes are inside while q > 0 at hi and q < 0 at lo. For n = 2 the bound of b is Bhatia-Davis, and that of a is
    eq. 6 of docs/notation.md.
    """
    at_lo, at_hi = lo.clamp(max=-TINY), hi.clamp(min=TINY)
    inner_a, inner_b = [a[0]], []
    for a_k, b_k in zip(a[1:], b, strict=True):
        most = (hi - lo) / (1 / at_hi - 1 / at_lo)
        b_k = torch.minimum(b_k, most)
        low, high = lo - b_k / at_lo, hi - b_k / at_hi
        a_k = torch.minimum(torch.maximum(a_k, low), torch.maximum(low, high))
        at_lo, at_hi = (low - a_k).clamp(max=-TINY), (high - a_k).clamp(min=TINY)
        inner_a.append(a_k)
        inner_b.append(b_k)
    return inner_a, inner_b


def _golub_welsch(a: Sequence[Tensor], b: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Return weights and nodes (*, n) from the Jacobi matrix.

    The nodes are its eigenvalues, the weights the squares of its eigenvectors' first components.
    """
    side = torch.stack(list(b), -1).sqrt()
    jacobi = torch.diag_embed(torch.stack(list(a), -1)) + torch.diag_embed(side, 1) + torch.diag_embed(side, -1)
    nodes, vectors = torch.linalg.eigh(jacobi)
    weights = vectors[..., 0, :].square()
    return weights / weights.sum(-1, keepdim=True), nodes
