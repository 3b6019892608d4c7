"""Statistics of networks and data, measured once and then used by solvers in every run.

Some solvers need numbers that are known only after a measurement:

    of a network   the curves of DPM-Solver-v3 (Zheng et al. 2023, arXiv 2310.13268)
    of data        mean and covariance (Wang & Vastola 2024, arXiv 2412.09726)

[`empirical_model`][gms_fast.statistics.empirical_model] and [`gaussian`][gms_fast.statistics.gaussian]
measure them. [`EmpiricalModel`][gms_fast.statistics.EmpiricalModel] and
[`Gaussian`][gms_fast.statistics.Gaussian] hold them. [`load`][gms_fast.statistics.load] and
[`load_gaussian`][gms_fast.statistics.load_gaussian] read a file, or the tables of an embedded model.
[`pilot`][gms_fast.statistics.pilot] measures how far a Gaussian can replace a network.
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
