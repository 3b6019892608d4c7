"""The "triton" backend: hands the grouped arguments to the launchers in kernels/."""

from torch import Tensor

from gms_fast import kernels
from gms_fast.arguments import Fitting, Noise, Stepping


def _counters(noise: Noise) -> tuple:
    return noise.seed, noise.seeds, noise.sample_offset, noise.step


def gms_step(
    x: Tensor, e1: Tensor, e2: Tensor | None, e3: Tensor | None, out: Tensor, step: Stepping, fit: Fitting, noise: Noise
) -> None:
    kernels.gms_step(
        *(x, e1, e2, e3, out, step.coefficients, step.lo, step.hi, *fit, step.moments, step.central),
        *(*_counters(noise), noise.z, noise.u, noise.element),
    )


def sample_mixture(
    mean: Tensor, var: Tensor, third: Tensor, out: Tensor, floor: float, fit: Fitting, noise: Noise
) -> None:
    kernels.sample_mixture(mean, var, third, out, floor, *fit, *_counters(noise), noise.z, noise.u, noise.element)


def fit_mixture(mean: Tensor, var: Tensor, third: Tensor, out: tuple[Tensor, ...], floor: float, fit: Fitting) -> None:
    kernels.fit_mixture(mean, var, third, *out, floor, *fit)


def philox(out: Tensor, noise: Noise, stream: int, normal: bool) -> None:
    kernels.philox(out, *_counters(noise), stream, normal)
