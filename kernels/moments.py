"""From noise moments to the mean, variance and third central moment of x_s (csrc/gms/moments.h; docs/notation.md)."""

from collections import namedtuple

import triton
import triton.language as tl

# inv_alpha, ratio: 1/alpha_t, sigma_t/alpha_t; lo, hi: the data range, infinite where there is none.
StepCoefficients = namedtuple("StepCoefficients", "inv_alpha ratio A B c var_max lo hi")


# NaN goes through: every comparison with it is false, and the first operand stays (tl.maximum would drop it).
@triton.jit
def at_least(x, low):
    return tl.where(x < low, low, x)


@triton.jit
def at_most(x, high):
    return tl.where(x > high, high, x)


@triton.jit
def clamp(x, low, high):
    return at_most(at_least(x, low), high)


@triton.jit
def data_cumulants(x, e1, e2, e3, k, CENTRAL: tl.constexpr):
    """(m, v, k): mean, variance and third central moment of x_0 given x_t, as the network has them."""
    if CENTRAL:
        r2 = e2
        r3 = e3
    else:
        r2 = tl.fma(-e1, e1, e2)
        # e3 - 3 e1 e2 + 2 e1^3 = e3 - e1 (3 e2 - 2 e1^2)
        r3 = tl.fma(-e1, tl.fma(-2.0 * e1, e1, 3.0 * e2), e3)
    r = k.ratio
    return tl.fma(-r, e1, x * k.inv_alpha), r * r * r2, -(r * r * r) * r3


@triton.jit
def step_moments(x, e1, e2, e3, k, CENTRAL: tl.constexpr, BOUND: tl.constexpr):
    """(mean_s, base, excess, third_s, m), var_s = base + excess: the known Gaussian, and what x_0 adds.

    BOUND: also bound v by (m - lo)(hi - m) (Bhatia-Davis).
    """
    m, v, third = data_cumulants(x, e1, e2, e3, k, CENTRAL)
    m = clamp(m, k.lo, k.hi)
    half = 0.5 * (k.hi - k.lo)
    b = k.B
    v = clamp(v, 0.0, half * half)
    if BOUND:
        v = at_most(v, (m - k.lo) * (k.hi - m))
    return tl.fma(k.A, x, b * m), k.c, b * b * v, b * b * b * third, m


@triton.jit
def released_moments(x, e1, e2, e3, k, CENTRAL: tl.constexpr):
    """The moments as the released code clips them: E[x_0^2] and E[x_0^3] apart from m and v, so not consistent.

    Its third raw moment of x_s, less 3 mean_s var_s + mean_s^3, is `third` without the cancellation.
    """
    m, v, third = data_cumulants(x, e1, e2, e3, k, CENTRAL)
    q = clamp(tl.fma(m, m, v), 0.0, 1.0)
    raw = tl.fma(m, tl.fma(m, m, 3.0 * v), third)
    m = clamp(m, -1.0, 1.0)
    v = clamp(v, 0.0, 1.0)
    b = k.B
    u = clamp(tl.where(tl.abs(raw) <= tl.abs(m), raw, m), -1.0, 1.0)
    mean = clamp(tl.fma(k.A, x, b * m), -1000.0, 1000.0)
    full = tl.fma(b * b, v, k.c)
    var = clamp(full, 0.0, 1.0)
    third = 3.0 * k.A * x * b * b * (tl.fma(-m, m, q) - v)
    third += b * b * b * tl.fma(-m, tl.fma(m, m, 3.0 * v), u)
    third += 3.0 * mean * (full - var)
    return mean, at_most(var, k.c), at_least(var - k.c, 0.0), third, m
