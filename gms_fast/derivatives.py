"""Directional derivatives of a function together with its value, for any network layer."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Function = Callable[..., Tensor]
Inputs = Sequence[Tensor]
Derivative = Callable[[Function, Inputs, Sequence[Inputs]], tuple[Tensor, list[Tensor]]]


@torch.no_grad()
def forward_mode(function: Function, inputs: Inputs, directions: Sequence[Inputs]) -> tuple[Tensor, list[Tensor]]:
    """Return f(inputs), and d/dh f(inputs + h d) at h = 0 for each direction d.

    Uses dual numbers (forward-mode differentiation).
    """
    with sdpa_kernel(SDPBackend.MATH):  # the only attention kernel with all derivatives
        found = [torch.func.jvp(function, tuple(inputs), tuple(d))[:2] for d in directions]
    return found[0][0], [slope for _, slope in found]


@torch.enable_grad()
def double_backward(function: Function, inputs: Inputs, directions: Sequence[Inputs]) -> tuple[Tensor, list[Tensor]]:
    """Compute the same by two backward passes.

    u^T J is linear in u, and its derivative in u along d is J d.
    """
    leaves = [v.detach().requires_grad_() for v in inputs]
    with sdpa_kernel(SDPBackend.MATH):
        value = function(*leaves)
        u = torch.zeros_like(value, requires_grad=True)
        pulled = torch.autograd.grad(value, leaves, u, create_graph=True, materialize_grads=True)
        slopes = [torch.autograd.grad(pulled, u, tuple(d), retain_graph=True)[0] for d in directions]
    return value.detach(), slopes


def either(
    function: Function, inputs: Inputs, directions: Sequence[Inputs]
) -> tuple[tuple[Tensor, list[Tensor]], Derivative]:
    """Compute the same by `forward_mode`, or by `double_backward` where a layer lacks it.

    Returns the result, and the function that computed it.
    """
    try:
        return forward_mode(function, inputs, directions), forward_mode
    except (RuntimeError, NotImplementedError):  # a real error of the network occurs again below
        return double_backward(function, inputs, directions), double_backward


def derivative_for(function: Function, inputs: Inputs) -> Derivative:
    """Return the function that `either` would use."""
    return either(function, inputs, [[torch.ones_like(v) for v in inputs]])[1]
