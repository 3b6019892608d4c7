"""Learn the coefficients or settings of a sampler.

[`ggdm`][gms_fast.search.ggdm] learns the few hundred coefficients of a linear sampler. It minimises a distance between
samples and data by gradients through all steps (Watson et al. 2022, arXiv 2202.05830). [`gms`][gms_fast.search.gms]
finds the times and settings of GMS without gradients.
"""

from gms_fast.search.ddss import Settings as Settings
from gms_fast.search.ddss import ggdm as ggdm
from gms_fast.search.distance import KernelDistance as KernelDistance
from gms_fast.search.distance import Units as Units
from gms_fast.search.features import DigitFeatures as DigitFeatures
from gms_fast.search.features import load_features as load_features
from gms_fast.search.gms import gms as gms

__all__ = [
    "DigitFeatures",
    "KernelDistance",
    "Settings",
    "Units",
    "ggdm",
    "gms",
    "load_features",
]
