"""The update of every linear solver: a weighted sum of state, data estimate and history, and noise (docs/notation.md,
eq. 7)."""

from collections.abc import Sequence

from torch import Tensor

Weight = float | Tensor | None  # a number, one for each element (*), or none


def led(conditional: Tensor, unconditional: Tensor, scale: float) -> Tensor:
    """A network's output led away from its output without a condition (classifier-free guidance)."""
    return unconditional + scale * (conditional - unconditional)


def data_estimate(
    x: Tensor, y: Tensor, of_x: float | Tensor, of_output: float | Tensor, lo: float, hi: float
) -> Tensor:
    """E[x_0|x_t] from the state and a network's output, which it is linear in for every form of prediction."""
    return (of_x * x + of_output * y).clamp(lo, hi)


def linear_step(inputs: Sequence[Tensor], weights: Sequence[Weight], added: Weight = None) -> Tensor:
    """sum_j w_j input_j + what is added, without the inputs that have no weight."""
    (first, weight), *rest = [(t, w) for t, w in zip(inputs, weights, strict=True) if w is not None]
    total = weight * first
    for term, weight in rest:
        total = total + weight * term
    return total if added is None else total + added
