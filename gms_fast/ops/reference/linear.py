"""The update of every linear solver: a weighted sum plus noise (eq. 7 of docs/notation.md).

The sum is over the state, the data estimate and its history.
"""

from collections.abc import Sequence

from torch import Tensor

Weight = float | Tensor | None  # a number, one for each element (*), or none


def led(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """Apply classifier-free guidance: unconditional + scale (conditional - unconditional)."""
    return unconditional + scale * (conditional - unconditional)


def data_estimate(
    x: Tensor, y: Tensor, of_x: float | Tensor, of_output: float | Tensor, lo: float, hi: float
) -> Tensor:
    """Return E[x_0|x_t] = clip(of_x x + of_output y), linear in y for every prediction."""
    return (of_x * x + of_output * y).clamp(lo, hi)


def linear_step(inputs: Sequence[Tensor], weights: Sequence[Weight], added: Weight = None) -> Tensor:
    """Return sum_j w_j input_j plus `added`; an input whose weight is None is left out."""
    (first, weight), *rest = [(t, w) for t, w in zip(inputs, weights, strict=True) if w is not None]
    total = weight * first
    for term, weight in rest:
        total = total + weight * term
    return total if added is None else total + added
