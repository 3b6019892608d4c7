"""Checks of a network, features and data before a search starts."""

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from gms_fast import network
from gms_fast.assumptions import attribute
from gms_fast.estimate import checked
from gms_fast.search.features import seen
from gms_fast.search.unroll import Sampler
from gms_fast.solvers import GGDMTable


@contextmanager
def frozen(*owners: object) -> Iterator[None]:
    """Put the modules among `owners` in eval mode and stop their gradients during the block.

    Modes and gradient flags are restored afterwards.
    """
    modules = [m for owner in owners if isinstance(owner, nn.Module) for m in owner.modules()]
    modes = [(m, m.training) for m in modules]
    wanted = [(p, p.requires_grad) for m in modules for p in m.parameters(recurse=False)]
    try:
        for m in modules:
            m.training = False
        for p, _ in wanted:
            p.requires_grad_(False)
        yield
    finally:
        for m, mode in modes:
            m.training = mode
        for p, before in wanted:
            p.requires_grad_(before)


def device_of(model: object, data: Tensor) -> torch.device:
    """Return the device of the network, or of the data if the network has no parameters."""
    return network.device_of(model) or data.device


def check_model(sampler: Sampler, table: GGDMTable, variant: str) -> Sampler:
    """Call the network once, and return the sampler with the form of its output.

    A network that returns moments gets the form "noise". Raises TypeError or ValueError for another output, or for one
    without a gradient.
    """
    t, shape = table.tau[-1:], sampler.shape
    x = torch.linspace(-1, 1, torch.Size(shape).numel(), device=sampler.device, dtype=sampler.dtype).view(1, *shape)
    x, time = x.requires_grad_(), sampler.network_time(t).requires_grad_()
    output = network.call(sampler.model, x, time, first=True)
    said = checked(output, x)
    sampler = sampler if isinstance(said, Tensor) else replace(sampler, form="noise")
    said = said if isinstance(said, Tensor) else said.e1
    slopes: Sequence[Tensor | None] = (None, None)
    if said.requires_grad:
        slopes = torch.autograd.grad(said.sum(), (x, time), allow_unused=True)
    if slopes[0] is None:
        raise ValueError("model must be differentiable in x: its output has no gradient; look for no_grad or detach")
    if variant == "time" and slopes[1] is None:
        raise ValueError(
            'variant "time" needs a network that is differentiable in t, with a smooth embedding of times: its output '
            'has no gradient in t; use variant="pred"'
        )
    return sampler


def check_features(features: object, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> int:
    """Return the width D of the features (N, D) of samples (N, *shape).

    Features must be finite, have one row per sample, and be differentiable. Raises TypeError or ValueError otherwise.
    """
    if not callable(features):
        raise TypeError(f"features must be callable as features(images) -> (N, D): got {type(features).__name__}")
    weight = network.weight_of(features)
    if weight is not None and weight.device != device:
        raise ValueError(f"features must be on the model's device, {device}: got {weight.device}")
    size = torch.Size(shape).numel()
    probe = torch.linspace(-1, 1, 2 * size, device=device, dtype=dtype).view(2, *shape).requires_grad_()
    with torch.enable_grad():
        found = seen(features, probe)
        if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 2:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            raise ValueError(f"features must return (N, D) for images (N, {', '.join(map(str, shape))}): got {got}")
        if not bool(found.isfinite().all()):
            raise ValueError("features must be finite: they contain NaN or infinity for images in [-1, 1]")
        slope = torch.autograd.grad(found.sum(), probe, allow_unused=True)[0] if found.requires_grad else None
    if slope is None:
        raise ValueError(
            "features must be differentiable in the images: their output has no gradient; look for torch.no_grad, "
            "detach or rounding"
        )
    return found.shape[1]


def check_data(model: object, data: object) -> tuple[int, ...]:
    """Check the data, and return the shape of one sample."""
    if not isinstance(data, Tensor) or not data.is_floating_point() or data.ndim < 2 or len(data) < 4:
        got = tuple(data.shape) if isinstance(data, Tensor) else type(data).__name__
        raise ValueError(f"data must be a floating-point tensor (N, *shape) of at least 4 samples: got {got}")
    shape = tuple(attribute(model, "sample_shape") or data.shape[1:])
    if tuple(data.shape[1:]) != shape:
        raise ValueError(f"data must be (N, {', '.join(map(str, shape))}) for this model: got {tuple(data.shape)}")
    if not bool(data.isfinite().all()):
        raise ValueError("data must be finite: it contains NaN or infinity")
    return shape


def positive(name: str, value: object) -> int:
    """Return `value` as an integer of at least 1.

    Raises ValueError naming the argument for anything else.
    """
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        found = 0
    if isinstance(value, bool) or found < 1:
        raise ValueError(f"{name} must be an integer of at least 1: got {value!r}")
    return found
