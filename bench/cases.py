"""What is timed: the shapes, inputs of the kind that sampling meets, and `Case`, a call with the bytes it must move."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gms_fast import StepCoefficients
from gms_fast.schedules import VPLinear

SHAPES = {
    "mnist": (64, 1, 28, 28),
    "cifar": (128, 3, 32, 32),
    "cifar512": (512, 3, 32, 32),
    "latent": (16, 4, 64, 64),
    "imagenet": (16, 3, 256, 256),
    "stream": (1024, 1 << 16),  # for GPUs: 2^26 elements, far beyond any cache
}
STEP = StepCoefficients.between(VPLinear(), 499, 399)
FLOOR = STEP.c

Inputs = tuple[Tensor, ...]


class Case(NamedTuple):
    """run(*inputs) on each set of inputs in turn; `bytes` per element: inputs read once, outputs written once."""

    name: str
    run: Callable[..., object]
    sets: list[Inputs]
    bytes: int
    checked: bool = False  # against float64, before any timing

    def call(self, turn: int) -> object:
        return self.run(*self.sets[turn % len(self.sets)])


def noise_moments(shape: tuple[int, ...], device: str, seed: int) -> Inputs:
    """A state x and the noise moments e1, e2, e3 that a network returns in the middle of sampling."""
    generator = torch.Generator(device).manual_seed(seed)
    x, e1, spread, skew = (torch.randn(shape, generator=generator, device=device) for _ in range(4))
    r2 = 0.05 * spread**2
    return x, e1, r2 + e1**2, skew * r2**1.5 + 3 * e1 * r2 + e1**3


def step_moments(shape: tuple[int, ...], device: str, seed: int) -> Inputs:
    """Mean, variance and third central moment of x_s for such noise moments."""
    generator = torch.Generator(device).manual_seed(seed)
    mean, spread, skew = (torch.randn(shape, generator=generator, device=device) for _ in range(3))
    excess = (STEP.B * STEP.sigma_t / STEP.alpha_t) ** 2 * 0.05 * spread**2
    return mean, FLOOR + excess, skew * excess**1.5


def normals(count: int) -> Callable[[tuple[int, ...], str, int], Inputs]:
    """Makes `count` tensors of standard normals."""

    def make(shape: tuple[int, ...], device: str, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        return tuple(torch.randn(shape, generator=generator, device=device) for _ in range(count))

    return make


def input_sets(make: Callable[..., Inputs], shape: tuple[int, ...], device: str) -> list[Inputs]:
    """One set of inputs; on a GPU as many as twice its L2 holds, so that every call reads from memory."""
    first = make(shape, device, 0)
    if not first[0].is_cuda:
        return [first]
    size = sum(t.nbytes for t in first)
    cache = torch.cuda.get_device_properties(first[0].device).L2_cache_size
    return [first, *(make(shape, device, seed) for seed in range(1, 1 + 2 * cache // size))]


def cast(sets: list[Inputs], state: torch.dtype, moments: torch.dtype) -> list[Inputs]:
    """The sets with the first tensor in one dtype and the others in another."""
    return [(x.to(state), *(t.to(moments) for t in rest)) for x, *rest in sets]


def yardsticks(sets: list[Inputs]) -> list[Case]:
    """What every figure is a multiple of: torch's own normals, and a copy, of the first tensor's shape."""
    out = torch.empty_like(sets[0][0])
    size = out.element_size()
    return [
        Case("torch.randn_like", lambda x, *_: torch.randn_like(x), sets, size),
        Case("copy", lambda x, *_: out.copy_(x), sets, 2 * size),
    ]
