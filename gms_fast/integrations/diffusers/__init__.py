"""Schedulers and pipelines for diffusers 0.31 or later, with the solvers of this package."""

from gms_fast.integrations.diffusers.version import check

check()

from diffusers import ModelMixin as ModelMixin  # noqa: E402
from diffusers import SchedulerMixin as SchedulerMixin  # noqa: E402

from gms_fast.integrations.diffusers.named import DPMSolverV3Scheduler as DPMSolverV3Scheduler  # noqa: E402
from gms_fast.integrations.diffusers.named import ERSDEScheduler as ERSDEScheduler  # noqa: E402
from gms_fast.integrations.diffusers.named import GGDMScheduler as GGDMScheduler  # noqa: E402
from gms_fast.integrations.diffusers.named import GMSScheduler as GMSScheduler  # noqa: E402
from gms_fast.integrations.diffusers.named import TeleportScheduler as TeleportScheduler  # noqa: E402
from gms_fast.integrations.diffusers.named import UniPCScheduler as UniPCScheduler  # noqa: E402
from gms_fast.integrations.diffusers.pipeline import GMSPipeline as GMSPipeline  # noqa: E402
from gms_fast.integrations.diffusers.pipeline import MomentUNetModel as MomentUNetModel  # noqa: E402
from gms_fast.integrations.diffusers.schedulers import SolverScheduler as SolverScheduler  # noqa: E402

__all__ = [
    "DPMSolverV3Scheduler",
    "ERSDEScheduler",
    "GGDMScheduler",
    "GMSPipeline",
    "GMSScheduler",
    "MomentUNetModel",
    "SolverScheduler",
    "TeleportScheduler",
    "UniPCScheduler",
]
