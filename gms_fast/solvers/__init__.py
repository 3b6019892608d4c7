"""Solvers: frozen dataclasses, one paper a file, run by the loop of `gms_fast/sampling.py`."""

from gms_fast.solvers.ancestral import DDPM as DDPM
from gms_fast.solvers.ancestral import SNDDPM as SNDDPM
from gms_fast.solvers.base import Solver as Solver
from gms_fast.solvers.base import TimeStep as TimeStep
from gms_fast.solvers.ddim import DDIM as DDIM
from gms_fast.solvers.dpm_solver_pp import DPMSolverPP as DPMSolverPP
from gms_fast.solvers.dpm_solver_v3 import DPMSolverV3 as DPMSolverV3
from gms_fast.solvers.er_sde import ERSDE as ERSDE
from gms_fast.solvers.ggdm import GGDM as GGDM
from gms_fast.solvers.gms import GMS as GMS
from gms_fast.solvers.heun import Euler as Euler
from gms_fast.solvers.heun import Heun as Heun
from gms_fast.solvers.teleport import Teleport as Teleport
from gms_fast.solvers.text import build as build
from gms_fast.solvers.text import kind as kind
from gms_fast.solvers.text import names as names
from gms_fast.solvers.text import text_of as text_of
from gms_fast.solvers.unip import UniP as UniP
from gms_fast.solvers.unip import UniPC as UniPC
from gms_fast.tables import GGDMTable as GGDMTable
from gms_fast.tables import load_table as load_table

__all__ = [
    "DDIM",
    "DDPM",
    "DPMSolverPP",
    "DPMSolverV3",
    "ERSDE",
    "Euler",
    "GGDM",
    "GGDMTable",
    "GMS",
    "Heun",
    "SNDDPM",
    "Solver",
    "Teleport",
    "TimeStep",
    "UniP",
    "UniPC",
    "build",
    "load_table",
    "names",
    "text_of",
]
