"""Two-component mixtures with given first three moments.

The formulas are those of csrc/gms/mixture.h and docs/notation.md.

A mixture is the tuple (weight, mean_a, mean_b, var); the weight is one number except for the fit "free". A component is
(mean, std). `known` describes the variance besides the fitted part V, as (scale, base, most, std). The whole variance
is min(scale V + base, most); std = sqrt(min(base, most)) is what remains for V = 0.
"""

from collections import namedtuple

import triton
import triton.language as tl

from gms_fast.kernels.elementary import cbrt_newton, copysign, root
from gms_fast.kernels.moments import at_least, at_most, clamp

# spread, inv_spread, inv_skew: w(1-w), 1/(w(1-w)), 1/(w(1-w)(1-2w))
FitParameters = namedtuple("FitParameters", "weight spread inv_spread inv_skew lr eps")


@triton.jit
def solve(excess, third, p):
    """Return (d, rest) of the mixture with weight w.

    The means are d apart, with w(1-w)(1-2w) d^3 = third. rest is the remaining variance; it is negative where the third
    moment needs more than there is.
    """
    d = cbrt_newton(third * p.inv_skew)
    return d, tl.fma(-p.spread * d, d, excess)


@triton.jit
def two_point_slant(excess, third):
    """Return S of `two_point`, bounded.

    Past 2^60 the far weight is below every uniform draw, and S^2 must not overflow.
    """
    return clamp(tl.div_rn(third, excess), -1152921504606846976.0, 1152921504606846976.0)


@triton.jit
def side_of(slant):
    return tl.where(slant < 0.0, -1.0, 1.0)


@triton.jit
def two_point(excess, slant, h):
    """Return (light, far, near) of the two-point law of variance e and skewness S/sqrt(e).

    For S >= 0 the nodes lie far above and near below the mean; for S < 0 the law is mirrored. far near = e and
    far - near = S, hence far = (S + h)/2, h = sqrt(S^2 + 4e). The far node has the light weight near/(far + near) =
    near/h. It is at most 1/2, and float32 keeps all its digits.
    """
    far = 0.5 * (tl.abs(slant) + h)
    return tl.div_rn(excess, tl.fma(far, far, excess)), far, tl.div_rn(excess, far)


@triton.jit
def within(third, excess, below, above):
    """Return the third moment bounded so that its two-point law stays within the range.

    A node a above the mean has its partner e/a below. Plain comparisons leave the moment alone where the bounds are
    NaN, as for a range without end.
    """
    product = below * above
    ordinary = (excess > 0.0) & (product < float("inf"))  # else the share is zero, or not used
    share = tl.div_rn(tl.where(ordinary, excess, 1.0), tl.where(ordinary, product, 1.0))
    share = tl.where(ordinary, share, 0.0)
    low = excess * tl.fma(share, above, -below)
    high = excess * tl.fma(-share, below, above)
    third = tl.where(third < low, low, third)
    return tl.where(third > high, high, third)


@triton.jit
def some_law(excess, third):
    """Return (whether there is a law, its variance, its third moment).

    Without a law, as in an element whose mean is clipped, variance and moment are ordinary numbers. A division of or by
    zero would send the whole warp down its slow path.
    """
    some = excess > 0.0
    return some, tl.where(some, excess, 1.0), tl.where(some, third, 1.0)


@triton.jit
def fit_closed(mean, base, excess, third, p, FREE: tl.constexpr):
    """Return the closed fit: the weight of `p`, and as much third moment as excess allows.

    FREE: where that is less than all of it, the two-point law, whose far node is component a.
    """
    d, rest = solve(excess, third, p)
    infeasible = rest < 0.0
    d = tl.where(infeasible, copysign(root(excess * p.inv_spread), d), d)
    weight = p.weight
    mean_a = tl.fma(d, 1.0 - p.weight, mean)
    mean_b = tl.fma(d, -p.weight, mean)
    var = base + tl.where(infeasible, 0.0, rest)
    if FREE:
        some, excess, third = some_law(excess, third)
        slant = two_point_slant(excess, third)
        light, far, near = two_point(excess, slant, tl.sqrt_rn(tl.fma(slant, slant, 4.0 * excess)))
        choose = infeasible & some
        weight = tl.where(choose, light, weight)
        mean_a = tl.where(choose, tl.fma(far, side_of(slant), mean), mean_a)
        mean_b = tl.where(choose, tl.fma(-near, side_of(slant), mean), mean_b)
    return weight, mean_a, mean_b, var


@triton.jit
def choose_closed(mean, excess, third, u, known, p, FREE: tl.constexpr):
    """Return the component of the closed fit that u chooses, with one square root.

    Where the fit is feasible, the root is that of the variance; elsewhere it is the one that the means need. u < near/h
    is decided without the quotient.
    """
    scale, base, most, std_left = known
    d, rest = solve(excess, third, p)
    infeasible = rest < 0.0
    var = at_most(tl.fma(rest, scale, base), most)
    if FREE:
        some, excess, third = some_law(excess, third)
        slant = two_point_slant(excess, third)
        one_root = tl.sqrt_rn(tl.where(infeasible, tl.fma(slant, slant, 4.0 * excess), var))
    else:  # zero where narrow moments leave no variance, which is often
        one_root = root(tl.where(infeasible, excess * p.inv_spread, var))
    std = tl.where(infeasible, std_left, one_root)
    away = tl.where(u < p.weight, 1.0 - p.weight, -p.weight)  # from the mean, in units of d
    if FREE:
        _, far, near = two_point(excess, slant, one_root)
        node = tl.where(some, tl.where(u * one_root < near, far, -near), 0.0)
        away = tl.where(infeasible, node, away)
        d = tl.where(infeasible, side_of(slant), d)
    else:
        d = tl.where(infeasible, copysign(one_root, d), d)
    return tl.fma(away, d, mean), std


@triton.jit
def adan_update(value, m, d, s, last, gradient, first_step, rates):
    """Update one unknown of the released fit and its optimiser state by one iteration."""
    first, difference, second, eps = rates
    diff = tl.where(first_step, 0.0, gradient - last)
    nesterov = tl.fma(diff, 0.92, gradient)
    m = tl.fma(m, 0.9, 0.1 * gradient)
    d = tl.fma(d, 0.92, 0.08 * diff)
    s = tl.fma(s, 0.92, 0.08 * nesterov * nesterov)
    step = tl.fma(m, first, d * difference)
    value -= tl.div_rn(step, tl.fma(tl.sqrt_rn(s), second, eps))
    return value, m, d, s, gradient


@triton.jit
def adan_rates(first, second, p):
    """Return lr/(1-0.9^k), 0.92 lr/(1-0.92^k), 1/sqrt(1-0.92^k) and eps from 0.9^k and 0.92^k."""
    left = 1.0 - second
    return tl.div_rn(p.lr, 1.0 - first), tl.div_rn(0.92 * p.lr, left), tl.div_rn(1.0, tl.sqrt_rn(left)), p.eps


@triton.jit
def adan_gradients(x, y, beta, mean, var, second, raw, w):
    """Return the derivatives of E0^2 + E1^2 + E2^2 by mean_a, mean_b and beta."""
    w2 = 1.0 - w
    v = var * clamp(beta, 0.1, 1.2)
    wx = w * x
    wy = w2 * y
    centre = wx + wy
    xx = tl.fma(x, x, v)
    yy = tl.fma(y, y, v)
    e0 = 2.0 * (centre - mean)  # 2 E0
    e1 = 4.0 * (tl.fma(xx, w, w2 * yy) - second)  # 4 E1
    e2 = 6.0 * (tl.fma(wx, xx, wy * yy) + 2.0 * v * centre - raw)  # 6 E2
    slope = var * tl.fma(e2, centre, 0.5 * e1)
    by_x = w * tl.fma(e2, xx, tl.fma(e1, x, e0))
    by_y = w2 * tl.fma(e2, yy, tl.fma(e1, y, e0))
    return by_x, by_y, tl.where((beta >= 0.1) & (beta <= 1.2), slope, 0.0)


@triton.jit
def fit_adan(mean, var, third, p, ITERATIONS: tl.constexpr):
    """Return the released fit "adan": Adan on the squared residuals of the three raw moments."""
    second = tl.fma(mean, mean, var)
    raw = tl.fma(mean, tl.fma(mean, mean, 3.0 * var), third)
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
def fit_mixture(mean, base, excess, third, p, FIT: tl.constexpr, ITERATIONS: tl.constexpr):
    if FIT == "gaussian":
        mixture = p.weight, mean, mean, base + excess
    elif FIT == "adan":
        mixture = fit_adan(mean, base + excess, third, p, ITERATIONS)
    else:
        mixture = fit_closed(mean, base, excess, third, p, FIT == "free")
    return mixture


@triton.jit
def choose(mean, excess, third, u, known, p, FIT: tl.constexpr, ITERATIONS: tl.constexpr):
    """Return the component that u chooses, as (mean, std)."""
    scale, base, most, _ = known
    if FIT == "gaussian":
        component = mean, tl.sqrt_rn(at_most(tl.fma(excess, scale, base), most))
    elif FIT == "adan":
        weight, mean_a, mean_b, var = fit_adan(mean, tl.fma(excess, scale, base), third, p, ITERATIONS)
        component = tl.where(u < weight, mean_a, mean_b), tl.sqrt_rn(at_most(var, most))
    else:
        component = choose_closed(mean, excess, third, u, known, p, FIT == "free")
    return component


@triton.jit
def base_of(var, floor, FIT: tl.constexpr):
    """Return the part of the variance that the means may not use.

    Only the closed fits look at the floor. A negative variance, as rounding leaves, counts as zero.
    """
    whole = at_least(var, 0.0)
    return at_most(whole, floor) if FIT == "exact" or FIT == "free" else whole


@triton.jit
def excess_of(var, floor, FIT: tl.constexpr):
    return at_least(var - floor, 0.0) if FIT == "exact" or FIT == "free" else tl.zeros_like(var)
