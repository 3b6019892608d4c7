"""Two-component mixtures with a given mean, variance and third central moment (csrc/gms/mixture.h; docs/notation.md).

A mixture is the tuple (weight, mean_a, mean_b, var); the weight is one number except for the fit "free".
"""

from collections import namedtuple

import triton
import triton.language as tl

from gms_fast.kernels.elementary import cbrt_newton
from gms_fast.kernels.moments import at_least, clamp

# spread, inv_spread, inv_skew: w(1-w), 1/(w(1-w)), 1/(w(1-w)(1-2w))
FitParameters = namedtuple("FitParameters", "weight spread inv_spread inv_skew lr eps")


@triton.jit
def fit_closed(mean, base, excess, third, below, above, p, FREE: tl.constexpr):
    """exact: means d apart with w(1-w)(1-2w) d^3 = third, |d| no larger than `excess` allows.

    FREE: where it would be larger, the two-point law of that skewness on a variance of `base`. The third moment is
    bounded so that the means stay within `below` and `above` of the mean: a node q s above it has its partner s/q
    below, and the skewness q - 1/q grows with q. (Comparisons with the NaN of excess = 0 leave it alone.)
    """
    if FREE:
        lowest = excess * (tl.div_rn(excess, below) - below)
        third = clamp(third, lowest, excess * (above - tl.div_rn(excess, above)))
    d_max = tl.sqrt_rn(excess * p.inv_spread)
    wanted = cbrt_newton(third * p.inv_skew)
    infeasible = tl.abs(wanted) > d_max
    d = clamp(wanted, -d_max, d_max)
    rest = at_least(tl.fma(-p.spread * d, d, excess), 0.0)
    weight = p.weight
    mean_a = tl.fma(1.0 - p.weight, d, mean)
    mean_b = tl.fma(-p.weight, d, mean)
    var = base + tl.where(infeasible, 0.0, rest)
    if FREE:
        light, far, near, up = two_point(excess, third)
        s = tl.sqrt_rn(excess)
        choose = infeasible & (excess > 0.0)
        weight = tl.where(choose, tl.where(up, light, 1.0 - light), weight)
        mean_a = tl.where(choose, tl.fma(s, tl.where(up, far, near), mean), mean_a)
        mean_b = tl.where(choose, tl.fma(-s, tl.where(up, near, far), mean), mean_b)
        var = tl.where(choose, base, var)
    return weight, mean_a, mean_b, var


@triton.jit
def two_point(excess, third):
    """(weight of the far node, far node, near node, whether the far one is above), nodes in units of sqrt(excess)."""
    s = tl.sqrt_rn(excess)
    inv_s = tl.div_rn(1.0, s)
    # Past 2^60 the far weight is below every uniform draw, and g^2 must not overflow.
    g = clamp(third * inv_s * inv_s * inv_s, -1152921504606846976.0, 1152921504606846976.0)
    h = tl.sqrt_rn(tl.fma(g, g, 4.0))
    far = 0.5 * (h + tl.abs(g))
    near = tl.div_rn(1.0, far)
    return tl.div_rn(near, h), far, near, g >= 0.0  # near/h: without the cancellation of (1 - |g|/h)/2


@triton.jit
def adan_update(value, m, d, s, last, gradient, first_step, rates):
    """One unknown of the released fit with its optimiser state, one iteration on."""
    first, difference, second, eps = rates
    diff = tl.where(first_step, 0.0, gradient - last)
    nesterov = gradient + 0.92 * diff
    m = 0.9 * m + 0.1 * gradient
    d = 0.92 * d + 0.08 * diff
    s = 0.92 * s + 0.08 * nesterov * nesterov
    value -= tl.div_rn(m * first + d * difference, tl.sqrt_rn(s) * second + eps)
    return value, m, d, s, gradient


@triton.jit
def adan_rates(first, second, p):
    """lr/(1-0.9^k), 0.92 lr/(1-0.92^k), 1/sqrt(1-0.92^k), eps from 0.9^k and 0.92^k."""
    left = 1.0 - second
    return tl.div_rn(p.lr, 1.0 - first), tl.div_rn(0.92 * p.lr, left), tl.div_rn(1.0, tl.sqrt_rn(left)), p.eps


@triton.jit
def adan_gradients(x, y, beta, mean, var, second, raw, w):
    """Derivatives of E0^2 + E1^2 + E2^2 by mean_a, mean_b and beta."""
    w2 = 1.0 - w
    v = var * clamp(beta, 0.1, 1.2)
    centre = w * x + w2 * y
    xx = x * x + v
    yy = y * y + v
    e0 = centre - mean
    e1 = w * xx + w2 * yy - second
    e2 = w * x * (xx + 2.0 * v) + w2 * y * (yy + 2.0 * v) - raw
    inside = (beta >= 0.1) & (beta <= 1.2)
    by_x = w * (2.0 * e0 + 4.0 * e1 * x + 6.0 * e2 * xx)
    by_y = w2 * (2.0 * e0 + 4.0 * e1 * y + 6.0 * e2 * yy)
    return by_x, by_y, tl.where(inside, var * (2.0 * e1 + 6.0 * e2 * centre), 0.0)


@triton.jit
def fit_adan(mean, var, third, p, ITERATIONS: tl.constexpr):
    """adan: the released fit, ITERATIONS of Adan on the squared residuals of the three raw moments."""
    second = mean * mean + var
    raw = third + 3.0 * mean * var + mean * mean * mean
    zero = tl.zeros_like(mean)
    a, ma, da, sa, la = mean, zero, zero, zero, zero
    b, mb, db, sb, lb = mean - 1e-3, zero, zero, zero, zero
    beta, mv, dv, sv, lv = zero + 0.998, zero, zero, zero, zero
    power = tl.full([1], 1.0, tl.float32)  # 0.9^k, and 0.92^k
    power2 = tl.full([1], 1.0, tl.float32)
    for k in range(ITERATIONS):
        power *= 0.9
        power2 *= 0.92
        rates = adan_rates(power, power2, p)
        ga, gb, gv = adan_gradients(a, b, beta, mean, var, second, raw, p.weight)
        a, ma, da, sa, la = adan_update(a, ma, da, sa, la, ga, k == 0, rates)
        b, mb, db, sb, lb = adan_update(b, mb, db, sb, lb, gb, k == 0, rates)
        beta, mv, dv, sv, lv = adan_update(beta, mv, dv, sv, lv, gv, k == 0, rates)
    return p.weight, a, b, var * clamp(beta, 0.1, 1.2)


@triton.jit
def fit_mixture(mean, base, excess, third, below, above, p, FIT: tl.constexpr, ITERATIONS: tl.constexpr):
    if FIT == "gaussian":
        mixture = p.weight, mean, mean, base + excess
    elif FIT == "adan":
        mixture = fit_adan(mean, base + excess, third, p, ITERATIONS)
    else:
        mixture = fit_closed(mean, base, excess, third, below, above, p, FIT == "free")
    return mixture


@triton.jit
def draw(mixture, z, u):
    weight, mean_a, mean_b, var = mixture
    return tl.fma(tl.sqrt_rn(var), z, tl.where(u < weight, mean_a, mean_b))
