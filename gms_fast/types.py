"""The few nouns that every room shares: what a network returns and what a fit returns."""

import math
from typing import NamedTuple

from torch import Tensor


def as_range(clip: object, name: str = "clip") -> tuple[float, float]:
    """A data range, the argument of that name, as two floats.

    Raises ValueError unless it is (lo, hi) with lo < hi, not infinite at one end.
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
        raise ValueError(f"clip must be finite at both ends, or None: got {clip!r}")
    return lo, hi


class NoiseMoments(NamedTuple):
    """Elementwise moments of the noise given x_t, each shaped like x_t.

    e1 = E[eps|x_t]; e2, e3 = E[eps^k|x_t] ("raw") or E[(eps - e1)^k|x_t] ("central"), None where a model has none.
    """

    e1: Tensor
    e2: Tensor | None = None
    e3: Tensor | None = None


class Mixture(NamedTuple):
    """weight N(mean_a, var) + (1 - weight) N(mean_b, var), elementwise; every field is shaped (B, *)."""

    weight: Tensor
    mean_a: Tensor
    mean_b: Tensor
    var: Tensor
