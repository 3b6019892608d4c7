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
    """Return the loss of stage 1: the mean of w (e1 - eps)^2, a scalar.

    `weights` is the name of the weight w in `WEIGHTS`.
    """
    weight = WEIGHTS[weights]

    def loss(model: Any, batch: Noised, dtype: torch.dtype) -> Tensor:
        with _autocast(batch, dtype):
            away = (model.first_moment(batch.x_t, batch.time, **batch.condition).float() - batch.eps).square()
        return away.mean() if weight is None else (weight(batch.alpha, batch.sigma) * away).mean()

    return loss


def min_snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """Min-SNR weight of the noise error: min(SNR, 5)/SNR with SNR = alpha^2/sigma^2.

    It weights the error of x_0 by min(SNR, 5). Source: Hang et al. 2023, arXiv 2303.09556.
    """
    return (_GAMMA * (sigma / alpha) ** 2).clamp(max=1)


def edm(alpha: Tensor, sigma: Tensor) -> Tensor:
    """EDM weight of the noise error: 1 + (r/s)^2 with r = sigma/alpha and s = 0.5.

    It weights the error of x_0 by (r^2 + s^2)/(r s)^2, and is meant for log-normal noise levels
    (`noising.log_normal_times`). Source: Karras et al. 2022, arXiv 2206.00364.
    """
    return 1 + (sigma / alpha / _DATA_STD) ** 2


WEIGHTS = {"uniform": None, "min-snr": min_snr, "edm": edm}


def moment_loss(target: str) -> Loss:
    """Return the loss of stage 2: the mean of (e2 - y^2)^2 + (e3 - y^3)^2.

    The second term is left out where e3 has no head. Gradients reach the heads alone. y = eps ("raw") or eps - e1
    ("central"); for normalised heads y is in the units of `gms_fast.models.normalised`.
    """

    def loss(model: Any, batch: Noised, dtype: torch.dtype) -> Tensor:
        with torch.no_grad(), _autocast(batch, dtype):
            x_t = batch.x_t.to(getattr(model, "dtype", None) or torch.float32)  # a 16-bit network takes its own dtype
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
