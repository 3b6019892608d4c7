"""Dynamic thresholding of E[x_0|x_t]: Saharia et al. 2022, arXiv 2205.11487."""

from torch import Tensor


def thresholded(x_0: Tensor, ratio: float, most: float) -> Tensor:
    """Return clamp(x_0, -s, s)/s for each sample.

    s is the quantile `ratio` of |x_0| in the sample, limited to [1, `most`].
    """
    flat = x_0.flatten(1).float()
    s = flat.abs().quantile(ratio, dim=1, keepdim=True).clamp(1, most)
    return (flat.clamp(-s, s) / s).reshape(x_0.shape).to(x_0.dtype)
