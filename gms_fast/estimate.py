"""A network's estimate at a state and the solver steps from there, each in one pass."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from gms_fast.finite import FiniteCheck
from gms_fast.ops import fused
from gms_fast.ops.types import COLUMNS, Draws, Fit, Linear, Watch
from gms_fast.prediction import Guided, Meaning, noise_factors, to_data, to_noise
from gms_fast.steps import StepCoefficients
from gms_fast.types import NoiseMoments

_MOST = 4096  # cached linear steps
_NOTHING = Draws()
_NARROW = (torch.float32, torch.bfloat16, torch.float16)
_linears: dict[tuple[object, ...], tuple[object, Linear]] = {}


class Estimate(NamedTuple):
    """Estimate at the state x_t: a network's output and its meaning there.

    Attributes:
        x: State x_t (B, *).
        output: One tensor, moments, or the two outputs of classifier-free guidance.
        meaning: Meaning of the output at this noise level.
        finite: Check for NaN and infinity, if there is one.
        place: Index of the time in the plan.
        data: E[x_0|x_t] in place of the output's, as dynamic thresholding makes it; or None.
    """

    x: Tensor
    output: Tensor | NoiseMoments | Guided
    meaning: Meaning
    finite: FiniteCheck | None = None
    place: int = 0
    data: Tensor | None = None

    def of(self, x: Tensor) -> "Estimate":
        """Return the same output for another state."""
        return self if x is self.x else self._replace(x=x)

    @property
    def clip(self) -> tuple[float, float] | None:
        """Data range of x_0, or None."""
        return self.meaning.clip

    @property
    def central(self) -> bool:
        """Tell whether the second and third moments are about e1."""
        return self.meaning.central

    @property
    def of_moments(self) -> bool:
        """Tell whether the output is moments rather than one tensor."""
        return not isinstance(self._conditional, Tensor)

    @property
    def given(self) -> int:
        """Number of moments that the network returned."""
        return sum(e is not None for e in _tensors(self._conditional))

    @property
    def _conditional(self) -> Tensor | NoiseMoments:
        return self.output.conditional if isinstance(self.output, Guided) else self.output

    @property
    def moments(self) -> NoiseMoments:
        """Moments of the noise, after guidance; e1 alone if the network returns one tensor."""
        output = self._merged()
        if not isinstance(output, Tensor):
            return output
        step, form = self.meaning.step, self.meaning.form
        return NoiseMoments(to_noise(form, output.to(self.x.dtype), self.x, step.alpha_t, step.sigma_t))

    def noise(self) -> tuple[Sequence[Tensor], Sequence[float]]:
        """Return E[eps|x_t] = p x + sum_j q_j y_j as the tensors y_j and the numbers (p, q_1, ..).

        x_0 is not clipped.
        """
        y, moments, without, guidance = _first(self.output)
        step = self.meaning.step
        p, q = map(float, noise_factors("noise" if moments else self.meaning.form, step.alpha_t, step.sigma_t))
        return ((y,), (p, q)) if without is None else ((y, without), (p, guidance * q, (1 - guidance) * q))

    def x0(self) -> Tensor:
        """Return E[x_0|x_t] in x's dtype, clipped to the data range if there is one.

        Gradients flow through it.
        """
        step = self.meaning.step
        derived = torch.is_grad_enabled() or forward_ad._current_level >= 0
        if not derived and not isinstance(step.alpha_t, Tensor):
            return self.linear((), (), 0.0, _NOTHING, keeps=True)[0]
        output = self._merged()
        y, form = (output, self.meaning.form) if isinstance(output, Tensor) else (output.e1, "noise")
        m = to_data(form, y.to(self.x.dtype), self.x, step.alpha_t, step.sigma_t)
        if self.clip is not None:
            return m.clamp(*self.clip)
        return m.clone() if m is y else m  # networks may reuse the memory of their output

    def linear(
        self,
        terms: Sequence[Tensor],
        weights: Sequence[float],
        std: float,
        draws: Draws,
        *,
        keeps: bool = False,
        rows: Tensor | None = None,
        present: int = 0,
    ) -> Sequence[Tensor]:
        """Take a linear step in one pass: w_0 x + w_1 m + sum_j w_{j+2} term_j + std z.

        Here m = E[x_0|x_t]. Returns the result, and m as a second tensor if `keeps`; without weights, m alone.

        rows, present: weights by element (`gms_fast.ops.types.Linear`), which replace `weights`.
        """
        if self.data is None:
            (y, moments, without, guidance), meaning = _first(self.output), self.meaning
        else:
            y, moments, without, guidance, meaning = self.data, False, None, 1.0, _as_data(self.meaning)
        step = _linear_of(_Asked(meaning, weights, moments, guidance, std, len(terms), keeps, present))
        made = fused.linear_step(
            self.x, y, terms, step, draws, numbers=rows, unconditional=without, watch=self._watch()
        )
        return self._watched(made)

    def gms_step(self, k: StepCoefficients, fit: Fit, draws: Draws, moments: str = "cumulant") -> Tensor:
        """Return x_s from a fit to the noise moments (`gms_fast.ops.gms_step`).

        A single Gaussian reads two moments only.
        """
        output, without, guidance = self.output, None, 1.0
        if isinstance(output, Guided):
            output, without, guidance = output
        e1, e2, e3 = output
        if fit.kind == "gaussian" and moments == "cumulant":
            e3 = None
        x_s = fused.gms_step(
            self.x, e1, e2, e3, k, fit, draws, moments=moments, central=self.central, clip=self.clip,
            unconditional=without, guidance=guidance, watch=self._watch(),
        )  # fmt: skip
        return self._watched((x_s,))[0]

    def _merged(self) -> Tensor | NoiseMoments:
        """Return the output as one, checked for NaN and infinity, for code outside the kernels."""
        output = self.output
        self._see(_tensors(self._conditional))
        if not isinstance(output, Guided):
            return output
        self._see((output.unconditional,))
        return output.merged(central=self.central)

    def _see(self, tensors: Sequence[Tensor | None]) -> None:
        watch = self._watch()
        if self.finite is not None and watch is not None:
            for which, tensor in enumerate(tensors):
                self.finite.see(tensor, watch.code + which)

    def _watch(self) -> Watch | None:
        return None if self.finite is None else self.finite.watch(self.place)

    def _watched(self, made: Sequence[Tensor]) -> Sequence[Tensor]:
        if self.finite is not None:
            self.finite.made = made[0]
        return made


class _Asked(NamedTuple):
    """Arguments of a linear step.

    Plans hold the first two for good, except weights that are a tuple.
    """

    meaning: Meaning
    weights: Sequence[float]
    moments: bool
    guidance: float
    std: float
    terms: int
    keeps: bool
    present: int

    def made(self) -> Linear:
        own = [0.0] * (2 + self.terms) if self.present else self.weights
        results = -(-self.present.bit_length() // COLUMNS) if self.present else int(len(self.weights) > 0)
        reading = self.meaning.reading(self.moments, self.guidance)
        return Linear(reading, (*own, self.std), self.terms, results, self.keeps, self.std > 0, self.present)


def _linear_of(asked: _Asked) -> Linear:
    """Return the step for a kernel.

    It is cached by the identity of the arguments that plans hold, because hashing them costs more.
    """
    if torch.compiler.is_compiling():
        return asked.made()
    weights = asked.weights if isinstance(asked.weights, tuple) else id(asked.weights)
    key = id(asked.meaning), weights, *asked[2:]
    found = _linears.get(key)
    if found is None:
        if len(_linears) >= _MOST:
            _linears.clear()
        found = _linears[key] = asked, asked.made()  # holding `asked` keeps its ids valid
    return found[1]


@functools.lru_cache(1024)
def _as_data(meaning: Meaning) -> Meaning:
    """Return the meaning of E[x_0|x_t] itself.

    There is one object per level, because steps are cached by its identity.
    """
    return Meaning("x0", meaning.step)


def _tensors(output: Tensor | NoiseMoments) -> Sequence[Tensor | None]:
    return (output,) if isinstance(output, Tensor) else output


def _first(output: Tensor | NoiseMoments | Guided) -> tuple[Tensor, bool, Tensor | None, float]:
    """Return (first tensor, whether moments follow, tensor without condition, guidance scale)."""
    without, scale = None, 1.0
    if isinstance(output, Guided):
        output, without, scale = output
    return (output, False, without, scale) if isinstance(output, Tensor) else (output.e1, True, without, scale)


def checked(output: object, x: Tensor) -> Tensor | NoiseMoments:
    """Check a model's output at state x: one tensor or moments.

    Raises TypeError for anything else, ValueError for a tensor that is not shaped like x.
    """
    if isinstance(output, Tensor):
        _check_shape("output", output, x)
        return _read(output, x)
    if not isinstance(output, tuple) or len(output) != 3:
        raise TypeError(f"model must return a tensor or NoiseMoments(e1, e2, e3): got {type(output).__name__}")
    if output[0] is None:
        raise TypeError("model must return e1 in its NoiseMoments: got None")
    for name, tensor in zip(NoiseMoments._fields, output, strict=True):
        if tensor is not None:
            _check_shape(name, tensor, x)
    e1, e2, e3 = output
    return NoiseMoments(_read(e1, x), *(e if e is None else _read(e, x) for e in (e2, e3)))


def _read(tensor: Tensor, x: Tensor) -> Tensor:
    """Return the tensor, cast to x's dtype if the kernels cannot read its own."""
    return tensor if tensor.dtype is x.dtype or tensor.dtype in _NARROW else tensor.to(x.dtype)


def estimate(
    output: object, x: Tensor, meaning: Meaning, finite: FiniteCheck | None = None, place: int = 0
) -> Estimate:
    """Return the estimate for a model's output at state x, checked by `checked`.

    With guidance, both outputs are checked.
    """
    if not isinstance(output, Guided):
        return Estimate(x, checked(output, x), meaning, finite, place)
    _check_shape("output without condition", output.unconditional, x)
    guided = Guided(checked(output.conditional, x), _read(output.unconditional, x), output.scale)
    return Estimate(x, guided, meaning, finite, place)


def _check_shape(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.shape != x.shape:
        raise ValueError(f"model's {name} must be shaped like x, {tuple(x.shape)}: got {tuple(tensor.shape)}")
