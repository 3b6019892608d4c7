"""Statistics, measured once and used in every sampling: of a network, the curves of DPM-Solver-v3 (Zheng et al. 2023,
arXiv 2310.13268); of data, mean and covariance (Wang & Vastola 2024, arXiv 2412.09726).

`empirical_model` and `gaussian` measure them, `EmpiricalModel` and `Gaussian` hold them, `load` and `load_gaussian`
read those that come with an embedded model; `pilot` says how far a Gaussian can stand for a network.
"""

from gms_fast.measure.empirical import empirical_model as empirical_model
from gms_fast.measure.gaussian import gaussian as gaussian
from gms_fast.measure.pilot import Pilot as Pilot
from gms_fast.measure.pilot import pilot as pilot
from gms_fast.tables.empirical import EmpiricalModel as EmpiricalModel
from gms_fast.tables.empirical import load as load
from gms_fast.tables.gaussian import Gaussian as Gaussian
from gms_fast.tables.gaussian import load_gaussian as load_gaussian
from gms_fast.tables.origin import fingerprint as fingerprint

__all__ = [
    "EmpiricalModel",
    "Gaussian",
    "Pilot",
    "empirical_model",
    "gaussian",
    "load",
    "load_gaussian",
    "pilot",
]
