"""Check of an assumed data range: the fraction of E[x_0|x_t] that it clips."""

import warnings
from functools import lru_cache

from gms_fast.estimate import Estimate
from gms_fast.finite import FiniteCheck, recorded
from gms_fast.prediction import Meaning

_MARGIN = 0.05  # fraction of the range's width; trained networks overshoot a range by less
_SHARE = 0.02  # fraction of clipped elements above which a warning is given


def note_share(estimate: Estimate, finite: FiniteCheck) -> None:
    """Note the fraction of E[x_0|x_t] outside the data range by more than the margin.

    It stays on the device, so a GPU is not waited for.
    """
    if estimate.clip is None or recorded(estimate.x) or not estimate.x.numel():
        return
    lo, hi = estimate.clip
    margin = _MARGIN * (hi - lo)
    x_0 = estimate._replace(meaning=_unclipped(estimate.meaning), finite=None).x0()
    finite.note(((x_0 < lo - margin) | (x_0 > hi + margin)).to(x_0.dtype).mean())


@lru_cache(1024)
def _unclipped(meaning: Meaning) -> Meaning:
    """Return the meaning without a data range; one object each, because steps are cached by it."""
    return meaning._replace(clip=None)


def warn_of(shares: list[float]) -> None:
    """Warn if an assumed range clips much in the last half of the steps, once per run.

    In the first half a network's estimate of x_0 may lie anywhere.
    """
    share = sum(shares) / len(shares) if shares else 0.0
    if share > _SHARE:
        warnings.warn(
            f"clip=(-1, 1) was assumed, and {share:.0%} of x_0 was clipped by more than 0.1 in the last half of the "
            "steps: if the data has another range, pass that range as clip, or set it as the model's attribute `clip`; "
            "for latents, which have no range, use clip=None",
            stacklevel=5,  # whoever called `sample`
        )
