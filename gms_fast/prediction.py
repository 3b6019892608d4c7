"""Predictions of a network, as the noise and as the data: linear in state and output (docs/notation.md)."""

import math
from collections.abc import Callable
from typing import NamedTuple, Protocol

from torch import Tensor

from gms_fast.ops.types import Reading
from gms_fast.types import NoiseMoments

WITHOUT_SIGNAL = ("x0", "v", "flow")  # forms that tell x_0 even where alpha = 0
_SIGMA_DATA = 0.5  # of "edm"

Number = float | Tensor
Factors = tuple[Number, Number]  # of x and of the output y


class Level(Protocol):
    """The noise level of a state: numbers, as those of a step, or tensors that broadcast against it."""

    @property
    def alpha_t(self) -> Number: ...

    @property
    def sigma_t(self) -> Number: ...


class LevelTensors(NamedTuple):
    """A level as tensors that broadcast, so that derivatives in time go through them."""

    alpha_t: Tensor
    sigma_t: Tensor


def _edm(alpha: Number, sigma: Number) -> Factors:
    """c_skip/alpha and c_out at the level r = sigma/alpha (Karras et al. 2022, table 1)."""
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
# e1 = E[eps|x_t] likewise; where no formula stands here it is what E[x_0|x_t] leaves of x.
TO_NOISE: dict[str, Callable[[Number, Number], Factors]] = {
    "noise": lambda alpha, sigma: (0.0, 1.0),
    "v": _noise_of_v,
    "flow": lambda alpha, sigma: (1 / (alpha + sigma), alpha / (alpha + sigma)),
    "edm": _noise_of_edm,
}


def names() -> list[str]:
    """The forms of prediction that `estimate` understands."""
    return list(TO_DATA)


def to_data(form: str, y: Tensor, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
    """E[x_0|x_t] from an output y of a form of `names()`; levels that are tensors broadcast against x."""
    p, q = TO_DATA[form](alpha, sigma)
    return y if form == "x0" else p * x + q * y


def to_noise(form: str, y: Tensor, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
    """E[eps|x_t] likewise."""
    if form == "noise":
        return y
    p, q = noise_factors(form, alpha, sigma)
    return p * x + q * y


def noise_factors(form: str, alpha: Number, sigma: Number) -> Factors:
    """p and q of E[eps|x_t] = p x + q y."""
    if form in TO_NOISE:
        return TO_NOISE[form](alpha, sigma)
    p, q = TO_DATA[form](alpha, sigma)
    return (1 - alpha * p) / sigma, -alpha * q / sigma


class Meaning(NamedTuple):
    """Meaning of a network's output at a noise level.

    form     of an output that is one tensor, of `names()`; of moments the first is the noise
    clip     data range of x_0, or None
    central  whether the second and third moments are about e1
    """

    form: str
    step: Level
    clip: tuple[float, float] | None = None
    central: bool = False

    @property
    def said(self) -> tuple[str, tuple[float, float] | None, bool]:
        """All but the level."""
        return self.form, self.clip, self.central

    def reading(self, moments: bool, guidance: float = 1.0) -> Reading:
        """E[x_0|x_t] as a kernel makes it from an output, of moments the first, which guidance may lead.

        Raises ValueError where an output of that form tells nothing of x_0.
        """
        form = "noise" if moments else self.form
        if self.step.alpha_t == 0 and form not in WITHOUT_SIGNAL:
            forms = ", ".join(WITHOUT_SIGNAL)
            raise ValueError(f"model must return one tensor, a prediction of {forms}, at alpha = 0: got {form}")
        p, q = TO_DATA[form](self.step.alpha_t, self.step.sigma_t)
        lo, hi = (-math.inf, math.inf) if self.clip is None else self.clip
        return Reading(float(p), float(q), lo, hi, guidance)


class Guided(NamedTuple):
    """The outputs of a network that classifier-free guidance leads, kernels doing the sum: y_u + scale (y_c - y_u).

    conditional    y_c, or moments whose first is y_c: those about it stay
    unconditional  y_u
    """

    conditional: Tensor | NoiseMoments
    unconditional: Tensor
    scale: float

    def merged(self, *, central: bool) -> Tensor | NoiseMoments:
        """The one output that they come to."""
        y_c = self.conditional if isinstance(self.conditional, Tensor) else self.conditional.e1
        to = self.unconditional + self.scale * (y_c - self.unconditional)
        return to if isinstance(self.conditional, Tensor) else shifted(self.conditional, to, central=central)


def shifted(moments: NoiseMoments, to: Tensor, *, central: bool) -> NoiseMoments:
    """Moments of eps + d, where e1 + d is `to`.

    Raw: E[(eps + d)^2] = e2 + 2 d e1 + d^2 and E[(eps + d)^3] = e3 + 3 d e2 + 3 d^2 e1 + d^3.
    """
    e1, e2, e3 = moments
    if central:
        return NoiseMoments(to, e2, e3)
    d = to - e1
    second = None if e2 is None else e2 + d * (2 * e1 + d)
    third = None if e2 is None or e3 is None else e3 + d * (3 * e2 + d * (3 * e1 + d))
    return NoiseMoments(to, second, third)
