"""The noise prediction of a network as a differentiable function of state and time."""

from collections.abc import Callable

import torch
from torch import Tensor

from gms_fast import network, prediction
from gms_fast.estimate import estimate
from gms_fast.schedules import Schedule
from gms_fast.tables.wide import beside
from gms_fast.types import NoiseMoments

Noise = Callable[[Tensor, Tensor], Tensor]


def noise_of(model: Callable[..., Tensor | NoiseMoments], schedule: Schedule, form: str) -> Noise:
    """Return the function eps(x, t) = E[eps|x_t] of the model.

    x is (B, *); t is a scalar time of the schedule in float64. The result has the dtype of x.
    """

    def noise(x: Tensor, t: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        output = network.call(model, x, schedule.network_time(t).to(wide).to(x.device).expand(len(x)))
        level = prediction.LevelTensors(*(beside(f(t), x) for f in (schedule.alpha, schedule.sigma)))
        return estimate(output, x, prediction.Meaning(form, level)).moments.e1.to(x.dtype)

    return noise
