"""A network's noise as a function of state and time, and its derivative in a direction."""

from collections.abc import Callable

import torch
from torch import Tensor

from gms_fast import network, prediction
from gms_fast.estimate import estimate
from gms_fast.schedules import Schedule
from gms_fast.tables.wide import beside
from gms_fast.types import NoiseMoments

Noise = Callable[[Tensor, Tensor], Tensor]
Derivative = Callable[[Noise, Tensor, Tensor, Tensor, Tensor], Tensor]


def noise_of(model: Callable[..., Tensor | NoiseMoments], schedule: Schedule, form: str) -> Noise:
    """eps(x, t): E[eps|x_t] by the model, x (B, *), t () a time of the schedule in float64; x's dtype."""

    def noise(x: Tensor, t: Tensor) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        output = network.call(model, x, schedule.network_time(t).to(wide).to(x.device).expand(len(x)))
        level = prediction.LevelTensors(*(beside(f(t), x) for f in (schedule.alpha, schedule.sigma)))
        return estimate(output, x, prediction.Meaning(form, level)).moments.e1.to(x.dtype)

    return noise


@torch.no_grad()
def forward_mode(noise: Noise, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor) -> Tensor:
    """d/dh eps(x + h dx, t + h dt) at h = 0 by dual numbers; dx like x, dt like t."""
    return torch.func.jvp(noise, (x, t), (dx, dt))[1]


@torch.enable_grad()
def double_backward(noise: Noise, x: Tensor, t: Tensor, dx: Tensor, dt: Tensor) -> Tensor:
    """The same: u^T J is linear in u, and its derivative in u along (dx, dt) is J (dx, dt)."""
    inputs = tuple(v.detach().requires_grad_() for v in (x, t))
    eps = noise(*inputs)
    u = torch.zeros_like(eps, requires_grad=True)
    pulled = torch.autograd.grad(eps, inputs, u, create_graph=True, materialize_grads=True)
    return torch.autograd.grad(pulled, u, (dx, dt))[0]


def derivative_for(noise: Noise, x: Tensor, t: Tensor) -> Derivative:
    """`forward_mode` where every layer of the network supports it, else `double_backward`."""
    try:
        forward_mode(noise, x, t, torch.ones_like(x), torch.ones_like(t))
    except (RuntimeError, NotImplementedError):  # what else is wrong with the network shows again in the other way
        return double_backward
    return forward_mode
