"""Solvers: frozen dataclasses, one paper a file, all driven by the loop in `gms_fast/sampling.py`."""

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
from gms_fast.solvers.teleport import Teleport as Teleport
from gms_fast.solvers.unip import UniP as UniP
from gms_fast.tables import GGDMTable as GGDMTable
from gms_fast.tables import load_table as load_table

_BY_NAME = {
    "gms": GMS,
    "ddpm": DDPM,
    "sn-ddpm": SNDDPM,
    "ddim": DDIM,
    "dpm-solver++": DPMSolverPP,
    "er-sde": ERSDE,
    "unip": UniP,
}


_MEASURED = {  # what must be given to solvers that know a network or its data
    "dpm-solver-v3": (DPMSolverV3, "statistics"),
    "teleport": (Teleport, "statistics"),
    "ggdm": (GGDM, "table"),
}


def names() -> list[str]:
    """The string forms of the solvers with their default options. Those that need statistics or a table have none."""
    return list(_BY_NAME)


def kind(name: str) -> type[Solver]:
    """The class of that name, "dpm-solver-v3", "teleport" and "ggdm" among them."""
    kinds = _BY_NAME | {measured: kind for measured, (kind, _) in _MEASURED.items()}
    if name not in kinds:
        raise ValueError(f"solver must be a Solver or one of {', '.join(names())}: got {name!r}")
    return kinds[name]


def build(solver: str | Solver) -> Solver:
    """The solver itself, or the one of that name."""
    if isinstance(solver, Solver):
        return solver
    if isinstance(solver, str) and solver in _MEASURED:
        made, what = _MEASURED[solver]
        where = "gms_fast.statistics" if what == "statistics" else "gms_fast.search, or gms_fast.solvers.load_table"
        raise ValueError(f'solver "{solver}" needs {what} ({where}): give {made.__name__}({what}, ..)')
    if not isinstance(solver, str):
        raise ValueError(f"solver must be a Solver or one of {', '.join(names())}: got {solver!r}")
    return kind(solver)()
