"""Empirical model statistics for DPM-Solver-v3: curves, their integrals, and their file.

With y = x/alpha, lambda = log(alpha/sigma) and eps(x, lambda) the network's noise, all elementwise,

    f = exp(-lambda) eps - l y        dy/dlambda = -l y - f        df/dlambda ~ s f + b

l makes f as flat in x as possible; s and b regress the derivative of f along the ODE on f.
Source: Zheng et al. 2023 (arXiv 2310.13268), sections 3 and 4.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from gms_fast import schedules
from gms_fast.constants import Identified
from gms_fast.schedules import Schedule
from gms_fast.storage import tensors
from gms_fast.storage.embedded import named
from gms_fast.storage.reading import metadata, refusing
from gms_fast.storage.schema import Integer, Listed, Optional, Plain, Real, Text
from gms_fast.tables.origin import other_network, other_schedule
from gms_fast.tables.wide import on_cpu

FORMAT, FILE = "gms_fast empirical statistics 1", "empirical.safetensors"
_CURVES = ("l", "s", "b")
_METADATA = {
    "schedule": Plain(),
    "N": Integer(1),
    "lambda": Listed(Real(), 2, 2),
    "shape": Listed(Integer(0), 64),
    "samples": Optional(Integer(1)),
    "network": Optional(Text(64)),
}


class Tables(NamedTuple):
    """Integrals over lambda from the noisiest node to every node, each (N+1, *sample)."""

    L: Tensor  # of l
    S: Tensor  # of s
    I: Tensor  # of exp(L + S)
    B: Tensor  # of exp(-S) b
    C: Tensor  # of exp(L + S) B


@dataclass(frozen=True, eq=False)
class EmpiricalModel(Identified):
    """Statistics of a network for DPM-Solver-v3: curves l, s, b over lambda = log(alpha/sigma).

    [`empirical_model`][gms_fast.statistics.empirical_model] measures the curves. All values are stored as float64
    tensors on the CPU. Lists and arrays are accepted too.

    Args:
        schedule: Noise schedule for which the curves were measured.
        lam: Grid (N+1,) of lambda, uniform and increasing, so that the noisiest node comes first.
        l: Linear coefficient (N+1, *sample), dimensionless.
        s: Slope (N+1, *sample), dimensionless.
        b: Offset (N+1, *sample), in the unit of the data.
        network: `gms_fast.statistics.fingerprint` of the network, or None (default) if unknown.
        samples: Number of samples averaged in the measurement, or None (default) if unknown.

    Raises:
        TypeError: If `schedule` is not a Schedule.
        ValueError: If a value is not finite, or if a shape or the grid is wrong. The message names the argument.

    Examples:
        >>> known = gms_fast.statistics.load("digits")
        >>> known.N, known.sample_shape
        (120, (1, 8, 8))
        >>> solver = gms_fast.solvers.DPMSolverV3(known.trusted(-2))

    References:
        Zheng et al. 2023, arXiv 2310.13268.
    """

    schedule: Schedule
    lam: Tensor
    l: Tensor
    s: Tensor
    b: Tensor
    network: str | None = field(default=None, kw_only=True)
    samples: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule: got {self.schedule!r}")
        for name in ("lam", *_CURVES):
            value = on_cpu(getattr(self, name))
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} must be finite: it holds NaN or infinity")
            object.__setattr__(self, name, value)
        _check_grid(self.lam)
        for name in _CURVES:
            shape, wanted = tuple(getattr(self, name).shape), (len(self.lam), *self.l.shape[1:])
            if shape != wanted:
                raise ValueError(f"{name} must be (N+1, *sample) like lam and l, {wanted}: got {shape}")

    @property
    def N(self) -> int:  # noqa: N802
        """Number of intervals of the grid."""
        return len(self.lam) - 1

    @property
    def sample_shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        return tuple(self.l.shape[1:])

    def degenerate(self) -> "EmpiricalModel":
        """Return statistics with l = 1 and s = b = 0, which turn DPM-Solver-v3 into DPM-Solver++."""
        return replace(self, l=torch.ones_like(self.l), s=torch.zeros_like(self.s), b=torch.zeros_like(self.b))

    def trusted(self, lam: float) -> "EmpiricalModel":
        """Return statistics that use the measured curves only where lambda >= `lam`.

        Below `lam`, the result has l = 1 and s = b = 0, as for DPM-Solver++. The reason is that f is eps magnified by
        sigma/alpha = exp(-lambda), including the errors of eps. Where sigma/alpha is 7 or more, the curves reflect the
        network's errors as much as the function it has learned.

        Args:
            lam: Smallest lambda at which the measured curves are used.

        Returns:
            EmpiricalModel.
        """
        noisy, plain = self._along(self.lam < lam), self.degenerate()
        l, s, b = (torch.where(noisy, getattr(plain, name), getattr(self, name)) for name in _CURVES)
        return replace(self, l=l, s=s, b=b)

    @cached_property
    def tables(self) -> Tables:
        """Integrals of the curves, computed with the trapezoid rule."""
        L, S = self._integral(self.l), self._integral(self.s)
        growth, B = (L + S).exp(), self._integral((-S).exp() * self.b)
        return Tables(L, S, self._integral(growth), B, self._integral(growth * B))

    def moment(self, i: int, j: int, k: int) -> Tensor:
        """Integrate exp((L+S) - (L+S)_i) (lambda - lambda_i)^k/k! from node i to node j.

        L and S are the integrals of l and s over lambda, and the index i marks their values at node i. The trapezoid
        rule on all nodes from i to j computes the integral.

        Args:
            i: Index >= 0 of the first node.
            j: Index of the last node, with i < j <= N.
            k: Power >= 0.

        Returns:
            Integral E_k(i, j), a float64 tensor (*sample).

        Raises:
            ValueError: If a node or the power is out of range.
        """
        if not 0 <= i < j <= self.N or k < 0:
            raise ValueError(f"i, j, k must have 0 <= i < j <= {self.N} and k >= 0: got {i}, {j}, {k}")
        exponent, lam = (self.tables.L + self.tables.S)[i : j + 1], self.lam[i : j + 1]
        powers = (lam - lam[0]) ** k / math.factorial(k)
        return torch.trapezoid((exponent - exponent[0]).exp() * self._along(powers), lam, dim=0)

    def check(
        self,
        *,
        model: Callable[..., object] | None = None,
        schedule: Schedule | None = None,
        shape: Sequence[int] | None = None,
    ) -> None:
        """Check that the statistics were measured for this model, schedule and sample shape.

        Args:
            model: Network, which is compared by its fingerprint. None (default) skips the check.
            schedule: Noise schedule. None (default) skips the check.
            shape: Shape of one sample. None (default) skips the check.

        Raises:
            ValueError: If any of them differs. The message lists the differences.
        """
        wrong = []
        if schedule is not None:
            wrong += other_schedule(self.schedule, schedule, self.schedule.inverse_log_snr(self.lam))
        if shape is not None and tuple(shape) != self.sample_shape:
            wrong.append(f"shape {self.sample_shape}, not {tuple(shape)}")
        wrong += other_network(self.network, model)
        if wrong:
            raise ValueError(
                f"statistics were measured for {' and for '.join(wrong)}: measure others with "
                "gms_fast.statistics.empirical_model or gms-fast statistics"
            )

    def save(self, path: str | Path, *, dtype: torch.dtype = torch.float32, measurement: str | None = None) -> None:
        """Write the curves to a safetensors file, with metadata about the network and the schedule.

        Args:
            path: File to write.
            dtype: dtype in which s and b are stored (default float32). Low precision is sufficient, because the
                sampling errors of s and b exceed its rounding errors. l is stored in float32, and the grid in float64.
            measurement: Fingerprint of everything on which the curves depend. A repeated measurement uses it to
                recognise the file as its result. None (default) stores no fingerprint.

        Raises:
            ValueError: If the curves exceed the range of `dtype`.
        """
        kept = {"lam": self.lam, "l": self.l.float(), "s": self.s.to(dtype), "b": self.b.to(dtype)}
        if lost := [name for name, curve in kept.items() if not bool(curve.isfinite().all())]:
            raise ValueError(f"{', '.join(lost)} cannot be stored as {dtype}: too large")
        known = {
            "schedule": self.schedule.config,
            "N": self.N,
            "lambda": self.lam[[0, -1]].tolist(),
            "shape": self.sample_shape,
            "samples": self.samples,
            "network": self.network,
        }
        tensors.write_described(path, kept, FORMAT, known, measurement)

    @classmethod
    def load(cls, path: str | Path) -> "EmpiricalModel":
        """Read statistics from a file that `save` wrote.

        Args:
            path: File to read.

        Returns:
            EmpiricalModel.

        Raises:
            ValueError: If the file is damaged or contains something else. The message names the file.
        """
        curves, stored = tensors.read(Path(path), FORMAT, ("lam", *_CURVES), _METADATA)
        with refusing(f"statistics {path} make no sense", path):
            known = metadata(stored, _METADATA)
            schedule = schedules.stored(known["schedule"])
            kept = {name: curves[name].double() for name in ("lam", *_CURVES)}
            statistics = cls(schedule, **kept, network=known["network"], samples=known["samples"])
        found = {
            "N": statistics.N,
            "lambda": statistics.lam[[0, -1]].tolist(),
            "shape": list(statistics.sample_shape),
        }
        for key, value in found.items():
            if known[key] != value:
                raise ValueError(f"statistics {path}: {key} is {known[key]} by its metadata, but {value} in its curves")
        return statistics

    def _along(self, values: Tensor) -> Tensor:
        """Shape values (n,) over nodes so that they multiply curves (n, *sample)."""
        return values.view(-1, *[1] * len(self.sample_shape))

    def _integral(self, values: Tensor) -> Tensor:
        """Return the integrals (N+1, *sample) from the first node to every node."""
        steps = (values[1:] + values[:-1]) / 2 * self._along(self.lam.diff())
        return torch.cat([torch.zeros_like(values[:1]), steps.cumsum(0)])


def load(name_or_path: str | Path) -> EmpiricalModel:
    """Load the empirical model statistics of an embedded model, or load them from a file.

    Args:
        name_or_path: Name of an embedded model ("mnist" or "digits"), or path of a file that `EmpiricalModel.save` or
            `gms-fast statistics` wrote.

    Returns:
        [`EmpiricalModel`][gms_fast.statistics.EmpiricalModel].

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is damaged or contains something else.

    Examples:
        >>> gms_fast.statistics.load("digits").samples
        512
    """
    return EmpiricalModel.load(named(name_or_path, FILE) or name_or_path)


def _check_grid(lam: Tensor) -> None:
    if lam.ndim != 1 or len(lam) < 2:
        raise ValueError(f"lam must be (N+1,) with N >= 1: got {tuple(lam.shape)}")
    steps = lam.diff()
    mean = (lam[-1] - lam[0]) / (len(lam) - 1)
    if not (mean > 0 and bool(((steps - mean).abs() <= 1e-3 * mean).all())):  # float32 grids too
        raise ValueError(
            f"lam must be uniform and increasing: got steps from {float(steps.min()):g} to {float(steps.max()):g}"
        )
