"""Losses of both training stages (docs/notation.md)."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gms_fast import prediction
from gms_fast.models.normalised import deviation
from gms_fast.training.noising import Noised

_GAMMA, _DATA_STD = 5.0, 0.5
Loss = Callable[[Any, Noised, torch.dtype], Tensor]


def noise_loss(weights: str = "uniform") -> Loss:
    """Stage 1: mean of w (e1 - eps)^2, a scalar, by name of the weights w (`WEIGHTS`)."""
    weight = WEIGHTS[weights]

    def loss(model: Any, batch: Noised, dtype: torch.dtype) -> Tensor:
        with _autocast(batch, dtype):
            away = (model.first_moment(batch.x_t, batch.time, **batch.condition).float() - batch.eps).square()
        return away.mean() if weight is None else (weight(batch.alpha, batch.sigma) * away).mean()

    return loss


def min_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """min(SNR, 5)/SNR with SNR = alpha^2/sigma^2: min(SNR, 5) of the error of x_0, for that of the noise.

    Source: Hang et al. 2023 (arXiv 2303.09556).
    """
    return (_GAMMA * (sigma / alpha) ** 2).clamp(max=1)


def edm(alpha: Tensor, sigma: Tensor) -> Tensor:
    """(r^2 + s^2)/(r s)^2 of the error of x_0, r = sigma/alpha and s = 0.5, for that of the noise: 1 + (r/s)^2.

    Meant for levels that are log-normal (`noising.log_normal_times`). Source: Karras et al. 2022 (arXiv 2206.00364).
    """
    return 1 + (sigma / alpha / _DATA_STD) ** 2


WEIGHTS = {"uniform": None, "min-snr": min_snr, "edm": edm}


def moment_loss(target: str) -> Loss:
    """Stage 2: mean of (e2 - y^2)^2 + (e3 - y^3)^2, without the second where e3 has no head; only heads learn.

    y = eps ("raw"), eps - e1 ("central"), or for normalised heads that in the units of `gms_fast.models.normalised`.
    """

    def loss(model: Any, batch: Noised, dtype: torch.dtype) -> Tensor:
        with torch.no_grad(), _autocast(batch, dtype):
            x_t = batch.x_t.to(getattr(model, "dtype", None) or torch.float32)  # as a narrow network takes it
            output, seen = model.observed(x_t, batch.time, **batch.condition)
        y = batch.eps if target == "raw" else _deviation(model, batch, output.float())
        second, third = model.heads(*(tensor.float() for tensor in seen))
        found = (second - y**2).square().mean()
        return found if third is None else found + (third - y**3).square().mean()

    return loss


def _deviation(model: Any, batch: Noised, output: Tensor) -> Tensor:
    x_t, alpha, sigma = batch.x_t, batch.alpha, batch.sigma
    if not model.normalised:
        return batch.eps - prediction.to_noise(model.prediction, output, x_t, alpha, sigma)
    m = prediction.to_data(model.prediction, output, x_t, alpha, sigma)
    m = m if model.clip is None else m.clamp(*model.clip)
    return deviation(m, batch.x_0, alpha, sigma, model.data_std)


def _autocast(batch: Noised, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(batch.x_t.device.type, dtype, enabled=dtype != torch.float32)
