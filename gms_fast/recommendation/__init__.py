"""A solver for a network and a number of calls: `recommend`, by trial or by what was measured before."""

from gms_fast.recommendation.trials import Recommendation as Recommendation
from gms_fast.recommendation.trials import Trial as Trial
from gms_fast.recommendation.trials import recommend as recommend

__all__ = [
    "Recommendation",
    "Trial",
    "recommend",
]
