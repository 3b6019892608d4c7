"""Schedule given by a table of noise levels."""

import torch
from torch import Tensor

from gms_fast.schedules.base import (
    MOST_TIMES,
    Schedule,
    Times,
    as_float64,
    check_range,
    check_steps,
    distinct,
    listed,
)
from gms_fast.storage.schema import short


class Levels(Schedule):
    """Schedule given by a table of noise levels, such as Karras sigmas.

    The table may come from a formula or from another library. At level i, the state is x = alphas[i] x_0 + sigmas[i]
    eps. The time of a level is its rank, from 0 for the cleanest level to n-1 for the noisiest, whatever the order of
    the table. Time grids consist of integer times, and n-1 steps visit every level.

    Args:
        alphas: Signal scales (n,), finite and >= 0. The noisiest level may have alpha = 0.
        sigmas: Noise standard deviations (n,), finite and >= 0. The cleanest level may have sigma = 0. The ratio
            sigma/alpha must strictly increase or strictly decrease along the table.
        network_times: Network time of each level (n,). Defaults to the time of the level.

    Raises:
        ValueError: If the sequences differ in length, or if values are out of range or in the wrong order.

    Examples:
        >>> schedule = gms_fast.schedules.Levels(alphas=[1, 1, 1, 1], sigmas=[10, 3, 1, 0])
        >>> schedule.times
        [3.0, 2.0, 1.0, 0.0]
        >>> schedule.sigma(3)
        tensor(10., dtype=torch.float64)
    """

    def __init__(self, alphas: Times, sigmas: Times, network_times: Times | None = None) -> None:
        alpha, sigma = as_float64(alphas), as_float64(sigmas)
        times = torch.arange(alpha.numel(), dtype=torch.float64, device="cpu")
        asked = times if network_times is None else as_float64(network_times)
        for name, table in (("alphas", alpha), ("sigmas", sigma), ("network_times", asked)):
            if table.ndim != 1 or len(table) != alpha.numel() or not 1 <= len(table) <= MOST_TIMES:
                got = tuple(table.shape)
                raise ValueError(f"{name} must be (n,) like alphas, n from 1 to {MOST_TIMES}: got {got}")
            if not bool(table.isfinite().all()):
                raise ValueError(f"{name} must be finite: got {short(table.tolist())}")
        if bool((alpha < 0).any()) or bool((sigma < 0).any()) or bool(((alpha == 0) & (sigma == 0)).any()):
            raise ValueError("alphas, sigmas must not be negative, and not both zero at one level")
        noise = sigma[1:] * alpha[:-1] - sigma[:-1] * alpha[1:]  # has the sign of the difference of sigma/alpha
        if len(noise) and bool((noise < 0).all()):  # noisiest first
            alpha, sigma = alpha.flip(0), sigma.flip(0)
            asked = asked if network_times is None else asked.flip(0)
        elif not bool((noise > 0).all()):
            raise ValueError("alphas, sigmas must have ratios sigma/alpha that strictly increase or decrease")
        self._alpha, self._sigma, self._asked = alpha, sigma, asked
        self.t_max, self.t_min = float(len(alpha) - 1), 0.0

    def __repr__(self) -> str:
        return f"Levels(n={len(self._alpha)})"

    @property
    def config(self) -> dict[str, object]:
        tables = {"alphas": self._alpha, "sigmas": self._sigma, "network_times": self._asked}
        return {"name": "Levels", **{name: table.tolist() for name, table in tables.items()}}

    @property
    def whole_times(self) -> Tensor:
        return torch.arange(len(self._alpha), dtype=torch.float64, device="cpu")

    @property
    def times(self) -> list[float]:
        """All times of the schedule, noisiest first."""
        return [float(t) for t in range(len(self._alpha) - 1, -1, -1)]

    def _at(self, table: Tensor, t: Times) -> Tensor:
        t = check_range(as_float64(t), 0, self.t_max, repr(self))
        if bool((t % 1 != 0).any()):
            raise ValueError(f"times must be integers for {self!r}: got {listed(t.flatten().tolist())}")
        return table[t.long()]

    def alpha(self, t: Times) -> Tensor:
        return self._at(self._alpha, t)

    def sigma(self, t: Times) -> Tensor:
        return self._at(self._sigma, t)

    def network_time(self, t: Times) -> Tensor:
        return self._at(self._asked, t)

    def from_network_time(self, t: Times) -> Tensor:
        """Return the time of the level nearest in network time, or of the cleanest one in a tie."""
        return (as_float64(t)[..., None] - self._asked).abs().argmin(-1).double()

    def inverse_log_snr(self, lam: Times) -> Tensor:
        """Return the time of the level nearest to lam, compared by arctan(sigma/alpha)."""
        wanted = torch.atan((-as_float64(lam)).exp())
        return (wanted[..., None] - torch.atan2(self._sigma, self._alpha)).abs().argmin(-1).double()

    def timesteps(self, steps: int, spacing: str | float | None = None, t_max: float | None = None) -> list[float]:
        """Return the integer times of a run, noisiest first, ending at 0.

        They are the times of `grid`, rounded.
        """
        check_steps(steps)
        first = self.t_max if t_max is None else float(round(t_max))
        if steps > first:
            raise ValueError(f"steps must be at most {first:g} for {self!r}: got {steps}")
        wanted = self.grid(steps, self.spacing if spacing is None else spacing, first)
        return [float(t) for t in distinct(wanted.round().int().tolist())]
