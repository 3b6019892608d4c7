"""Empirical model statistics: three curves, measured once for a network, that DPM-Solver-v3 steps by.

`empirical_model` measures them, `EmpiricalModel` holds them, `load` reads those that come with an embedded model.
Source: Zheng et al. 2023 (arXiv 2310.13268).
"""

from gms_fast.statistics.empirical import EmpiricalModel as EmpiricalModel
from gms_fast.statistics.empirical import Tables as Tables
from gms_fast.statistics.empirical import fingerprint as fingerprint
from gms_fast.statistics.empirical import load as load
from gms_fast.statistics.measure import empirical_model as empirical_model
