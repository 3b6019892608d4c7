"""Units of normalised moment heads, in which Gaussian data N(0, s^2) has variance 1.

With c = s sigma/(alpha^2 s^2 + sigma^2)^(1/2), the standard deviation of such an x_0 given x_t, heads learn moments of

    y = (m - x_0)/c,   eps - e1 = (alpha c/sigma) y,   m = E[x_0|x_t] clipped to the data range.

Errors of the heads then weigh alike at every noise level. For s = 1 and alpha^2 + sigma^2 = 1, c is sigma and alpha y
is eps - e1; these are moments of the velocity. m is clipped because solvers clip it. The error of e1 is multiplied by
sigma/alpha, up to 157, and without clipping its sixth power would dominate the loss.
"""

from torch import Tensor

from gms_fast.types import NoiseMoments


def unit(alpha: Tensor, sigma: Tensor, data_std: float) -> Tensor:
    """Return alpha c/sigma, the unit of eps - e1, for levels that broadcast."""
    signal = alpha * data_std
    return signal / (signal**2 + sigma**2).sqrt()


def deviation(m: Tensor, x_0: Tensor, alpha: Tensor, sigma: Tensor, data_std: float) -> Tensor:
    """Return y for an m that is clipped already."""
    return (m - x_0) * ((alpha * data_std) ** 2 + sigma**2).sqrt() / (data_std * sigma)


def moments(e1: Tensor, second: Tensor, third: Tensor | None, of: Tensor) -> NoiseMoments:
    """Return central moments of the noise from those of y in the unit `of`.

    They are float32, since the third power needs its range.
    """
    return NoiseMoments(e1, of**2 * second.float(), None if third is None else of**3 * third.float())
