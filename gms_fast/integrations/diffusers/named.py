"""Schedulers of one solver each, with its options as keywords."""

from gms_fast.integrations.diffusers.schedulers import SolverScheduler


class GMSScheduler(SolverScheduler):
    """`gms_fast.solvers.GMS` in a pipeline whose network gives three moments (`SolverScheduler`), or with covariance
    and switch=0 one. E[x_0|x_t] is clipped where clip_sample is True, as pixels want it."""

    _solver = "gms"


class ERSDEScheduler(SolverScheduler):
    """`gms_fast.solvers.ERSDE` in a pipeline (`SolverScheduler`)."""

    _solver = "er-sde"


class DPMSolverV3Scheduler(SolverScheduler):
    """`gms_fast.solvers.DPMSolverV3` in a pipeline (`SolverScheduler`).

    statistics  of the network, by file or by the name of an embedded model
    """

    _solver = "dpm-solver-v3"


class UniPCScheduler(SolverScheduler):
    """`gms_fast.solvers.UniPC` in a pipeline (`SolverScheduler`)."""

    _solver = "unipc"


class GGDMScheduler(SolverScheduler):
    """`gms_fast.solvers.GGDM` in a pipeline (`SolverScheduler`); its times are those of its table.

    table  by file, or of an embedded model, as "mnist/5"
    """

    _solver = "ggdm"


class TeleportScheduler(SolverScheduler):
    """`gms_fast.solvers.Teleport` in a pipeline (`SolverScheduler`): the first times cost no call of the network.

    statistics  of the data, by file or by the name of an embedded model
    then        text of the solver that follows

    The jump happens in `scale_model_input`, before the first call; a pipeline must call it.
    """

    _solver = "teleport"
