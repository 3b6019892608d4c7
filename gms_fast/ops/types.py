"""Values that travel from a solver to a kernel: which mixture, which step, which draws.

They are made once. They are flat in two places only: in the keywords of the public ops, and in the schemas of
`torch.ops.gms_fast.*`, which take nothing else.
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
    """Choice of mixture: kind of fit, weight of component a, settings of the released optimiser."""

    kind: str = "exact"
    weight: float = 1 / 3
    iterations: int = 70
    lr: float = 0.06
    eps: float = 1e-8

    def flat(self) -> dict[str, Any]:
        """Return the keywords of the ops."""
        return {"fit": self.kind, **dict(zip(self._fields[1:], self[1:], strict=True))}


DEFAULT = Fit()


class Draws(NamedTuple):
    """Draws of one step: a pure function of counters, or given tensors.

    Args:
        seed: 64 bits; or an int64 tensor that the kernel reads, (B,) with one key per sample or () with one for all.
        step: Counter of the step, or an int64 tensor of shape () that the kernel reads.
        sample_offset: Index of the first sample.
        component: "element": one uniform per element; "sample": one for all elements of a sample.
        z: Given normals, or a function that returns z or (z, u) when noise is needed; None is drawn.
        u: Given uniforms; None is drawn.
    """

    seed: int | Tensor = 0
    step: int | Tensor = 0
    sample_offset: int = 0
    component: str = "element"
    z: Tensor | Callable[[], Given] | None = None
    u: Tensor | None = None

    def noise(self) -> tuple[Tensor | None, Tensor | None]:
        """Return (z, u) as tensors where they are given. Raises TypeError for anything else."""
        return (self.z, self.u) if self.z is None or isinstance(self.z, Tensor) else pair(self.z())

    def given(self) -> "Draws":
        """Return these draws with z and u as `noise` returns them."""
        z, u = self.noise()
        return self if z is self.z else self._replace(z=z, u=u)

    def on(self, device: torch.device) -> "Draws":
        """Return these draws for tensors on that device."""
        return self._replace(seed=self.seed.to(device)) if isinstance(self.seed, Tensor) else self

    def flat(self) -> dict[str, Any]:
        """Return the keywords of the schemas, in which tensors have names of their own."""
        (seed, seeds), (step, step_at) = _apart(self.seed), _apart(self.step)
        rest = {"sample_offset": self.sample_offset, "component": self.component, "z": self.z, "u": self.u}
        return {"seed": seed, "seeds": seeds, "step": step, "step_at": step_at, **rest}


class Stepping(NamedTuple):
    """One reverse step for a kernel.

    Args:
        numbers: As `kernel_numbers` returns them; zeros if a tensor holds them.
        moments: "cumulant" or "released".
        central: True if the second and third moments are central.
        lo: Lower end of the data range; may be infinite.
        hi: Upper end of the data range; may be infinite.
        guidance: Guidance scale of e1 over e1 without a condition, if that is given.
    """

    numbers: tuple[float, ...]
    moments: str
    central: bool
    lo: float
    hi: float
    guidance: float = 1.0


class Reading(NamedTuple):
    """Kernel form of E[x_0|x_t] from a network's output y: clip(of_x x + of_output y, lo, hi).

    Args:
        of_x: Factor of the state.
        of_output: Factor of the output.
        lo: Lower end of the data range; may be infinite.
        hi: Upper end of the data range; may be infinite.
        guidance: Guidance scale of y over y without a condition, if that is given.
    """

    of_x: float
    of_output: float
    lo: float = -math.inf
    hi: float = math.inf
    guidance: float = 1.0


class Linear(NamedTuple):
    """One linear step for a kernel: w_0 x + w_1 E[x_0|x_t] + sum_j w_{j+2} term_j + std z.

    Args:
        reading: How the network's output is read; None if it is not, and then there is no w_1.
        weights: Those of x, E[x_0|x_t] and the terms, and last std; zeros if a tensor holds them.
        terms: Number of terms.
        results: Number of results. Only weights by element may give more than one; none may be asked for.
        keeps: True if E[x_0|x_t] is one more result, the last one.
        noisy: True if noise is added, to the first result.
        present: Bit mask of the weights by element: bit COLUMNS * result + column.
    """

    reading: Reading | None
    weights: tuple[float, ...]
    terms: int
    results: int = 1
    keeps: bool = False
    noisy: bool = False
    present: int = 0

    def columns(self, result: int) -> list[int]:
        """Return the columns of `present` of a result."""
        return [column for column in range(COLUMNS) if self.present >> (COLUMNS * result + column) & 1]


class Watch(NamedTuple):
    """Detector of values that are not finite: kernels write the smallest code they see.

    Args:
        first: Tensor (1,) int32 that receives the smallest code.
        code: Code of the network's first tensor in a step. Those of its other tensors follow; that of results is
            `WRITTEN` later.
    """

    first: Tensor
    code: int


WRITTEN = 3


def pair(noise: object) -> tuple[Tensor | None, Tensor | None]:
    """Return (z, u) of given noise. Raises TypeError if it is neither z nor (z, u)."""
    given = tuple(noise) if isinstance(noise, (tuple, list)) else (noise, None)
    if len(given) != 2 or not all(draws is None or isinstance(draws, Tensor) for draws in given):
        kinds = ", ".join(type(draws).__name__ for draws in given)
        raise TypeError(f"noise must be a tensor z, or (z, u), each a tensor or None: got {kinds}")
    return given


def _apart(value: int | Tensor) -> tuple[int, Tensor | None]:
    return (0, value) if isinstance(value, Tensor) else (value, None)
