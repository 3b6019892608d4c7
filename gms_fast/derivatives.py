"""Derivatives of a function along directions, with its value, through every layer that a network may have."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Function = Callable[..., Tensor]
Inputs = Sequence[Tensor]
Derivative = Callable[[Function, Inputs, Sequence[Inputs]], tuple[Tensor, list[Tensor]]]


@torch.no_grad()
def forward_mode(function: Function, inputs: Inputs, directions: Sequence[Inputs]) -> tuple[Tensor, list[Tensor]]:
    """f(inputs), and d/dh f(inputs + h d) at h = 0 for each d of one or more directions, by dual numbers."""
    with sdpa_kernel(SDPBackend.MATH):  # the one kind of attention that can be derived in every way
        found = [torch.func.jvp(function, tuple(inputs), tuple(d))[:2] for d in directions]
    return found[0][0], [slope for _, slope in found]


@torch.enable_grad()
def double_backward(function: Function, inputs: Inputs, directions: Sequence[Inputs]) -> tuple[Tensor, list[Tensor]]:
    """The same: u^T J is linear in u, and its derivative in u along d is J d."""
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
    """The same by `forward_mode` where every layer supports it, else by `double_backward`; and which of them did it."""
    try:
        return forward_mode(function, inputs, directions), forward_mode
    except (RuntimeError, NotImplementedError):  # what else is wrong with the network shows again in the other way
        return double_backward(function, inputs, directions), double_backward


def derivative_for(function: Function, inputs: Inputs) -> Derivative:
    """The way that `either` takes."""
    return either(function, inputs, [[torch.ones_like(v) for v in inputs]])[1]
