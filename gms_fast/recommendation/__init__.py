"""Choose a solver for a network and a number of evaluations, by trial or by prior results."""

from gms_fast.recommendation.trials import Recommendation as Recommendation
from gms_fast.recommendation.trials import Trial as Trial
from gms_fast.recommendation.trials import recommend as recommend

__all__ = [
    "Recommendation",
    "Trial",
    "recommend",
]
