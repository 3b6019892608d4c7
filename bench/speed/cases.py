"""Cases to be timed: shapes, inputs of the kind that sampling meets, and calls with the bytes they must move."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from bench.speed.machine import Machine
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


class Sets:
    """Sets of inputs that a case runs on in turn, and as many fresh ones as are asked for: `draw(seed)` makes one."""

    def __init__(self, draw: Callable[[int], Inputs], count: int = 1) -> None:
        self.draw, self._ready = draw, [draw(seed) for seed in range(count)]

    def map(self, change: Callable[[Inputs], Inputs]) -> "Sets":
        """The same sets, each of them changed."""
        changed = Sets(lambda seed: change(self.draw(seed)), 0)
        changed._ready = [change(inputs) for inputs in self._ready]
        return changed

    def __len__(self) -> int:
        return len(self._ready)

    def __getitem__(self, index: int) -> Inputs:
        return self._ready[index]

    def __iter__(self) -> Iterator[Inputs]:
        return iter(self._ready)


class Case(NamedTuple):
    """run(*inputs) on each set of inputs in turn; `bytes` per element: inputs read once, outputs written once."""

    name: str
    run: Callable[..., object]
    sets: Sets
    bytes: int
    checked: bool = False  # against float64, before any timing

    def call(self, turn: int) -> object:
        return self.run(*self.sets[turn % len(self.sets)])

    @property
    def size(self) -> int:
        """Bytes that a call must move."""
        return self.bytes * self.sets[0][0].numel()


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


def input_sets(make: Callable[..., Inputs], shape: tuple[int, ...], machine: Machine) -> Sets:
    """Sets of inputs on the machine, as many as the case that moves least rotates through."""
    least = torch.bfloat16.itemsize * math.prod(shape)
    return Sets(lambda seed: make(shape, machine.device, seed), machine.rotation(least))


def cast(sets: Sets, state: torch.dtype, moments: torch.dtype) -> Sets:
    """The sets with the first tensor in one dtype and the others in another."""
    return sets.map(lambda inputs: (inputs[0].to(state), *(t.to(moments) for t in inputs[1:])))


def with_output(sets: Sets, dtype: torch.dtype) -> Sets:
    """The sets, each with a tensor of its own to write to."""
    return sets.map(lambda inputs: (*inputs, torch.empty_like(inputs[0], dtype=dtype)))


def yardsticks(sets: Sets) -> list[Case]:
    """The units of every figure: torch's own normals, and a copy, of the first tensor's shape."""
    dtype = sets[0][0].dtype
    pairs = with_output(sets.map(lambda inputs: inputs[:1]), dtype)
    return [
        Case("torch.randn_like", lambda x, *_: torch.randn_like(x), sets, dtype.itemsize),
        Case("copy", lambda x, out: out.copy_(x), pairs, 2 * dtype.itemsize),
    ]
