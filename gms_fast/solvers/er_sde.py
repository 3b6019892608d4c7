"""ER-SDE-Solver: Cui et al. 2023, WACV 2025 (arXiv 2309.06169)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from gms_fast.ops.checks import check_choice
from gms_fast.schedules import Schedule
from gms_fast.solvers.base import Multistep, check_order

Phi = Callable[[np.ndarray], np.ndarray]
Checked = Callable[[float | np.ndarray], np.ndarray]  # a Phi that takes numbers too

NOISE_SCALES: dict[str, Phi] = {
    "ode": lambda x: x,
    "sde": lambda x: x**2,
    "er_sde_1": lambda x: x**1.5,
    "er_sde_2": lambda x: x**2.5,
    "er_sde_3": lambda x: x**0.9 * np.log10(1 + 100 * x**1.5),
    "er_sde_4": lambda x: x * (np.exp(x**0.3) + 10),
    "dropped": lambda x: x * (np.exp(-1 / x) + 10),
}
# The names of the paper's first versions and of the released code.
NOISE_SCALES |= {"sde_1": NOISE_SCALES["dropped"]}
NOISE_SCALES |= {f"sde_{i + 1}": NOISE_SCALES[f"er_sde_{i}"] for i in (1, 2, 3, 4)}
QUADRATURES = ("released", "exact")
_RELEASED_CLIP = 1e-6
_FAR = np.array([1e6, 1e9])  # levels where phi(x)/x shows its limit
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(20)


@dataclass(frozen=True, kw_only=True)
class ERSDE(Multistep):
    """Multistep solver of the extended reverse SDE, with adjustable noise at each noise level.

        x_s = alpha_s (r x_t/alpha_t + (1 - r) X + c_1 X' + c_2 X'') + alpha_s sqrt(lambda_s^2 - r^2 lambda_t^2) z

    Here lambda = sigma/alpha, r = phi(lambda_s)/phi(lambda_t) and X = E[x_0|x_t]. X' and X'' are differences of X over
    the preceding steps. The coefficients c_1 and c_2 are integrals of 1/phi, which docs/mathematics/er-sde.md derives.
    The SDE is dy = (1 + eta) (y - X)/lambda dlambda + sqrt(2 eta lambda) dw for y = x/alpha. The function phi sets the
    amount of noise, eta = lambda phi'/phi - 1 >= 0: the probability flow has eta = 0, and the reverse SDE has eta = 1.
    The argument `noise_scale` selects one of these functions phi(x) of the noise level x = sigma/alpha:

    - "ode": x
    - "sde": x^2
    - "er_sde_1": x^1.5
    - "er_sde_2": x^2.5
    - "er_sde_3": x^0.9 log10(1 + 100 x^1.5)
    - "er_sde_4": x (exp(x^0.3) + 10)
    - "sde_1" or "dropped": x (exp(-1/x) + 10)

    The names "sde_2" to "sde_5" are older names for "er_sde_1" to "er_sde_4".

    Use ER-SDE for runs of up to 10 network evaluations if you have no statistics of the data or the network, and pass
    `timesteps=schedule.timesteps(K, spacing=0.7)`. It needs no moment heads. A run of K steps costs K network
    evaluations, because the state at the last time is the sample. If the last time has no noise, the sample is the last
    E[x_0|x_t].

    Args:
        order: Order of the solver: 1, 2 or 3 (default). The first steps have a lower order, because fewer earlier
            estimates exist. Order 3 converges like order 2 but with a smaller error, because X' is a backward
            difference.
        noise_scale: Name of the function phi (default "er_sde_4"), or a callable that takes and returns float64 arrays.
            Its values must be positive, and phi(x)/x must not decrease with x.
        quadrature: Rule for the integrals of 1/phi in c_1 and c_2: "released" (default) for the left Riemann sum of the
            code released with the paper, or "exact" for integrals that are exact up to rounding.
        points: Number of points of the Riemann sum, >= 1. The released code uses 100 (default); ComfyUI uses 200.
        variance_clip: Threshold for the variance of the noise in x/alpha; steps below it draw no noise. The default,
            None, stands for 1e-6 with quadrature="released", as in the released code, and for 0 with
            quadrature="exact".

    Raises:
        ValueError: If an argument is out of range.

    Examples:
        >>> model = gms_fast.load("digits")
        >>> times = model.schedule.timesteps(8, spacing=0.7)
        >>> solver = gms_fast.solvers.ERSDE(noise_scale=lambda x: x**1.5)
        >>> gms_fast.sample(model, solver=solver, timesteps=times, n=2).shape
        torch.Size([2, 1, 8, 8])

    References:
        Cui et al. 2023, arXiv 2309.06169.
    """

    order: int = 3
    noise_scale: str | Phi = "er_sde_4"
    quadrature: str = "released"
    points: int = 100
    variance_clip: float | None = None
    denoise = False

    def __post_init__(self) -> None:
        check_order(self.order, (1, 2, 3))
        if not callable(self.noise_scale) and str(self.noise_scale) not in NOISE_SCALES:
            names = ", ".join(NOISE_SCALES)
            raise ValueError(f"noise_scale must be a callable phi(x) or one of {names}: got {self.noise_scale!r}")
        check_choice("quadrature", self.quadrature, QUADRATURES)
        if type(self.points) is not int or self.points < 1:
            raise ValueError(f"points must be an integer of at least 1: got {self.points!r}")
        if self.variance_clip is not None and not self.variance_clip >= 0:
            raise ValueError(f"variance_clip must be a non-negative number or None: got {self.variance_clip!r}")

    def plan(self, schedule: Schedule, times: Sequence[float]) -> list[tuple[list[float], float]]:
        alpha, sigma = (f(times).numpy() for f in (schedule.alpha, schedule.sigma))
        with np.errstate(divide="ignore"):
            lam = sigma / alpha
        phi = _checked(self.noise_scale if callable(self.noise_scale) else NOISE_SCALES[self.noise_scale], lam)
        return [self._step(phi, alpha[i : i + 2], sigma[i : i + 2], lam[: i + 2][::-1]) for i in range(len(lam) - 1)]

    def _step(self, phi: Checked, alpha: np.ndarray, sigma: np.ndarray, lam: np.ndarray) -> tuple[list[float], float]:
        """Return (weights, std) of a step.

        alpha, sigma: levels at t and s. lam: sigma/alpha of s, of t and of the times before, latest first.
        """
        (alpha_t, alpha_s), lam_s, lam_t = alpha, lam[0], lam[1]
        if lam_s == 0:
            return [0.0, float(alpha_s)], 0.0
        if math.isinf(lam_t):
            kept = _limit(phi, lam_s)  # r lambda_t
            return [float(alpha_s * kept / sigma[0]), float(alpha_s)], self._std(alpha_s, lam_s, kept / lam_s)
        r = float(phi(lam_s) / phi(lam_t))
        order = min(self.order, int(np.isfinite(lam[1:]).sum()))
        own = [1 - r, 0.0, 0.0]
        if order > 1:
            c1, c2 = self._taylor(phi, lam_s, lam_t)
            for weight, differences in zip((c1, c2), _differences(lam[1:], order), strict=False):
                own = [w + weight * d for w, d in zip(own, differences, strict=True)]
        weights = [alpha_s / alpha_t * r, *(alpha_s * w for w in own[:order])]
        return [float(w) for w in weights], self._std(alpha_s, lam_s, r * lam_t / lam_s)

    def _std(self, alpha_s: float, lam_s: float, kept: float) -> float:
        """Return alpha_s sqrt(lambda_s^2 (1 - kept^2)) for kept = r lambda_t/lambda_s.

        For phi(x) = x, kept is 1 up to rounding, and the step draws no noise.
        """
        clip = self.variance_clip
        if clip is None:
            clip = _RELEASED_CLIP if self.quadrature == "released" else 0.0
        variance = lam_s**2 * (1 - kept) * (1 + kept)
        rounding = 8 * np.finfo(np.float64).eps * lam_s**2
        return 0.0 if variance < max(clip, rounding) else float(alpha_s * math.sqrt(variance))

    def _taylor(self, phi: Checked, lam_s: float, lam_t: float) -> tuple[float, float]:
        """Return c_1 and c_2, the weights of X' and X''.

        c_1 = -D + phi(lambda_s) int 1/phi and c_2 = D^2/2 + phi(lambda_s) int (l - lambda_t)/phi with D = lambda_t -
        lambda_s. The integrals run over l from lambda_s to lambda_t.
        """
        D = lam_t - lam_s
        released = self.quadrature == "released"
        points, weights = _riemann(lam_s, lam_t, self.points) if released else _gauss(lam_s, lam_t)
        density = weights * phi(lam_s) / phi(points)
        return -D + float(density.sum()), D * D / 2 + float((density * (points - lam_t)).sum())


def _riemann(low: float, high: float, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Points and weights of the released code's Riemann sum: the lower end is a point."""
    return low + np.arange(n) / n * (high - low), np.full(n, (high - low) / n)


def _gauss(low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Gauss-Legendre points and weights in log l, on panels that are short there."""
    edges = np.linspace(math.log(low), math.log(high), 2 + int(math.log(high / low)))
    half = np.diff(edges)[:, None] / 2
    points = np.exp(edges[:-1, None] + half * (1 + _NODES)).ravel()
    return points, (half * _WEIGHTS).ravel() * points


def _differences(lam: np.ndarray, order: int) -> list[list[float]]:
    """Return X' and X'' as weights of X_0, X_1, X_2 at levels `lam`, latest first.

    X'' = 2 X[lam_0, lam_1, lam_2], twice the second divided difference.
    """
    first = 1 / (lam[0] - lam[1])
    rows = [[first, -first, 0.0]]
    if order == 3:
        before, width = 1 / (lam[1] - lam[2]), lam[0] - lam[2]
        rows.append([2 * first / width, -2 * (first + before) / width, 2 * before / width])
    return rows


def _limit(phi: Checked, lam_s: float) -> float:
    """Return the limit of phi(lambda_s) l/phi(l) as l goes to infinity.

    It is 0 unless phi grows as slowly as l.
    """
    with np.errstate(over="ignore"):
        near, far = phi(_FAR) / _FAR
    return float(phi(lam_s) / far) if far <= near * (1 + 1e-5) else 0.0


def _checked(phi: Phi, lam: np.ndarray) -> Checked:
    """Return phi as a function that has been checked at the levels `lam`.

    Raises ValueError that names the level at which phi is not positive or phi(x)/x decreases with x.
    """

    def quiet(x: float | np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):  # the limit 1/inf = 0 is wanted
            return np.asarray(phi(np.asarray(x, dtype=np.float64)), dtype=np.float64)

    levels = np.where(np.isinf(lam), _FAR[-1], lam)[lam > 0]
    try:
        values = quiet(levels)
    except (TypeError, ValueError) as error:
        raise TypeError(f"noise_scale must take and return float64 arrays: {error}") from error
    if values.shape != levels.shape:
        raise TypeError(f"noise_scale must return one value per noise level, {levels.shape}: got {values.shape}")
    for level, value in zip(levels, values, strict=True):
        if not value > 0 or (math.isinf(value) and level < levels[0]):
            raise ValueError(
                f"noise_scale must be positive and finite at each noise level: got phi({level:g}) = {value:g}"
            )
    for (high, low), (above, below) in zip(pairwise(levels), pairwise(values), strict=True):
        if not above / high >= below / low * (1 - 1e-12):
            raise ValueError(
                f"noise_scale must be a function phi for which phi(x)/x does not decrease with x: it decreases from "
                f"{below / low:g} at x = {low:g} to {above / high:g} at x = {high:g}"
                + (", which stands for the infinite noise level at the start" if high == _FAR[-1] else "")
            )
    return quiet
