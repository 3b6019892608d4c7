"""Cases to be timed: shapes, inputs like those of sampling, and calls with their bytes."""

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
    """Sets of inputs that a case uses in turn; `draw(seed)` makes more."""

    def __init__(self, draw: Callable[[int], Inputs], count: int = 1) -> None:
        self.draw, self._ready = draw, [draw(seed) for seed in range(count)]

    def map(self, change: Callable[[Inputs], Inputs]) -> "Sets":
        """Return the same sets with each one changed."""
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
    """A call to be timed.

    Args:
        name: Name of the row.
        run: Called as run(*inputs).
        sets: Sets of inputs, used in turn.
        bytes: Bytes per element: inputs read once, outputs written once.
        checked: Compare the results with float64 before any timing.
    """

    name: str
    run: Callable[..., object]
    sets: Sets
    bytes: int
    checked: bool = False

    def call(self, turn: int) -> object:
        return self.run(*self.sets[turn % len(self.sets)])

    @property
    def size(self) -> int:
        """Bytes that a call must move."""
        return self.bytes * self.sets[0][0].numel()


def noise_moments(shape: tuple[int, ...], device: str, seed: int) -> Inputs:
    """Draw a state x and noise moments e1, e2, e3 like those in the middle of sampling."""
    generator = torch.Generator(device).manual_seed(seed)
    x, e1, spread, skew = (torch.randn(shape, generator=generator, device=device) for _ in range(4))
    r2 = 0.05 * spread**2
    return x, e1, r2 + e1**2, skew * r2**1.5 + 3 * e1 * r2 + e1**3


def step_moments(shape: tuple[int, ...], device: str, seed: int) -> Inputs:
    """Draw mean, variance and third central moment of x_s for such noise moments."""
    generator = torch.Generator(device).manual_seed(seed)
    mean, spread, skew = (torch.randn(shape, generator=generator, device=device) for _ in range(3))
    excess = (STEP.B * STEP.sigma_t / STEP.alpha_t) ** 2 * 0.05 * spread**2
    return mean, FLOOR + excess, skew * excess**1.5


def normals(count: int) -> Callable[[tuple[int, ...], str, int], Inputs]:
    """Return a function that draws `count` tensors of standard normal numbers."""

    def make(shape: tuple[int, ...], device: str, seed: int) -> Inputs:
        generator = torch.Generator(device).manual_seed(seed)
        return tuple(torch.randn(shape, generator=generator, device=device) for _ in range(count))

    return make


def input_sets(make: Callable[..., Inputs], shape: tuple[int, ...], machine: Machine) -> Sets:
    """Draw as many sets as the case with the fewest bytes rotates through on this machine."""
    least = torch.bfloat16.itemsize * math.prod(shape)
    return Sets(lambda seed: make(shape, machine.device, seed), machine.rotation(least))


def cast(sets: Sets, state: torch.dtype, moments: torch.dtype) -> Sets:
    """Convert the first tensor of each set to one dtype and the others to another."""
    return sets.map(lambda inputs: (inputs[0].to(state), *(t.to(moments) for t in inputs[1:])))


def with_output(sets: Sets, dtype: torch.dtype) -> Sets:
    """Add an output tensor to each set."""
    return sets.map(lambda inputs: (*inputs, torch.empty_like(inputs[0], dtype=dtype)))


def yardsticks(sets: Sets) -> list[Case]:
    """Return the two units of all figures: torch's normal numbers, and a copy."""
    dtype = sets[0][0].dtype
    pairs = with_output(sets.map(lambda inputs: inputs[:1]), dtype)
    return [
        Case("torch.randn_like", lambda x, *_: torch.randn_like(x), sets, dtype.itemsize),
        Case("copy", lambda x, out: out.copy_(x), pairs, 2 * dtype.itemsize),
    ]
