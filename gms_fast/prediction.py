"""Predictions of networks, as noise moments and as the data estimate (docs/notation.md)."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from torch import Tensor

from gms_fast.types import NoiseMoments

WITHOUT_SIGNAL = ("x0", "v", "flow")  # forms that tell x_0 even where alpha = 0
_SIGMA_DATA = 0.5  # of "edm"

Number = float | Tensor
_Formula = Callable[[Tensor, Tensor, Number, Number], Tensor]


class Level(Protocol):
    """The noise level of a state: numbers, as those of a step, or tensors that broadcast against it."""

    @property
    def alpha_t(self) -> Number: ...

    @property
    def sigma_t(self) -> Number: ...


class LevelTensors(NamedTuple):
    """A level as tensors (), so that derivatives in time go through them."""

    alpha_t: Tensor
    sigma_t: Tensor


def _edm(y: Tensor, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
    """c_skip x/alpha + c_out y at the level r = sigma/alpha (Karras et al. 2022, table 1)."""
    r = sigma / alpha
    total = r * r + _SIGMA_DATA**2
    return (_SIGMA_DATA**2 / total / alpha) * x + (r * _SIGMA_DATA / total**0.5) * y


# E[x_0|x_t] from the output y at x = alpha x_0 + sigma eps. "v" is alpha eps - sigma x_0 (Salimans & Ho 2022), "flow"
# eps - x_0, "edm" the raw network F of EDM's preconditioning, called with x and sigma as they are.
TO_DATA: dict[str, _Formula] = {
    "noise": lambda y, x, alpha, sigma: (x - sigma * y) / alpha,
    "x0": lambda y, x, alpha, sigma: y,
    "v": lambda y, x, alpha, sigma: (alpha * x - sigma * y) / (alpha**2 + sigma**2),
    "flow": lambda y, x, alpha, sigma: (x - sigma * y) / (alpha + sigma),
    "edm": _edm,
}
# e1 = E[eps|x_t]; where no formula stands here it is what E[x_0|x_t] leaves of x.
TO_NOISE: dict[str, _Formula] = {
    "noise": lambda y, x, alpha, sigma: y,
    "v": lambda y, x, alpha, sigma: (alpha * y + sigma * x) / (alpha**2 + sigma**2),
    "flow": lambda y, x, alpha, sigma: (x + alpha * y) / (alpha + sigma),
}


def names() -> list[str]:
    """The forms of prediction that `estimate` understands."""
    return list(TO_DATA)


def to_noise(form: str, y: Tensor, x: Tensor, alpha: Number, sigma: Number) -> Tensor:
    """E[eps|x_t] from an output y of a form of `names()`; levels that are tensors broadcast against x."""
    if form in TO_NOISE:
        return TO_NOISE[form](y, x, alpha, sigma)
    return (x - alpha * TO_DATA[form](y, x, alpha, sigma)) / sigma


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate at the state x_t by a network: noise moments, or one tensor in one of the forms of `names()`.

    clip     data range of x_0, or None
    central  whether the second and third moments are about e1
    """

    x: Tensor
    output: Tensor | NoiseMoments
    form: str
    step: Level
    clip: tuple[float, float] | None
    central: bool = False

    def of(self, x: Tensor) -> "Estimate":
        """The same output of the network for another state."""
        return self if x is self.x else replace(self, x=x)

    @property
    def said(self) -> dict[str, Tensor]:
        """The tensors that the network gives, by name."""
        if isinstance(self.output, Tensor):
            return {"e1" if self.form == "noise" else "its output": self.output}
        return {name: e for name, e in zip(NoiseMoments._fields, self.output, strict=True) if e is not None}

    @property
    def moments(self) -> NoiseMoments:
        """Moments of the noise as the network gives them, e1 alone where it gives one tensor."""
        if not isinstance(self.output, Tensor):
            return self.output
        y = self.output.to(self.x.dtype)
        return NoiseMoments(to_noise(self.form, y, self.x, self.step.alpha_t, self.step.sigma_t))

    def x0(self) -> Tensor:
        """E[x_0|x_t], clipped to the data range if there is one; x's dtype."""
        if isinstance(self.output, Tensor):
            y, form = self.output, self.form
        else:
            y, form = self.output.e1, "noise"
        m = TO_DATA[form](y.to(self.x.dtype), self.x, self.step.alpha_t, self.step.sigma_t)
        if self.clip is not None:
            return m.clamp(*self.clip)
        return m.clone() if m is self.output else m  # networks may write to their output again

    def noise(self) -> Tensor:
        """E[eps|x_t], or where there is a data range what the clipped E[x_0|x_t] leaves of x; x's dtype."""
        if self.clip is None:
            return self.moments.e1.to(self.x.dtype)
        return (self.x - self.step.alpha_t * self.x0()) / self.step.sigma_t


def estimate(
    output: object,
    x: Tensor,
    step: Level,
    form: str,
    clip: tuple[float, float] | None = None,
    central: bool = False,
) -> Estimate:
    """A model's output at state x: moments as they are, one tensor by its `form`.

    Raises TypeError for another output, ValueError for one that is not shaped like x.
    """
    if isinstance(output, Tensor):
        _check_shape("output", output, x)
        return Estimate(x=x, output=output, form=form, step=step, clip=clip, central=central)
    if not isinstance(output, tuple) or len(output) != 3:
        raise TypeError(f"model must return a tensor or NoiseMoments(e1, e2, e3): got {type(output).__name__}")
    if output[0] is None:
        raise TypeError("model must return e1 in its NoiseMoments: got None")
    for name, tensor in zip(NoiseMoments._fields, output, strict=True):
        if tensor is not None:
            _check_shape(name, tensor, x)
    return Estimate(x=x, output=NoiseMoments(*output), form=form, step=step, clip=clip, central=central)


def _check_shape(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.shape != x.shape:
        raise ValueError(f"model's {name} must be shaped like x, {tuple(x.shape)}: got {tuple(tensor.shape)}")
