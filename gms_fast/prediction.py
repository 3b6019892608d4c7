"""What a network predicts, as noise moments, and back to the data estimate (docs/notation.md)."""

from collections.abc import Callable

from torch import Tensor

from gms_fast.steps import StepCoefficients
from gms_fast.types import NoiseMoments

# e1 = E[eps|x_t] from the output y at x = alpha x_0 + sigma eps; v = alpha eps - sigma x_0 (Salimans & Ho 2022).
_TO_NOISE: dict[str, Callable[[Tensor, Tensor, float, float], Tensor]] = {
    "noise": lambda y, x, alpha, sigma: y,
    "x0": lambda y, x, alpha, sigma: (x - alpha * y) / sigma,
    "v": lambda y, x, alpha, sigma: alpha * y + sigma * x,
}


def names() -> list[str]:
    """The forms of prediction that `noise_moments` understands."""
    return list(_TO_NOISE)


def noise_moments(output: object, x: Tensor, step: StepCoefficients, prediction: str) -> NoiseMoments:
    """`NoiseMoments` from a model's output at state x: moments as they are, one tensor by its `prediction`.

    Raises TypeError for another output, ValueError for one that is not shaped like x.
    """
    if isinstance(output, Tensor):
        _check_shape("output", output, x)
        return NoiseMoments(_TO_NOISE[prediction](output.to(x.dtype), x, step.alpha_t, step.sigma_t))
    if not isinstance(output, tuple) or len(output) != 3:
        raise TypeError(f"model must return a tensor or NoiseMoments(e1, e2, e3): got {type(output).__name__}")
    if output[0] is None:
        raise TypeError("model must return e1 in its NoiseMoments: got None")
    for name, tensor in zip(NoiseMoments._fields, output, strict=True):
        if tensor is not None:
            _check_shape(name, tensor, x)
    return NoiseMoments(*output)


def _check_shape(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.shape != x.shape:
        raise ValueError(f"model's {name} must be shaped like x, {tuple(x.shape)}: got {tuple(tensor.shape)}")


def data_estimate(x: Tensor, e1: Tensor, alpha: float, sigma: float, clip: tuple[float, float] | None = None) -> Tensor:
    """E[x_0|x_t] = (x_t - sigma_t e1)/alpha_t, clipped to the data range if one is given; x's dtype."""
    m = (x - sigma * e1.to(x.dtype)) / alpha
    return m if clip is None else m.clamp(*clip)
