"""What the ops hand to a backend, grouped by what it describes; made and checked in `gms_fast.ops.library` only."""

from typing import NamedTuple

from torch import Tensor


class Fitting(NamedTuple):
    """Which mixture: the fit, the weight of component a, and the released optimiser's settings."""

    fit: str
    weight: float
    iterations: int
    lr: float
    eps: float


class Stepping(NamedTuple):
    """coefficients = (alpha_t, sigma_t, A, B, c, var_max); the data range [lo, hi] is infinite where there is none."""

    coefficients: tuple[float, ...]
    moments: str
    central: bool
    lo: float
    hi: float


class Noise(NamedTuple):
    """Where the draws come from: counters (seed, or seeds (B,) int64, one key per sample), or given z and u."""

    seed: int
    seeds: Tensor | None
    sample_offset: int
    step: int
    z: Tensor | None
    u: Tensor | None
    element: bool
