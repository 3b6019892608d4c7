"""Values that travel from a solver to a kernel, made once and handed down: which mixture, which step, which draws.

They are flat in two places only: in the keywords of the public ops, and at the schemas of `torch.ops.gms_fast.*`, which
take nothing else.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

Given = Tensor | tuple[Tensor | None, Tensor | None] | None  # z, or (z, u); None is drawn
Sizes = Sequence[int | torch.SymInt]  # torch.compile has integers of its own
StepTensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor]  # x, e1, e2, e3 and the output


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
    are read; the data range [lo, hi] may be infinite.
    """

    numbers: tuple[float, ...]
    moments: str
    central: bool
    lo: float
    hi: float


def pair(noise: object) -> tuple[Tensor | None, Tensor | None]:
    """(z, u) of what a caller gave as noise. Raises TypeError for what is neither z nor (z, u)."""
    given = tuple(noise) if isinstance(noise, (tuple, list)) else (noise, None)
    if len(given) != 2 or not all(draws is None or isinstance(draws, Tensor) for draws in given):
        kinds = ", ".join(type(draws).__name__ for draws in given)
        raise TypeError(f"noise must be a tensor z, or (z, u), each a tensor or None: got {kinds}")
    return given


def _apart(value: int | Tensor) -> tuple[int, Tensor | None]:
    return (0, value) if isinstance(value, Tensor) else (value, None)
