"""Tables for solvers, each with its file: network curves, data covariance, learned steps."""

from gms_fast.tables.empirical import EmpiricalModel as EmpiricalModel
from gms_fast.tables.gaussian import Gaussian as Gaussian
from gms_fast.tables.ggdm import GGDMTable as GGDMTable
from gms_fast.tables.ggdm import load_table as load_table
