"""Types shared by the whole package: data ranges, noise moments and mixtures."""

import math
from typing import NamedTuple

from torch import Tensor


def as_range(clip: object, name: str = "clip") -> tuple[float, float]:
    """Return the data range `clip`, an argument called `name`, as two floats.

    Raises ValueError unless it is (lo, hi) with lo < hi, both finite or both infinite.
    """
    if (
        type(clip) is tuple
        and len(clip) == 2
        and type(clip[0]) is type(clip[1]) is float
        and -math.inf < clip[0] < clip[1] < math.inf
    ):
        return clip
    try:
        lo, hi = (float(v) for v in clip)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be (lo, hi) with lo < hi, or None: got {clip!r}") from None
    if not lo < hi:
        raise ValueError(f"{name} must be (lo, hi) with lo < hi, or None: got {clip!r}")
    if math.isinf(lo) != math.isinf(hi):
        raise ValueError(f"{name} must be finite at both ends, or None: got {clip!r}")
    return lo, hi


class NoiseMoments(NamedTuple):
    """Elementwise moments of the noise eps given x_t, as returned by a model.

    The model's attribute `moments` indicates which kind of moments e2 and e3 are:

        "raw"      e_k = E[eps^k|x_t]
        "central"  e_k = E[(eps - e1)^k|x_t]

    Attributes:
        e1: Mean E[eps|x_t], shaped like x_t.
        e2: Second moment, shaped like x_t, or None if the model does not predict it.
        e3: Third moment, shaped like x_t, or None if the model does not predict it.

    Raises:
        TypeError: If `e1` is missing. Shapes are checked when a sampler reads the moments.

    Examples:
        For standard normal data, eps given x_t is normal with mean sigma_t x_t and variance alpha_t^2:

        >>> schedule = gms_fast.schedules.build("linear")
        >>> def model(x, t):
        ...     alpha, sigma = float(schedule.alpha(t[:1])), float(schedule.sigma(t[:1]))
        ...     e1, v = sigma * x, alpha**2
        ...     return gms_fast.NoiseMoments(e1, e1**2 + v, e1**3 + 3 * v * e1)
        >>> gms_fast.sample(model, 5, schedule=schedule, shape=(3,), n=2, clip=None).shape
        torch.Size([2, 3])
    """

    e1: Tensor
    e2: Tensor | None = None
    e3: Tensor | None = None


class Mixture(NamedTuple):
    """Mixture of N(mean_a, var), with probability `weight`, and N(mean_b, var), per element.

    All four tensors have the same shape (B, *).

    Attributes:
        weight: Probability of component a, in [0, 1].
        mean_a: Mean of component a.
        mean_b: Mean of component b.
        var: Variance of both components, >= 0.

    Examples:
        >>> half = torch.full((1, 2), 0.5)
        >>> fit = gms_fast.Mixture(half, 2 * half, -2 * half, half)
        >>> (fit.weight * fit.mean_a + (1 - fit.weight) * fit.mean_b).tolist()  # the mean of the mixture
        [[0.0, 0.0]]
    """

    weight: Tensor
    mean_a: Tensor
    mean_b: Tensor
    var: Tensor
