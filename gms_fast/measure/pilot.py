"""The noise level down to which a Gaussian can stand for a network."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from gms_fast import ops
from gms_fast.assumptions import describe
from gms_fast.measure.empirical import check_data
from gms_fast.measure.noise import noise_of
from gms_fast.schedules import Schedule
from gms_fast.tables.gaussian import Gaussian
from gms_fast.tables.wide import wide
from gms_fast.types import NoiseMoments

PILOT = 3  # stream of the counter-based noise, whose step is the noise level
_NOISIEST = 100.0  # sigma/alpha to begin with where a schedule starts without signal


class Pilot(NamedTuple):
    """Answers of a Gaussian and a network about x_0 = data, by noise level, noisiest first."""

    ratio: list[float]  # sigma/alpha
    r2: list[float]  # of the network's denoiser, how much the Gaussian's explains
    gaussian_error: list[float]  # mean square of E[x_0|x_t] - x_0
    network_error: list[float]
    until: float | None  # the lowest ratio down to which the Gaussian will do


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
    """Proposes how far `Teleport` may go, from E[x_0|x_t] of noised data: D of the network and D_gauss of the Gaussian.

    A Gaussian will do at a level where R^2 = 1 - sum |D - D_gauss|^2/sum |D - mu|^2 exceeds the threshold, or where it
    is as near to the data as the network: at much noise a network's error can exceed all that there is to say. `until`
    is the last level before the first at which it will not do; None if nothing lies between.

    model, schedule, prediction   as in `gms_fast.statistics.empirical_model`
    data       (M, *): 256 or so images that the network was trained on; one call on all of them at each level
    levels     how many, evenly in log(sigma/alpha) from the schedule's first down to 1
    threshold  of R^2
    Raises ValueError or TypeError naming the argument, ValueError where the model returns NaN.
    Source: Wang & Vastola 2024 (arXiv 2412.09726), whose own score measure is near 1 everywhere.
    """
    said = describe(model, schedule, prediction)
    schedule, form = said.built(), said.prediction
    check_data(model, data)
    statistics.check(shape=data.shape[1:])
    if not isinstance(levels, int) or levels < 2 or not threshold < 1:
        raise ValueError(f"levels must be at least 2 and threshold below 1: got {levels!r}, {threshold!r}")
    noise = noise_of(model, schedule, form)
    mean = statistics.mean.to(data.dtype).to(data.device).view(data.shape[1:])
    found = Pilot([], [], [], [], None)
    for i, t in enumerate(_times(schedule, levels)):
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        z = ops.philox_normal(data.shape, seed=seed, step=i, stream=PILOT, device=data.device, dtype=data.dtype)
        x = alpha * data + sigma * z
        network = (x - sigma * noise(x, t)) / alpha
        gaussian = statistics.denoise(x, alpha, sigma)
        found.ratio.append(sigma / alpha)
        found.r2.append(1 - _error(network, gaussian) / _error(network, mean))
        found.gaussian_error.append(_error(gaussian, data))
        found.network_error.append(_error(network, data))
        if math.isnan(found.r2[-1]):
            raise ValueError(f"model returned NaN or infinity at sigma/alpha = {sigma / alpha:.3g}")
    will_do = [r2 > threshold or g <= n for _, r2, g, n in zip(*found[:4], strict=True)]
    good = will_do.index(False) if False in will_do else levels
    return found._replace(until=found.ratio[good - 1] if good > 1 else None)


def _times(schedule: Schedule, levels: int) -> Tensor:
    first, last = float(schedule.log_snr(schedule.t_max)), min(0.0, float(schedule.log_snr(schedule.t_min)))
    if not math.isfinite(first):
        first = float(schedule.log_snr(schedule.inverse_log_snr(-math.log(_NOISIEST))))
    return schedule.inverse_log_snr(torch.linspace(first, last, levels, dtype=torch.float64, device="cpu"))


def _error(a: Tensor, b: Tensor) -> float:
    return float(wide(a - b).square().mean())
