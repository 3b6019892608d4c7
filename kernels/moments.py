"""Noise moments to cumulants of x_0 given x_t, and of x_s (csrc/gms/moments.h).

Equations 1 to 3 of docs/notation.md.
"""

from collections import namedtuple

import triton
import triton.language as tl

# r = sigma_t/alpha_t, r2 = r^2, r3 = -r^3, B2 = B^2, std = sqrt(min(c, var_max)); the data range may be infinite.
StepCoefficients = namedtuple("StepCoefficients", "inv_alpha r r2 r3 A B B2 c var_max std lo hi")


# These propagate NaN.
@triton.jit
def at_least(x, low):
    return tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def at_most(x, high):
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def clamp(x, low, high):
    return at_most(at_least(x, low), high)


@triton.jit
def led(conditional, unconditional, scale):
    """Apply classifier-free guidance: unconditional + scale (conditional - unconditional)."""
    return tl.fma(conditional - unconditional, scale, unconditional)


@triton.jit
def data_estimate(x, y, of_x, of_output, lo, hi):
    """Return E[x_0|x_t] = clip(of_x x + of_output y), linear in y for every prediction."""
    return clamp(tl.fma(y, of_output, x * of_x), lo, hi)


@triton.jit
def data_cumulants(x, e1, e2, e3, to, k, CENTRAL: tl.constexpr):
    """Return (m, v, third): mean, variance and third central moment of x_0 given x_t.

    They are those of the network, unclipped. `to` is the first moment that guidance asks for, else e1; the moments
    about it stay.
    """
    if CENTRAL:
        r2 = e2
        r3 = e3
    else:
        r2 = tl.fma(-e1, e1, e2)
        r3 = tl.fma(-e1, tl.fma(e1, e1, 3.0 * r2), e3)  # e3 - 3 e1 e2 + 2 e1^3, where e2 = r2 + e1^2
    return tl.fma(to, -k.r, x * k.inv_alpha), k.r2 * r2, k.r3 * r3


@triton.jit
def posterior(x, e1, e2, e3, to, k, CENTRAL: tl.constexpr, BOUND: tl.constexpr):
    """Return the cumulants of x_0 bounded by the data range [lo, hi].

    The variance is at most that of any law on the range. BOUND: at most that of any with this mean (Bhatia-Davis).
    """
    m, v, third = data_cumulants(x, e1, e2, e3, to, k, CENTRAL)
    m = clamp(m, k.lo, k.hi)
    half = 0.5 * (k.hi - k.lo)
    v = clamp(v, 0.0, half * half)
    if BOUND:
        v = at_most(v, (m - k.lo) * (k.hi - m))
    return m, v, third


@triton.jit
def step_moments(x, e1, e2, e3, to, k, CENTRAL: tl.constexpr):
    """Return (mean_s, base, excess, third_s) of x_s.

    var_s = base + excess: the known Gaussian, and what x_0 adds.
    """
    m, v, third = posterior(x, e1, e2, e3, to, k, CENTRAL, False)
    return tl.fma(m, k.B, k.A * x), k.c, k.B2 * v, k.B * k.B2 * third


@triton.jit
def released_moments(x, e1, e2, e3, to, k, CENTRAL: tl.constexpr):
    """Return the moments of x_s as the released code clips them.

    It clips E[x_0^2] and E[x_0^3] separately from m and v, so they are not consistent. `third` is its third raw moment
    of x_s, less 3 mean_s var_s + mean_s^3, without the cancellation.
    """
    m, v, third = data_cumulants(x, e1, e2, e3, to, k, CENTRAL)
    q = clamp(tl.fma(m, m, v), 0.0, 1.0)
    raw = tl.fma(m, tl.fma(m, m, 3.0 * v), third)
    m = clamp(m, -1.0, 1.0)
    v = clamp(v, 0.0, 1.0)
    u = clamp(tl.where(tl.abs(raw) <= tl.abs(m), raw, m), -1.0, 1.0)
    mean = clamp(tl.fma(m, k.B, k.A * x), -1000.0, 1000.0)
    full = tl.fma(v, k.B2, k.c)
    var = clamp(full, 0.0, 1.0)
    third = 3.0 * k.A * x * k.B2 * (tl.fma(-m, m, q) - v)
    third += k.B * k.B2 * tl.fma(-m, tl.fma(m, m, 3.0 * v), u)
    third += 3.0 * mean * (full - var)
    return mean, at_most(var, k.c), at_least(var - k.c, 0.0), third
