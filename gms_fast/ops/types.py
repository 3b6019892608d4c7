"""Values that travel from a solver to a kernel, made once and handed down: which mixture, which step, which draws.

They are flat in two places only: in the keywords of the public ops, and at the schemas of `torch.ops.gms_fast.*`, which
take nothing else.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Given = Tensor | tuple[Tensor | None, Tensor | None] | None  # z, or (z, u); None is drawn
Sizes = Sequence[int | torch.SymInt]  # torch.compile has integers of its own
Tensors = tuple[Any, ...]  # in an op's order; some may be None
# x, e1, e2, e3, e1 without condition, and the output
StepTensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor]
COLUMNS = 11  # of weights by element: x, E[x_0|x_t], up to eight terms, and what is added
ADDED = COLUMNS - 1


class Fit(NamedTuple):
    """A choice of mixture: the kind of fit, the weight of component a, and the settings of the released optimiser."""

    kind: str = "exact"
    weight: float = 1 / 3
    iterations: int = 70
    lr: float = 0.06
    eps: float = 1e-8

    def flat(self) -> dict[str, Any]:
        """The keywords of the ops."""
        return {"fit": self.kind, **dict(zip(self._fields[1:], self[1:], strict=True))}


DEFAULT = Fit()


class Draws(NamedTuple):
    """Draws of one step: a pure function of counters, or given.

    seed       64 bits, or an int64 tensor: (B,), one key a sample, or (), one for all, read by the kernel
    step       counter of the step, or an int64 tensor () that the kernel reads
    component  "element": one uniform an element; "sample": one for all elements of a sample
    z, u       given normals and uniforms; None is drawn. z may be a function that gives z or (z, u) when one is wanted
    """

    seed: int | Tensor = 0
    step: int | Tensor = 0
    sample_offset: int = 0
    component: str = "element"
    z: Tensor | Callable[[], Given] | None = None
    u: Tensor | None = None

    def noise(self) -> tuple[Tensor | None, Tensor | None]:
        """(z, u) as tensors where they are given. Raises TypeError for anything else."""
        return (self.z, self.u) if self.z is None or isinstance(self.z, Tensor) else pair(self.z())

    def given(self) -> "Draws":
        """These draws, with z and u as `noise` has them."""
        z, u = self.noise()
        return self if z is self.z else self._replace(z=z, u=u)

    def on(self, device: torch.device) -> "Draws":
        """These draws for tensors on that device."""
        return self._replace(seed=self.seed.to(device)) if isinstance(self.seed, Tensor) else self

    def flat(self) -> dict[str, Any]:
        """The keywords of the schemas, where tensors have names of their own."""
        (seed, seeds), (step, step_at) = _apart(self.seed), _apart(self.step)
        rest = {"sample_offset": self.sample_offset, "component": self.component, "z": self.z, "u": self.u}
        return {"seed": seed, "seeds": seeds, "step": step, "step_at": step_at, **rest}


class Stepping(NamedTuple):
    """One reverse step for a kernel: numbers as of `kernel_numbers`, zeros where a tensor has them, and how moments
    are read; the data range [lo, hi] may be infinite. guidance: scale of e1 less that without condition, if any.
    """

    numbers: tuple[float, ...]
    moments: str
    central: bool
    lo: float
    hi: float
    guidance: float = 1.0


class Reading(NamedTuple):
    """E[x_0|x_t] as a kernel makes it from a network's output y: clip(of_x x + of_output y, lo, hi).

    guidance  scale of y less that without condition, if there is one
    """

    of_x: float
    of_output: float
    lo: float = -math.inf
    hi: float = math.inf
    guidance: float = 1.0


class Linear(NamedTuple):
    """One linear step for a kernel: w_0 x + w_1 E[x_0|x_t] + sum_j w_{j+2} term_j + std z.

    reading  None: no network's output is read, and there is no w_1
    weights  of x, of E[x_0|x_t], of the terms, and last std; zeros where a tensor has them
    terms, results  numbers of them. Weights by element may give more results than one, or none be asked for
    keeps    whether E[x_0|x_t] is a result too, the last one
    noisy    whether noise is added, to the first result
    present  which weights by element there are: bit COLUMNS * result + column
    """

    reading: Reading | None
    weights: tuple[float, ...]
    terms: int
    results: int = 1
    keeps: bool = False
    noisy: bool = False
    present: int = 0

    def columns(self, result: int) -> list[int]:
        """The columns of `present` of a result."""
        return [column for column in range(COLUMNS) if self.present >> (COLUMNS * result + column) & 1]


class Watch(NamedTuple):
    """A look-out for what is not finite: `first` (1,) int32 takes the smallest code of all that is seen.

    code  of the network's first tensor of a step; those of its other ones follow, and `WRITTEN` later that of results
    """

    first: Tensor
    code: int


WRITTEN = 3


def pair(noise: object) -> tuple[Tensor | None, Tensor | None]:
    """(z, u) of what a caller gave as noise. Raises TypeError for what is neither z nor (z, u)."""
    given = tuple(noise) if isinstance(noise, (tuple, list)) else (noise, None)
    if len(given) != 2 or not all(draws is None or isinstance(draws, Tensor) for draws in given):
        kinds = ", ".join(type(draws).__name__ for draws in given)
        raise TypeError(f"noise must be a tensor z, or (z, u), each a tensor or None: got {kinds}")
    return given


def _apart(value: int | Tensor) -> tuple[int, Tensor | None]:
    return (0, value) if isinstance(value, Tensor) else (value, None)
