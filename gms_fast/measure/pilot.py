"""Search for the noise level down to which a Gaussian can replace a network."""

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

PILOT = 3  # stream of the counter-based noise; its step is the index of the noise level
_NOISIEST = 100.0  # first sigma/alpha where the schedule starts without signal


class Pilot(NamedTuple):
    """Comparison of the data estimates of a Gaussian and of a network at several noise levels.

    This is the result of [`pilot`][gms_fast.statistics.pilot]. All lists start with the highest noise level.

    Attributes:
        ratio: Noise levels sigma/alpha.
        r2: Coefficient of determination R^2 of the Gaussian's estimate as a prediction of the network's estimate, at
            most 1.
        gaussian_error: Mean squared error of the Gaussian's estimate of x_0.
        network_error: Mean squared error of the network's estimate of x_0.
        until: Lowest noise level down to which the Gaussian can replace the network, or None if there is none.

    Examples:
        >>> model, data = gms_fast.load("digits"), gms_fast.data.load("digits")[:64]
        >>> found = gms_fast.statistics.pilot(model, data, gms_fast.statistics.load_gaussian("digits"), levels=4)
        >>> [round(r) for r in found.ratio]
        [157, 29, 5, 1]
    """

    ratio: list[float]
    r2: list[float]
    gaussian_error: list[float]
    network_error: list[float]
    until: float | None


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
    """Find the noise level down to which a Gaussian can replace a network.

    Use the result as `until` of [`Teleport`][gms_fast.solvers.Teleport]. The function noises data at several levels and
    compares the network's estimate D of E[x_0|x_t] with the Gaussian's estimate D_gauss. The Gaussian is good enough at
    a noise level if

        R^2 = 1 - sum |D - D_gauss|^2/sum |D - mu|^2

    exceeds `threshold`, or if D_gauss is at least as close to the data as D. The second condition matters at high
    noise, where the error of a network can exceed the whole signal. Counting from the highest noise level,
    `until` is the last level before the first one that fails this test. It is None unless at least two levels pass.

    Args:
        model: Callable `(x, t)`, see [`empirical_model`][gms_fast.statistics.empirical_model].
        data: Samples (M, *sample) of the network's training data. About 256 are enough. For each level, the network is
            called once on all of them.
        statistics: [`Gaussian`][gms_fast.statistics.Gaussian] of the data.
        schedule: Noise schedule or its name, or None (default) for the model's.
        prediction: Meaning of a single tensor that the model returns, such as "noise" or "x0", or None (default) for
            the model's.
        levels: Number of noise levels, >= 2 (default 16). They are evenly spaced in log(sigma/alpha), from the
            schedule's highest level, or 100 if that is infinite, down to 1.
        threshold: Value of R^2 above which the Gaussian is good enough, < 1 (default 0.9).
        seed: Seed of the noise (default 0).

    Returns:
        [`Pilot`][gms_fast.statistics.Pilot].

    Raises:
        ValueError: If an argument is out of range, if shapes do not match, or if the model returns NaN or infinity.
        TypeError: If `data` is not a floating-point tensor.

    Examples:
        >>> model, data = gms_fast.load("digits"), gms_fast.data.load("digits")[:64]
        >>> gaussian = gms_fast.statistics.load_gaussian("digits")
        >>> found = gms_fast.statistics.pilot(model, data, gaussian, levels=4)
        >>> solver = gms_fast.solvers.Teleport(gaussian, found.until, gms_fast.solvers.DPMSolverPP())
        >>> gms_fast.sample(model, 4, solver=solver, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Wang & Vastola 2024, arXiv 2412.09726. Their measure compares scores and is close to 1 at all noise levels.
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
