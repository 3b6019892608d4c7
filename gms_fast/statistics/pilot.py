"""How far down in noise a Gaussian can stand for a network."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gms_fast import ops
from gms_fast.network import described
from gms_fast.schedules import Schedule
from gms_fast.statistics.derivatives import noise_of
from gms_fast.statistics.gaussian import Gaussian
from gms_fast.statistics.measure import check_data
from gms_fast.types import NoiseMoments

PILOT = 3  # stream of the counter-based noise, whose step is the noise level
_NOISIEST = 100.0  # sigma/alpha to begin with where a schedule starts without signal


class Pilot(NamedTuple):
    """How much of a network's denoiser a Gaussian explains, by noise level, noisiest first."""

    ratio: list[float]  # sigma/alpha
    r2: list[float]
    until: float | None  # the lowest of the ratios down to which r2 stays above the threshold


@torch.no_grad()
def pilot(
    model: Callable[[Tensor, Tensor], Tensor | NoiseMoments],
    data: Tensor,
    statistics: Gaussian,
    *,
    schedule: Schedule | str | None = None,
    prediction: str | None = None,
    levels: int = 16,
    threshold: float = 0.9,
    seed: int = 0,
) -> Pilot:
    """Proposes how far `Teleport` may go: R^2 = 1 - sum |D - D_gauss|^2/sum |D - mu|^2 of E[x_0|x_t], on noised data.

    model, schedule, prediction   as in `gms_fast.statistics.empirical_model`
    data       (M, *): 256 or so images that the network was trained on; one call on all of them at each level
    levels     how many, evenly in log(sigma/alpha) from the schedule's first down to 1
    threshold  that R^2 has to exceed at `until` and at all noisier levels; `until` is None where it never does
    Raises ValueError or TypeError naming the argument, ValueError where the model returns NaN.
    Source: Wang & Vastola 2024 (arXiv 2412.09726), whose own score measure is near 1 everywhere.
    """
    schedule, form = described(model, schedule, prediction)
    check_data(model, data)
    statistics.check(shape=data.shape[1:])
    if not isinstance(levels, int) or levels < 2 or not threshold < 1:
        raise ValueError(f"levels must be at least 2 and threshold below 1: got {levels!r}, {threshold!r}")
    noise = noise_of(model, schedule, form)
    first, last = float(schedule.log_snr(schedule.t_max)), min(0.0, float(schedule.log_snr(schedule.t_min)))
    if not math.isfinite(first):
        first = float(schedule.log_snr(schedule.inverse_log_snr(-math.log(_NOISIEST))))
    ratio, r2 = [], []
    for i, t in enumerate(schedule.inverse_log_snr(torch.linspace(first, last, levels, dtype=torch.float64))):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        z = ops.philox_normal(data.shape, seed=seed, step=i, stream=PILOT, device=data.device, dtype=data.dtype)
        x = alpha * data + sigma * z
        denoised = (x - sigma * noise(x, t)) / alpha
        off = (denoised - statistics.denoise(x, alpha, sigma)).double().square().sum()
        size = (denoised - statistics.mean.to(x.device, x.dtype).view(x.shape[1:])).double().square().sum()
        ratio.append(sigma / alpha)
        r2.append(float(1 - off / size))
        if math.isnan(r2[-1]):
            raise ValueError(f"model returned NaN or infinity at sigma/alpha = {sigma / alpha:.3g}")
    good = next((i for i, value in enumerate(r2) if value <= threshold), levels)
    return Pilot(ratio, r2, ratio[good - 1] if good else None)
