"""Adapter for denoisers of azula.

q(x_0|x_t) = denoiser(x_t, t) has a mean and perhaps a variance.
"""

from typing import Any

import torch
from torch import Tensor

from gms_fast.models.hosts.base import Host, dtype_of_weights, root_modules
from gms_fast.schedules.base import Schedule, Times, as_float64, check_range
from gms_fast.types import NoiseMoments


def recognises(bare: object) -> bool:
    return "azula" in root_modules(bare) and callable(getattr(bare, "schedule", None))


def host(network: Any, bare: Any, schedule: Schedule | None, prediction: str | None) -> Host:
    def call(network: Any, x: Tensor, t: Tensor, **conditions: Any) -> Tensor | NoiseMoments:
        return _moments(bare.schedule, network(x, t, **conditions), x, t)

    return Host(
        network=network,
        bare=bare,
        schedule=schedule or AzulaSchedule(bare.schedule),
        prediction=prediction or "x0",
        clip=None,  # the data range is unknown
        call=call,
        dtype=lambda bare: dtype_of_weights(bare) and torch.float32,  # the denoiser converts for its backbone
    )


def _moments(schedule: Any, posterior: Any, x: Tensor, t: Tensor) -> Tensor | NoiseMoments:
    """Return E[x_0|x_t], or moments of the noise where there is a variance.

    The noise is (x - alpha x_0)/sigma.
    """
    mean: Any = getattr(posterior, "mean", None)
    var: Any = getattr(posterior, "var", None)
    if var is None:
        return posterior if isinstance(posterior, Tensor) else mean
    alpha, sigma = (level.reshape(-1, *[1] * (x.ndim - 1)) for level in schedule(t))
    return NoiseMoments((x - alpha * mean) / sigma, ((alpha / sigma) ** 2 * var).expand_as(x))


class AzulaSchedule(Schedule):
    """Noise schedule with the levels alpha, sigma of a schedule of azula, t in [0, 1]."""

    t_max, t_min = 1.0, 0.0

    def __init__(self, levels: Any) -> None:
        self.levels = levels

    def __repr__(self) -> str:
        return f"AzulaSchedule({type(self.levels).__name__})"

    def _at(self, t: Times) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.levels(check_range(as_float64(t), 0.0, 1.0, repr(self)))
        return as_float64(alpha.detach()), as_float64(sigma.detach())

    def alpha(self, t: Times) -> Tensor:
        return self._at(t)[0]

    def sigma(self, t: Times) -> Tensor:
        return self._at(t)[1]

    def inverse_log_snr(self, lam: Times) -> Tensor:
        """Bisect [0, 1] down to float64 precision; values beyond give its ends."""
        lam = as_float64(lam)
        low, high = torch.zeros_like(lam), torch.ones_like(lam)
        for _ in range(60):
            middle = (low + high) / 2
            noisy = self.log_snr(middle) < lam
            low, high = torch.where(noisy, low, middle), torch.where(noisy, middle, high)
        return (low + high) / 2
