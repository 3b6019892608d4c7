"""What the ops hand to a backend, grouped by what it describes; made and checked in `gms_fast.ops.checks` only."""

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
    """numbers as of `kernel_numbers`, zeros where a tensor has them; the data range [lo, hi] may be infinite."""

    numbers: tuple[float, ...]
    moments: str
    central: bool
    lo: float
    hi: float


class Noise(NamedTuple):
    """Where the draws come from: counters, or given z and u (dense, float32 or float64).

    seed, or seeds (B,) int64, one key per sample, or seeds () int64, one key for all; step, or step_at () int64
    """

    seed: int
    seeds: Tensor | None
    sample_offset: int
    step: int
    step_at: Tensor | None
    z: Tensor | None
    u: Tensor | None
    element: bool
