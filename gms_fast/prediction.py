"""Prediction types: E[x_0|x_t] and E[eps|x_t], linear in state and output.

docs/notation.md lists the formulas.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from gms_fast.ops.types import Reading
from gms_fast.types import NoiseMoments

WITHOUT_SIGNAL = ("x0", "v", "flow")  # forms that determine x_0 even where alpha = 0
_SIGMA_DATA = 0.5  # standard deviation of the data in "edm"

Number = float | Tensor
Factors = tuple[Number, Number]  # factors of x and of the output y


class Level(Protocol):
    """Noise level of a state: numbers, or tensors that broadcast against the state."""

    @property
    def alpha_t(self) -> Number: ...

    @property
    def sigma_t(self) -> Number: ...


class LevelTensors(NamedTuple):
    """Noise level as tensors, so that derivatives in time flow through it."""

    alpha_t: Tensor
    sigma_t: Tensor


def _edm(alpha: Number, sigma: Number) -> Factors:
    """Return c_skip/alpha and c_out at r = sigma/alpha (Karras et al. 2022, table 1)."""
    r = sigma / alpha
    total = r * r + _SIGMA_DATA**2
    return _SIGMA_DATA**2 / total / alpha, r * _SIGMA_DATA / total**0.5


def _noise_of_edm(alpha: Number, sigma: Number) -> Factors:
    r = sigma / alpha
    total = r * r + _SIGMA_DATA**2
    return r / total / alpha, -_SIGMA_DATA / total**0.5


def _v(alpha: Number, sigma: Number) -> Factors:
    total = alpha**2 + sigma**2
    return alpha / total, -sigma / total


def _noise_of_v(alpha: Number, sigma: Number) -> Factors:
    total = alpha**2 + sigma**2
    return sigma / total, alpha / total


# E[x_0|x_t] = p x + q y from the output y at x = alpha x_0 + sigma eps. "v" is alpha eps - sigma x_0 (Salimans & Ho
# 2022), "flow" eps - x_0, "edm" the raw network F of EDM's preconditioning, called with x and sigma as they are.
TO_DATA: dict[str, Callable[[Number, Number], Factors]] = {
    "noise": lambda alpha, sigma: (1 / alpha, -sigma / alpha),
    "x0": lambda alpha, sigma: (0.0, 1.0),
    "v": _v,
    "flow": lambda alpha, sigma: (1 / (alpha + sigma), -sigma / (alpha + sigma)),
    "edm": _edm,
}
# e1 = E[eps|x_t] = p x + q y likewise; a form without a formula here uses (x - alpha E[x_0|x_t])/sigma.
TO_NOISE: dict[str, Callable[[Number, Number], Factors]] = {
    "noise": lambda alpha, sigma: (0.0, 1.0),
    "v": _noise_of_v,
    "flow": lambda alpha, sigma: (1 / (alpha + sigma), alpha / (alpha + sigma)),
    "edm": _noise_of_edm,
}


def names() -> list[str]:
    """Return the known prediction types."""
    return list(TO_DATA)


def to_data(form: str, y: Tensor, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
    """Return E[x_0|x_t] from an output y of a prediction type.

    Levels that are tensors broadcast against x.
    """
    p, q = TO_DATA[form](alpha, sigma)
    return y if form == "x0" else p * x + q * y


def to_noise(form: str, y: Tensor, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
    """Return E[eps|x_t] from an output y of a prediction type."""
    if form == "noise":
        return y
    p, q = noise_factors(form, alpha, sigma)
    return p * x + q * y


def noise_factors(form: str, alpha: Number, sigma: Number) -> Factors:
    """Return p and q of E[eps|x_t] = p x + q y."""
    if form in TO_NOISE:
        return TO_NOISE[form](alpha, sigma)
    p, q = TO_DATA[form](alpha, sigma)
    return (1 - alpha * p) / sigma, -alpha * q / sigma


class Meaning(NamedTuple):
    """Meaning of a network's output at a noise level.

    Attributes:
        form: Form of prediction of an output that is one tensor. Moments begin with that of the noise.
        step: Noise level.
        clip: Data range of x_0, or None.
        central: Whether the second and third moments are about e1.
    """

    form: str
    step: Level
    clip: tuple[float, float] | None = None
    central: bool = False

    @property
    def said(self) -> tuple[str, tuple[float, float] | None, bool]:
        """Form, data range and kind of moments: all but the level."""
        return self.form, self.clip, self.central

    def reading(self, moments: bool, guidance: float = 1.0) -> Reading:
        """Return the kernel's form of E[x_0|x_t] from an output.

        moments: whether the output is moments, of which the first counts.
        guidance: guidance scale.
        Raises ValueError if an output of that form contains no information about x_0.
        """
        form = "noise" if moments else self.form
        if self.step.alpha_t == 0 and form not in WITHOUT_SIGNAL:
            forms = ", ".join(WITHOUT_SIGNAL)
            raise ValueError(f"model must return one tensor, a prediction of {forms}, at alpha = 0: got {form}")
        p, q = TO_DATA[form](self.step.alpha_t, self.step.sigma_t)
        lo, hi = (-math.inf, math.inf) if self.clip is None else self.clip
        return Reading(float(p), float(q), lo, hi, guidance)


class Guided(NamedTuple):
    """Two outputs of a network under classifier-free guidance; kernels combine them.

    The combination is y_u + scale (y_c - y_u).

    Attributes:
        conditional: y_c, or moments whose first is y_c; their central moments stay.
        unconditional: y_u.
        scale: Guidance scale.
    """

    conditional: Tensor | NoiseMoments
    unconditional: Tensor
    scale: float

    def merged(self, *, central: bool) -> Tensor | NoiseMoments:
        """Return the combined output."""
        y_c = self.conditional if isinstance(self.conditional, Tensor) else self.conditional.e1
        to = self.unconditional + self.scale * (y_c - self.unconditional)
        return to if isinstance(self.conditional, Tensor) else shifted(self.conditional, to, central=central)


def shifted(moments: NoiseMoments, to: Tensor, *, central: bool) -> NoiseMoments:
    """Return the moments of eps + d, where e1 + d is `to`.

    Raw: E[(eps + d)^2] = e2 + 2 d e1 + d^2 and E[(eps + d)^3] = e3 + 3 d e2 + 3 d^2 e1 + d^3.
    """
    e1, e2, e3 = moments
    if central:
        return NoiseMoments(to, e2, e3)
    d = to - e1
    second = None if e2 is None else e2 + d * (2 * e1 + d)
    third = None if e2 is None or e3 is None else e3 + d * (3 * e2 + d * (3 * e1 + d))
    return NoiseMoments(to, second, third)
