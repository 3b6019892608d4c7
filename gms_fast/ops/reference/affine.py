"""The update of every linear solver: a weighted sum and noise (docs/notation.md, eq. 7)."""

from collections.abc import Sequence

from torch import Tensor


def affine_noise(
    x: Tensor,
    terms: Sequence[Tensor],
    weights: Sequence[float | Tensor],
    noise_std: float | Tensor,
    z: Tensor,
    constant: float | Tensor = 0.0,
) -> Tensor:
    """w_0 x + sum_i w_i term_i + constant + noise_std z; weights and constant: numbers, or one for each element (*)."""
    total = weights[0] * x
    for weight, term in zip(weights[1:], terms, strict=True):
        total = total + weight * term
    return total + constant + noise_std * z
