"""Two-component mixtures with given first three moments (docs/notation.md, eqs. 4-6)."""

import torch
from torch import Tensor

# Past this skewness the far weight 1/g^2 is below every uniform draw, and g^2 must not overflow in float32.
MAX_SKEWNESS = 2.0**60


def fit_mixture(
    mean: Tensor,
    base: Tensor,
    excess: Tensor,
    third: Tensor,
    fit: str,
    weight: float,
    iterations: int,
    lr: float,
    eps: float,
    node_range: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (weight, mean_a, mean_b, V), elementwise, for var = base + excess.

    The distance of the means may use `excess` only.

    fit         "free": where it changes the weight, component a is the light one, far above or below the mean
    node_range  for fit="free": how far the means may lie (below, above) the mean; it bounds the third moment
    """
    w = torch.full_like(mean, weight)
    if fit == "gaussian":
        return w, mean, mean, base + excess
    if fit == "adan":
        return (w, *adan(mean, base + excess, third, weight, iterations, lr, eps))
    if node_range is not None:
        third = _within(third, excess, *node_range)
    p = weight * (1 - weight)
    d_max = (excess / p).sqrt()
    d = _cbrt(third / (p * (1 - 2 * weight)))
    infeasible = d.abs() > d_max
    d = torch.minimum(torch.maximum(d, -d_max), d_max)
    v = base + torch.where(infeasible, 0, excess - p * d * d).clamp(min=0)
    exact = w, mean + (1 - weight) * d, mean - weight * d, v
    if fit == "exact":
        return exact
    free = (*_two_point(mean, excess, third), base)
    choose = infeasible & (excess > 0)
    w, mean_a, mean_b, v = (torch.where(choose, f, e) for f, e in zip(free, exact, strict=True))
    return w, mean_a, mean_b, v


def _cbrt(x: Tensor) -> Tensor:
    return x.sign() * x.abs().pow(1 / 3)


def _within(third: Tensor, excess: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """Return the nearest third moment whose two-point law lies in [mean - below, mean + above].

    A node q s above the mean has its partner s/q below, and the skewness q - 1/q grows with q.
    """
    low, high = excess**2 / below - excess * below, excess * above - excess**2 / above
    return torch.where(excess > 0, torch.minimum(torch.maximum(third, low), high), 0)


def _two_point(mean: Tensor, excess: Tensor, third: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return light weight, far node and near node of the two-point law.

    w = (1 - |g|/h)/2 with h = sqrt(4 + g^2). The far node is s (|g| + h)/2 away from the mean, on the side of g's sign.
    """
    s = excess.sqrt()
    g = (third / s / s / s).clamp(-MAX_SKEWNESS, MAX_SKEWNESS)
    h = (4 + g * g).sqrt()
    far = (h + g.abs()) / 2  # far and near node, in units of s; their product is -1
    light = 1 / (h * far)  # without the cancellation of (1 - |g|/h)/2
    side = s.copysign(g)
    return light, mean + side * far, mean - side / far


def adan(
    mean: Tensor, var: Tensor, third: Tensor, weight: float, iterations: int, lr: float, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the released fit: Adan on the squared residuals of the three raw moments.

    Returns (mean_a, mean_b, V) after `iterations`. It works per element. eps = 1e-8 N reproduces a released call on N
    elements at once, whose loss is a mean over them.
    """
    w, w2 = weight, 1 - weight
    second, raw = mean**2 + var, third + 3 * mean * var + mean**3
    theta = torch.stack([mean, mean - 1e-3, torch.full_like(mean, 0.998)])
    m, d, s, last = (torch.zeros_like(theta) for _ in range(4))
    for k in range(1, iterations + 1):
        a, b, beta = theta
        v = var * beta.clamp(0.1, 1.2)
        e0 = w * a + w2 * b - mean
        e1 = w * (a**2 + v) + w2 * (b**2 + v) - second
        e2 = w * (a**3 + 3 * a * v) + w2 * (b**3 + 3 * b * v) - raw
        grad_v = 2 * e1 + 6 * e2 * (w * a + w2 * b)
        grad = torch.stack(
            [
                w * (2 * e0 + 4 * e1 * a + 6 * e2 * (a**2 + v)),
                w2 * (2 * e0 + 4 * e1 * b + 6 * e2 * (b**2 + v)),
                torch.where((beta >= 0.1) & (beta <= 1.2), var * grad_v, 0),
            ]
        )
        diff = torch.zeros_like(grad) if k == 1 else grad - last
        m = 0.9 * m + 0.1 * grad
        d = 0.92 * d + 0.08 * diff
        s = 0.92 * s + 0.08 * (grad + 0.92 * diff) ** 2
        step = m / (1 - 0.9**k) + 0.92 * d / (1 - 0.92**k)
        theta = theta - lr * step / (s.sqrt() / (1 - 0.92**k) ** 0.5 + eps)
        last = grad
    return theta[0], theta[1], var * theta[2].clamp(0.1, 1.2)


def draw(mixture: tuple[Tensor, Tensor, Tensor, Tensor], z: Tensor, u: Tensor) -> Tensor:
    """Return (mean_a if u < weight else mean_b) + sqrt(V) z."""
    w, mean_a, mean_b, v = mixture
    return torch.where(u < w, mean_a, mean_b) + v.sqrt() * z
