"""A check of the data range that was assumed: the share of E[x_0|x_t] that it cuts off."""

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from gms_fast.finite import recorded
from gms_fast.prediction import Estimate

_MARGIN = 0.05  # of the range's width: trained networks overshoot a range by less
_SHARE = 0.02


class ClipCheck:
    """Warns once a run where an assumed range cuts more than 2 % of E[x_0|x_t] by more than a twentieth of its width.

    Only the last half of the steps counts: before, a network's estimate of x_0 may be anywhere.
    """

    def __init__(self) -> None:
        self._shares: list[Tensor] = []

    def see(self, estimate: Estimate) -> None:
        """Remember the share of a step, without waiting for a GPU."""
        if recorded(estimate.x) or not estimate.x.numel():
            return
        lo, hi = estimate.clip
        margin = _MARGIN * (hi - lo)
        x_0 = replace(estimate, clip=None).x0()
        self._shares.append(((x_0 < lo - margin) | (x_0 > hi + margin)).float().mean())

    def report(self) -> None:
        """Warn if the shares seen are large."""
        share = float(torch.stack(self._shares).mean()) if self._shares else 0.0
        if share > _SHARE:
            warnings.warn(
                f"clip=(-1, 1) was assumed, and {share:.0%} of x_0 was clipped by more than 0.1 in the last half of "
                "the steps: for data of another range, such as latents, give clip=None or its range, here or as the "
                "model's attribute `clip`",
                stacklevel=5,  # whoever called `sample`
            )
