"""Random mixture fits, and a bound on their rounding errors.

**The bound.** u is the largest relative rounding error of the arithmetic: 2^-53 for float64, else 2^-24, because
narrower types are computed in float32. Operations are counted for plain torch, the least exact backend, whose roots err
by 2 u.

- A weight is off by 30 u at most, and the distance of a node from the mean by 19 u. The last of these rounds the sum
  mean + distance, and with it the mean. (Kernels: 12 u and 8 u.)
- So w |distance|^k, k <= 3, is off by 30 + 3 * 19 = 87 roundings, and by the effect of u |mean| on a node.
- In 8 more roundings this file recomputes the moments in float64.
- An error of the distance cancels between V and the means, and V itself has fewer roundings.
- The cube root in float64 is a power. Its exponent is off by u/6 of |ln third|, its cube by three times that.
- Storing a weight, a node or V in a narrow type rounds it once more.
- A subnormal number is off by the spacing of subnormal numbers, and its cube root may be anything small. A third moment
  below float32's smallest normal number is off by as much.

**The domain.** Nothing overflows in float32 while var <= w(1-w) 2^126 and |third| <= w(1-w)|1-2w| 2^126. The gradient
of "adan" is of degree six in its inputs. With default settings it is finite for |mean|, sqrt(var) and cbrt(|third|) up
to 10^6.
"""

import math
import random
from typing import NamedTuple

import torch
from torch import Tensor

from gms_fast import ops
from gms_fast.types import Mixture

FITS = ("exact", "free", "adan", "gaussian")
CLOSED = ("exact", "free")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DECADES = {  # exponents of the standard deviations
    torch.float32: (-18, 18),
    torch.bfloat16: (-18, 18),
    torch.float16: (-4, 2),
    torch.float64: (-50, 50),
}
ROUNDINGS = 30 + 3 * 19 + 8
LARGEST = 2.0**126  # largest moment in float32, over the numbers that the fit divides by
ADAN = 1e6
MOMENTS = ("mean", "var", "third")
AT_ZERO = "at mean 0, "
SKEWNESS = 6  # decades on either side of 1


class Problem(NamedTuple):
    """Moments (1, N) of one dtype, and the settings of their fit."""

    fit: str
    weight: float
    floor: float
    mean: Tensor
    var: Tensor
    third: Tensor

    @property
    def moments(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.mean, self.var, self.third

    def widened(self) -> "Problem":
        """Return the same problem in the dtype that ops compute in."""
        return self._replace(**{name: getattr(self, name).to(_arithmetic(self.mean.dtype)) for name in MOMENTS})

    @property
    def options(self) -> dict[str, object]:
        return {"fit": self.fit, "weight": self.weight}


class _Draw:
    """Source of random numbers (1, size) in float64."""

    def __init__(self, seed: int, size: int) -> None:
        self._generator, self._shape = torch.Generator().manual_seed(seed), (1, size)

    def uniform(self, low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(self._shape, generator=self._generator, dtype=torch.float64)

    def powers(self, least: float, most: float) -> Tensor:
        """Draw powers of ten between two exponents."""
        return 10 ** self.uniform(least, most)

    def among(self, share: float) -> Tensor:
        return self.uniform(0, 1) < share

    def signs(self) -> Tensor:
        return torch.where(self.among(0.5), 1.0, -1.0)


def problem(seed: int, fit: str, dtype: torch.dtype, size: int) -> Problem:
    """Draw `size` random moments.

    Means and standard deviations cover all decades of the dtype. Some variances are zero, subnormal, or slightly
    negative as rounding leaves them. The floor is below, at and above the variances. Skewness, of either sign, refers
    to the variance above the floor.
    """
    numbers, draw = random.Random(seed), _Draw(seed, size)
    weight, (least, most) = _weight(numbers, fit), DECADES[dtype]
    most = min(most, math.log10(ADAN)) if fit == "adan" else most
    limits = _limits(fit, weight, dtype)
    floor = _rounded(numbers.choice([0.0, 10 ** (2 * numbers.uniform(least, most))]), _arithmetic(dtype))
    var = _variances(draw, floor, (least, most), dtype).clamp(max=limits[1]).to(dtype).double()
    mean = torch.where(draw.among(0.2), 0, draw.signs() * var.abs().sqrt() * draw.powers(-6, 6))
    above = torch.where(var > floor, var - floor, var.abs())  # at or below the floor, the fit has no skewness
    third = torch.where(draw.among(0.1), 0, draw.signs() * above**1.5 * draw.powers(-SKEWNESS, SKEWNESS))
    moments = (t.clamp(-most, most).to(dtype) for t, most in zip((mean, var, third), limits, strict=True))
    return Problem(fit, weight, floor, *moments)


def _variances(draw: _Draw, floor: float, decades: tuple[float, float], dtype: torch.dtype) -> Tensor:
    var, info = draw.powers(*decades) ** 2, torch.finfo(dtype)
    if floor:
        near = floor * (1 + draw.powers(-8, 4) * draw.among(0.8))
        var = torch.where(draw.among(0.5), near, var)
    for odd in (0.0, info.smallest_normal * draw.uniform(0, 1), -info.eps * var):
        var = torch.where(draw.among(0.03), odd, var)
    return var


def _weight(numbers: random.Random, fit: str) -> float:
    """Draw a weight: the default, any, or near the ends or 1/2."""
    extreme = [1e-6, 1 - 1e-6, *(0.5 + side * 2.0**-20 for side in (-1, 1))]
    return numbers.choice([1 / 3, 1 / 3, numbers.uniform(1e-6, 0.499), numbers.uniform(0.501, 1 - 1e-6), *extreme])


def _limits(fit: str, weight: float, dtype: torch.dtype) -> tuple[float, float, float]:
    """Return the largest mean, variance and third moment of the domain."""
    if fit == "adan":
        largest = ADAN, ADAN**2, ADAN**3
    elif dtype == torch.float64:
        largest = (torch.finfo(dtype).max,) * 3
    else:
        spread = weight * (1 - weight)
        largest = LARGEST, spread * LARGEST, spread * abs(1 - 2 * weight) * LARGEST
    return tuple(min(x, torch.finfo(dtype).max) for x in largest)


def in_units_of_the_bound(fitted: Mixture, given: Problem) -> dict[str, Tensor]:
    """Return the errors of a closed fit's moments, recomputed in float64, in units of the bound."""
    dtype, wide = given.mean.dtype, _arithmetic(given.mean.dtype)
    u, grain = torch.finfo(wide).eps / 2, _spacing(dtype)
    narrow, narrow_grain = (torch.finfo(dtype).eps / 2, grain) if dtype != wide else (0.0, 0.0)
    w, a, b, v = (t.double() for t in fitted)
    mean, var, third = given.mean.double(), given.var.double().clamp(min=0), given.third.double()
    floor, weight = (_rounded(x, wide) for x in (given.floor, given.weight))
    third = _reachable(third, (var - floor).clamp(min=0), given.fit, weight)
    weights, nodes = torch.stack([w, 1 - w]), torch.stack([a - mean, b - mean])
    n, place = nodes.abs(), u * mean.abs() + narrow * (mean.abs() + nodes.abs()) + grain
    moves = place, place * (2 * n + place), place * (3 * n * (n + place) + place**2)
    moved = [(weights * m + (narrow * w + narrow_grain) * n**k).sum(0) for k, m in enumerate(moves, 1)]
    first, second, cube = ((weights * nodes**k).sum(0) for k in (1, 2, 3))
    rounding = ROUNDINGS * u
    power = u * third.abs().clamp(min=torch.finfo(wide).tiny).log().abs() / 2 if wide == torch.float64 else 0.0
    bound = rounding * (weights * n).sum(0) + moved[0]
    error = {
        "mean": (first, bound),
        "var": (second + v - var, rounding * var + moved[1] + narrow * v + 16 * grain),
        "third": (
            cube + 3 * v * first - third,
            (rounding + power) * (weights * n**3).sum(0) + moved[2] + 3 * v * bound + torch.finfo(wide).tiny,
        ),
    }
    return {name: found.abs() / allowed for name, (found, allowed) in error.items()}


def _reachable(third: Tensor, excess: Tensor, fit: str, weight: float) -> Tensor:
    """Return the part of the third moment that a fit promises to match.

    "free" matches all of it, if there is variance above the floor.
    """
    if fit == "free":
        return torch.where(excess > 0, third, 0)
    most = abs(1 - 2 * weight) / math.sqrt(weight * (1 - weight)) * excess**1.5
    return third.clamp(-most, most)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that ops compute in."""
    return torch.promote_types(dtype, torch.float32)


def _rounded(value: float, dtype: torch.dtype) -> float:
    return torch.tensor(value, dtype=dtype).item()


def _spacing(dtype: torch.dtype) -> float:
    """Return the spacing of subnormal numbers."""
    return torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def check(given: Problem) -> tuple[dict[str, float], str | None]:
    """Fit a problem; return the largest errors in units of the bound, and the fault or None.

    Errors at mean 0 are also given by themselves.
    """
    fitted = ops.fit_mixture(*given.moments, given.floor, **given.options)
    worst, faults = {}, []
    if given.fit in CLOSED:
        kept = torch.stack([t.isfinite() for t in fitted]).all(0)  # some nodes overflow float16
        units = {name: error.where(kept, 0) for name, error in in_units_of_the_bound(fitted, given).items()}
        worst = {name: float(error.max()) for name, error in units.items()}
        faults = [f"{name}: {error:.3g} times the bound" for name, error in worst.items() if not error <= 1]
        worst |= {AT_ZERO + name: float(error.where(given.mean == 0, 0).max()) for name, error in units.items()}
    dtype, wide = given.mean.dtype, given.widened()
    fields = fitted if wide.mean.dtype == dtype else ops.fit_mixture(*wide.moments, wide.floor, **wide.options)
    if not all(map(torch.equal, fitted, (t.to(dtype) for t in fields))):
        faults.append("a narrow mixture is not the float32 one, rounded")
    faults += [name for name, fine in _promises(fields, wide).items() if not fine]
    return worst, "; ".join(faults) or None


def _promises(fields: Mixture, wide: Problem) -> dict[str, Tensor | bool]:
    """Evaluate the rules that hold exactly; the keys name the fault if one is False."""
    w, a, b, v = fields
    var, floor, weight = wide.var.clamp(min=0), *(_rounded(x, v.dtype) for x in (wide.floor, wide.weight))
    light = (w >= 0) & (w <= 0.5) if wide.fit == "free" else torch.zeros_like(w, dtype=torch.bool)
    promises = {
        "not finite": torch.stack(fields).isfinite().all(),
        "the weight is another": ((w == weight) | light).all(),
        "a draw is not of the mixture": _draws_agree(fields, wide),
    }
    if wide.fit in CLOSED:
        return promises | {"V is below min(var, floor)": (v >= var.clamp(max=floor)).all()}
    if wide.fit == "adan":
        return promises | {"V is not in [0.1 var, 1.2 var]": ((0.1 * var <= v) & (v <= 1.2 * var)).all()}
    return promises | {"the Gaussian is another": ((a == wide.mean) & (b == wide.mean) & (v == var)).all()}


def _draws_agree(fields: Mixture, wide: Problem) -> bool:
    """Check draws with z = 1 and -1: the component that u selects, plus or minus sqrt(V)."""
    w, a, b, v = fields
    even = torch.arange(w.numel()).view_as(w) % 2 == 0
    u = torch.where(even, w / 2, (1 + w) / 2).clamp(min=2.0**-33)  # the smallest u that ops draw
    clear = (u - w).abs() > 2.0**-19 * w  # kernels compare without a quotient: skip ties
    node, roots = torch.where(u < w, a, b), (v.sqrt(), v.double().sqrt().to(v.dtype))  # torch's own errs by an ulp
    for z in (1.0, -1.0):
        noise = torch.full_like(w, z), u
        drawn = ops.sample_mixture(*wide.moments, wide.floor, noise=noise, **wide.options)
        if not any(torch.equal(drawn[clear], (node + z * root)[clear]) for root in roots):
            return False
    return True
