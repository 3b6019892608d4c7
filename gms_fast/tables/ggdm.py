"""Learned tables of generalised Gaussian diffusion models (GGDM) of K steps.

Levels are counted k = K (noisiest) .. 1, and 0 for clean data. Tables are indexed by them; unused entries are zero.
Source: Watson et al., ICLR 2022 (arXiv 2202.05830).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from gms_fast import schedules
from gms_fast.constants import Identified
from gms_fast.schedules import Schedule
from gms_fast.schedules.base import as_float64
from gms_fast.storage import tensors
from gms_fast.storage.embedded import embedded
from gms_fast.storage.reading import metadata, refusing
from gms_fast.storage.schema import Integer, Optional, Plain, Text
from gms_fast.tables.origin import other_network, other_schedule

FORMAT = "gms_fast ggdm table 1"
_SHIPPED = "ggdm-"
_LEAST = 1e-4  # of |a_t|, by which the data estimate is divided
_METADATA = {
    "schedule": Plain(),
    "steps": Integer(1, 4096),
    "network": Optional(Text(64)),
}


class Linear(Protocol):
    """Interface of a solver whose plan of each step is (weights, std).

    The weights belong to the state and the last data estimates.
    """

    linear: bool

    def plan(self, schedule: Schedule, times: Sequence[float]) -> Sequence[tuple[Sequence[float], float]]: ...


def marginals(mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return a, v (K+1,) of q(x_t|x_0) = N(a_t x_0, v_t I) (theorem 1); entry 0 is 0.

    a_t = mu[t][0] + sum_u mu[t][u] a_u. The noise obeys the same recursion, N_t = sigma_t e_t + sum_u mu[t][u] N_u, and
    v = |N|^2. `mu` is (K+1, K+1) and `sigma` (K+1,).
    """
    unit = torch.eye(len(sigma) - 1, dtype=mu.dtype, device=mu.device)
    known = torch.cat([mu[1:, :1], torch.diag(sigma[1:])], dim=1)
    rows = torch.linalg.solve_triangular(unit - mu[1:, 1:], known, upper=True, unitriangular=True)
    a, v = rows[:, 0], rows[:, 1:].square().sum(1)
    return torch.cat([torch.zeros_like(a[:1]), a]), torch.cat([torch.zeros_like(v[:1]), v])


def tied(mu: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """Return c, d (K+1,) of the data estimate c_t x_t - d_t eps that the marginals imply.

    They are 1/a_t and sqrt(v_t)/a_t. Raises ValueError where |a_t| <= 1e-4 for t < K; a_K is the schedule's own.
    """
    a, v = marginals(mu, sigma)
    if bool((a[1:-1].abs() <= _LEAST).any()):
        level = 1 + int(a[1:-1].abs().argmin())
        raise ValueError(f"mu must keep some signal at every level, |a_t| > {_LEAST:g}: got a_{level} = {a[level]:g}")
    a = torch.cat([torch.ones_like(a[:1]), a[1:]])
    first = torch.zeros_like(a[:1])
    return torch.cat([first, 1 / a[1:]]), torch.cat([first, v[1:].sqrt() / a[1:]])


def update_weights(
    levels: tuple[Tensor, Tensor], mu: Tensor, sigma: Tensor, c: Tensor, d: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """Return (weights, std) of the K steps, noisiest first.

    x_{t-1} = w_0 x_t + w_1 m + sum_j w_{j+1} x_{t+j} + std z. The last step goes to the data estimate, without noise.

    levels  alpha_t and sigma_t of the schedule, (K+1,). With them m = (x_t - sigma_t eps)/alpha_t is the network's data
            estimate; that of the family is p m + q x_t with p = d_t alpha_t/sigma_t and q = c_t - d_t/sigma_t
    """
    alpha_t, sigma_t = (values[1:] for values in levels)
    p, q = d[1:] * alpha_t / sigma_t, c[1:] - d[1:] / sigma_t
    steps = []
    for t in range(len(sigma) - 1, 1, -1):
        row = mu[t - 1]
        own = torch.stack([row[t] + row[0] * q[t - 1], row[0] * p[t - 1]])
        steps.append((torch.cat([own, row[t + 1 :]]), sigma[t - 1]))
    return [*steps, (torch.stack([q[0], p[0]]), torch.zeros_like(sigma[0]))]


@dataclass(frozen=True, eq=False)
class GGDMTable(Identified):
    """Coefficients of a sampler with K steps, each of which uses all earlier states.

    Each step draws from a Gaussian,

        q(x_{t-1}|x_t .. x_K, x_0) = N(mu[t-1][0] x_0 + sum_{u>=t} mu[t-1][u] x_u, sigma[t-1]^2)

    Here t is an index of noise levels: level K is the noisiest, and level 0 is clean data. `gms_fast.search.ggdm`
    learns such tables, and `GGDMTable.of` converts a linear solver to one. All values are stored as float64 tensors on
    the CPU; lists and arrays are accepted.

    Args:
        schedule: Noise schedule for which the table was made.
        tau: Increasing times (K+1,) of the schedule, one for each level. tau[0], the schedule's last time, stands for
            clean data.
        mu: Weights (K+1, K+1), where mu[t][u] is zero unless u = 0 or u > t, and `mu[K][0] = alpha(tau[K])`.
        sigma: Standard deviations (K+1,), >= 0, where `sigma[K] = sigma(tau[K])`.
        c: Factors (K+1,) of x_t in the data estimate c_t x_t - d_t eps(x_t, tau_t), which takes the place of x_0. None
            (default) derives both factors from the distribution of x_t given x_0.
        d: Factors (K+1,) of eps in the data estimate. Pass either both `c` and `d` or neither.
        network: `gms_fast.statistics.fingerprint` of the network for which the table was learned, or None (default) if
            it was not learned.

    Raises:
        TypeError: If `schedule` is not a `Schedule`.
        ValueError: If values are not finite or out of range, or if the shapes do not match; the message names the
            argument.

    Examples:
        >>> schedule = gms_fast.schedules.build("linear")
        >>> table = gms_fast.solvers.GGDMTable.of(gms_fast.solvers.DDIM(), schedule, [999, 666, 333])
        >>> table.steps, table.times
        (3, [999.0, 666.0, 333.0, 0.0])

    References:
        Watson et al. 2022, arXiv 2202.05830.
    """

    schedule: Schedule
    tau: Tensor
    mu: Tensor
    sigma: Tensor
    c: Tensor | None = None
    d: Tensor | None = None
    network: str | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, Schedule):
            raise TypeError(f"schedule must be a Schedule: got {self.schedule!r}")
        if (self.c is None) != (self.d is None):
            raise ValueError("c and d must be given together")
        for name in self.given:
            value = as_float64(getattr(self, name)).detach().clone()
            if not bool(value.isfinite().all()):
                raise ValueError(f"{name} must be finite: it contains NaN or infinity")
            object.__setattr__(self, name, value)
        if self.tau.ndim != 1 or len(self.tau) < 2 or not bool((self.tau.diff() > 0).all()):
            raise ValueError(f"tau must be at least two increasing times (K+1,): got {self.tau}")
        for name in self.given[1:]:
            shape, wanted = tuple(getattr(self, name).shape), (len(self.tau),) * (1 + (name == "mu"))
            if shape != wanted:
                raise ValueError(f"{name} must have shape {wanted} to match tau: got {shape}")
        if bool((self.sigma < 0).any()):
            raise ValueError(f"sigma must not be negative: got {float(self.sigma.min()):g}")
        self._check_ends()

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the tensors that were passed to the constructor."""
        return ("tau", "mu", "sigma") + (() if self.c is None else ("c", "d"))

    def _check_ends(self) -> None:
        K, strange = self.steps, self.mu.tril()
        strange[:, 0] = 0
        if bool(strange.any()) or bool(self.mu[0].any()):
            raise ValueError("mu[t][u] must be zero, except where t >= 1 and u = 0 or u > t")
        for name, known in (("alpha", self.mu[K, 0]), ("sigma", self.sigma[K])):
            wanted = float(getattr(self.schedule, name)(self.tau[K]))
            if abs(known - wanted) > 1e-6:
                where = "mu[K][0]" if name == "alpha" else "sigma[K]"
                raise ValueError(f"{where} must equal {name} at the first time, {wanted:.6g}: got {known:.6g}")
        if not float(self.mu[K, 0]) > 0:
            raise ValueError("tau[K] must be a time with alpha > 0")
        if self.c is None:
            tied(self.mu, self.sigma)

    @property
    def steps(self) -> int:
        """Number of steps K, which is also the number of network evaluations."""
        return len(self.tau) - 1

    @property
    def times(self) -> list[float]:
        """The K + 1 times of a run, noisiest first."""
        return [float(t) for t in self.tau.flip(0)]

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Return a and v, both (K+1,), such that x_t given x_0 is N(a_t x_0, v_t I)."""
        return marginals(self.mu, self.sigma)

    def updates(self) -> list[tuple[Tensor, Tensor]]:
        """Return (weights, std) of each step, noisiest first.

        The step is x_{t-1} = w_0 x_t + w_1 m + sum_j w_{j+1} x_{t+j} + std z, where m is the network's data estimate.
        """
        levels = self.schedule.alpha(self.tau), self.schedule.sigma(self.tau)
        c, d = tied(self.mu, self.sigma) if self.c is None or self.d is None else (self.c, self.d)
        return update_weights(levels, self.mu, self.sigma, c, d)

    @classmethod
    def of(cls, solver: Linear, schedule: Schedule, times: Sequence[float]) -> "GGDMTable":
        """Convert a linear solver, such as DDIM, DPMSolverPP or UniP, to an equivalent table.

        An older data estimate can be written as a linear function of the states only if no noise was added between
        them. A solver may therefore add noise or use older estimates, but not both.

        Args:
            solver: Solver whose attribute `linear` is true.
            schedule: Noise schedule.
            times: The K times of the network evaluations, noisiest first, all before the schedule's last time. The last
                step ends at E[x_0|x_t].

        Returns:
            GGDMTable with K steps.

        Raises:
            TypeError: If the solver is not linear.
            ValueError: If the solver adds noise and also uses older estimates, or if the last of the `times` is not
                before the schedule's last time.
        """
        if not getattr(solver, "linear", False):
            raise TypeError(f"solver must be linear, such as DDIM() or DPMSolverPP(): got {solver!r}")
        times = [float(t) for t in times]
        if not times or not times[-1] > schedule.t_min:
            got = f"{times[-1]:g}" if times else "none"
            raise ValueError(f"times must end before t = {schedule.t_min:g}, the last time of {schedule!r}: got {got}")
        schedule.check_signal(times[0], type(solver).__name__)
        K = len(times)
        tau = as_float64([*times, schedule.t_min]).flip(0)
        mu, sigma = tau.new_zeros(K + 1, K + 1), tau.new_zeros(K + 1)
        mu[K, 0], sigma[K] = schedule.alpha(times[0]), schedule.sigma(times[0])
        plan = solver.plan(schedule, times) if K > 1 else []
        for t, (weights, std) in zip(range(K, 1, -1), plan, strict=True):
            _embed(mu, t, weights, std)
            sigma[t - 1] = std
        levels = schedule.alpha(tau[1:]), schedule.sigma(tau[1:])
        c, d = (torch.cat([tau.new_zeros(1), value]) for value in (1 / levels[0], levels[1] / levels[0]))
        return cls(schedule, tau, mu, sigma, c, d)

    def check(self, *, model: Any = None, schedule: Schedule | None = None, steps: int | None = None) -> None:
        """Check that the table was made for this model, schedule and number of steps.

        Args:
            model: Network, whose fingerprint is compared. None (default) skips this check.
            schedule: Noise schedule. None (default) skips this check.
            steps: Number of steps. None (default) skips this check.

        Raises:
            ValueError: If one of them differs; the message lists the differences.
        """
        wrong = []
        if steps is not None and steps != self.steps:
            wrong.append(f"{self.steps} steps, not {steps}")
        if schedule is not None:
            wrong += other_schedule(self.schedule, schedule, self.tau)
        wrong += other_network(self.network, model)
        if wrong:
            raise ValueError(
                f"table was made for {' and for '.join(wrong)}: learn another one with gms_fast.search.ggdm or "
                "gms-fast search"
            )

    def save(self, path: str | Path) -> None:
        """Write the table to a small safetensors file.

        The numbers are stored in float64, and the metadata names the schedule and the network.

        Args:
            path: File to write.
        """
        known = {"schedule": self.schedule.config, "steps": self.steps, "network": self.network}
        numbers = {name: getattr(self, name) for name in self.given}
        tensors.write_described(path, numbers, FORMAT, known)

    @classmethod
    def load(cls, path: str | Path) -> "GGDMTable":
        """Read a table that `save` wrote.

        Args:
            path: File to read.

        Returns:
            GGDMTable.

        Raises:
            ValueError: If the file is damaged or contains something else; the message names the file.
        """
        numbers, stored = tensors.read(
            Path(path), FORMAT, ("tau", "mu", "sigma"), _METADATA, what="table", optional=("c", "d")
        )
        with refusing(f"table {path} is invalid", path):
            known = metadata(stored, _METADATA)
            table = cls(schedules.stored(known["schedule"]), **numbers, network=known["network"])
        if table.steps != known["steps"]:
            raise ValueError(
                f"table {path}: steps is {known['steps']} in its metadata, but {table.steps} in its numbers"
            )
        return table


def _embed(mu: Tensor, t: int, weights: Sequence[float], std: float) -> None:
    """Write the row of a step x_{t-1} = w_0 x_t + sum_j w_{j+1} m_{t+j} into `mu`.

    m_u = (x_{u-1} - sum_w mu[u-1][w] x_w)/mu[u-1][0] replaces each older data estimate by states.
    """
    row = mu[t - 1]
    if std > 0 and len(weights) > 2:
        raise ValueError("solver must not use both noise and earlier estimates to become a table")
    row[0], row[t] = weights[1], weights[0]
    for u, weight in enumerate(weights[2:], start=t + 1):
        older = mu[u - 1] * weight / mu[u - 1, 0]
        row[u:] -= older[u:]
        row[u - 1] += weight / mu[u - 1, 0]


def load_table(name_or_path: str | Path) -> GGDMTable:
    """Load the learned table of an embedded model, or a table from a file.

    Args:
        name_or_path: Name of an embedded model and number of steps, such as "mnist/5" or "mnist/10", or a file that was
            written by `GGDMTable.save` or `gms-fast search`.

    Returns:
        The [`GGDMTable`][gms_fast.solvers.GGDMTable].

    Raises:
        FileNotFoundError: If there is no such table or file; the message lists the embedded tables.
        ValueError: If the file is damaged or contains something else.

    Examples:
        >>> gms_fast.solvers.load_table("mnist/5").steps
        5
    """
    shipped = {
        f"{file.parent.name}/{file.stem.removeprefix(_SHIPPED)}": file for file in embedded(f"{_SHIPPED}*.safetensors")
    }
    path = shipped.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        known = ", ".join(sorted(shipped)) or "the embedded tables (there are none)"
        raise FileNotFoundError(f"table must be a file or one of {known}: nothing exists at {name_or_path}")
    return GGDMTable.load(path)
