"""Gaussian Mixture Solvers and other few-step samplers, with fused kernels.

>>> import gms_fast
>>> model = gms_fast.load("mnist")
>>> x = gms_fast.sample(model, steps=10)  # (16, 1, 28, 28) in [-1, 1]
"""

from typing import TYPE_CHECKING

from gms_fast import interrupts

if interrupts.is_command():
    interrupts.guard()  # before torch is imported, which takes a second

from gms_fast import ops as ops  # registers torch.ops.gms_fast.*
from gms_fast.version import __version__ as __version__

if TYPE_CHECKING:  # everything else is imported on first use, because importing torch alone takes a second
    from gms_fast import data as data
    from gms_fast import editing as editing
    from gms_fast import guidance as guidance
    from gms_fast import integrations as integrations
    from gms_fast import models as models
    from gms_fast import schedules as schedules
    from gms_fast import search as search
    from gms_fast import solvers as solvers
    from gms_fast import statistics as statistics
    from gms_fast import training as training
    from gms_fast.generation import generate as generate
    from gms_fast.graphing import graphed as graphed
    from gms_fast.integrations.diffusers import DPMSolverV3Scheduler as DPMSolverV3Scheduler
    from gms_fast.integrations.diffusers import ERSDEScheduler as ERSDEScheduler
    from gms_fast.integrations.diffusers import GGDMScheduler as GGDMScheduler
    from gms_fast.integrations.diffusers import GMSPipeline as GMSPipeline
    from gms_fast.integrations.diffusers import GMSScheduler as GMSScheduler
    from gms_fast.integrations.diffusers import MomentUNetModel as MomentUNetModel
    from gms_fast.integrations.diffusers import SolverScheduler as SolverScheduler
    from gms_fast.integrations.diffusers import TeleportScheduler as TeleportScheduler
    from gms_fast.integrations.diffusers import UniPCScheduler as UniPCScheduler
    from gms_fast.io import load as load
    from gms_fast.io import save as save
    from gms_fast.ops.dispatch import backends as backends
    from gms_fast.ops.dispatch import set_backend as set_backend
    from gms_fast.recommendation import recommend as recommend
    from gms_fast.sampling import sample as sample
    from gms_fast.solvers import Solver as Solver
    from gms_fast.stepping import Stepper as Stepper
    from gms_fast.steps import StepCoefficients as StepCoefficients
    from gms_fast.types import Mixture as Mixture
    from gms_fast.types import NoiseMoments as NoiseMoments

_ROOMS = (
    "data",
    "editing",
    "guidance",
    "integrations",
    "models",
    "ops",
    "schedules",
    "search",
    "solvers",
    "statistics",
    "training",
)
_DIFFUSERS = (
    "DPMSolverV3Scheduler",
    "ERSDEScheduler",
    "GGDMScheduler",
    "GMSPipeline",
    "GMSScheduler",
    "MomentUNetModel",
    "SolverScheduler",
    "TeleportScheduler",
    "UniPCScheduler",
)
_PLACES = {
    **dict.fromkeys(_DIFFUSERS, "integrations.diffusers"),
    "Mixture": "types",
    "NoiseMoments": "types",
    "Solver": "solvers",
    "StepCoefficients": "steps",
    "Stepper": "stepping",
    "backends": "ops.dispatch",
    "generate": "generation",
    "graphed": "graphing",
    "load": "io",
    "recommend": "recommendation",
    "sample": "sampling",
    "save": "io",
    "set_backend": "ops.dispatch",
}
_LOOKED_FOR = ("ModelMixin", "SchedulerMixin")  # diffusers looks these up when it loads a pipeline from disk
__all__ = [*_ROOMS, *_PLACES, "__version__"]


def __getattr__(name: str) -> object:
    """Import a public name, or a module of the package, when it is first used."""
    from importlib import import_module
    from importlib.util import find_spec

    if name in _LOOKED_FOR:
        found = getattr(import_module("gms_fast.integrations.diffusers"), name)
    elif name in _PLACES:
        found = getattr(import_module(f"gms_fast.{_PLACES[name]}"), name)
    elif name.isidentifier() and not name.startswith("_") and find_spec(f"gms_fast.{name}") is not None:
        found = import_module(f"gms_fast.{name}")
    else:
        raise AttributeError(f"module 'gms_fast' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
