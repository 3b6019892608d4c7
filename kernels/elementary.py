"""Elementary functions in float32, from polynomials and rounded operations.

They are those of csrc/gms/elementary.h: log, sin and cos of a turn, and roots. tl.log and tl.sin are not used: their
results differ between GPUs, the interpreter and the C++ build.
"""

import triton
import triton.language as tl


@triton.jit
def bits_of(x):
    return x.to(tl.int32, bitcast=True)


@triton.jit
def from_bits(i):
    return i.to(tl.float32, bitcast=True)


@triton.jit
def minus_two_log(u):
    """Return -2 log u for normal u in (0, 1].

    u = 2^e (1 + r) with 1 + r in [1/sqrt 2, sqrt 2]; log(1 + r) then comes from -2r + r^2 + r^3 P(r).
    """
    i = bits_of(u) - 0x3F3504F3  # offset by 1/sqrt 2
    e = (i >> 23).to(tl.float32)
    r = from_bits((i & 0x007FFFFF) + 0x3F3504F3) - 1.0
    p = tl.fma(r, -0.1394322216, 0.229594678)
    p = tl.fma(p, r, -0.233708396)
    p = tl.fma(p, r, 0.248513744)
    p = tl.fma(p, r, -0.284981162)
    p = tl.fma(p, r, 0.333356053)
    p = tl.fma(p, r, -0.400014311)
    p = tl.fma(p, r, 0.49999994)
    p = tl.fma(p, r, -0.666666627)
    r2 = r * r
    # 2 ln 2 in two parts: e times the first is exact.
    low = tl.fma(e, 4.24388880e-4, tl.fma(p * r, r2, r2))
    return tl.fma(e, -1.38671875, tl.fma(r, -2.0, low))


@triton.jit
def root(x):
    """Return the square root, on the fast path for zero too.

    `tl.sqrt_rn` takes zero through its slow path, and the whole warp with it. Here it sees 1 instead. The result is the
    smaller of that root and a multiple of x, which no other root exceeds.
    """
    r = tl.sqrt_rn(tl.where(x == 0.0, 1.0, x))
    return tl.minimum(r, x * 1267650600228229401496703205376.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def root_of_log(x):
    """Return the square root of a number from `minus_two_log`, which is zero or not tiny.

    It is rounded as IEEE 754 requires (csrc/cuda/quick.cuh), without the slow path of `tl.sqrt_rn`. The summand changes
    no such number but zero, whose inverse root is infinite.
    """
    y = tl.rsqrt(x + 7.888609052210118e-31)
    s = x * y
    return tl.fma(tl.fma(-s, s, x), 0.5 * y, s)


@triton.jit
def sincos_turn(u):
    """Return sin and cos of 2 pi u for u in [0, 1]; the nearest quarter turn comes off exactly."""
    quarter = tl.fma(u, 4.0, 0.5).to(tl.int32)
    f = tl.fma(quarter.to(tl.float32), -0.25, u)  # in [-1/8, 1/8]
    y = f * f
    p = tl.fma(y, 41.4728317, -76.6978683)
    p = tl.fma(p, y, 81.6052017)
    p = tl.fma(p, y, -41.3417015)
    p = tl.fma(p, y, 6.28318548)
    q = tl.fma(y, -26.0581245, 60.2381821)
    q = tl.fma(q, y, -85.4567642)
    q = tl.fma(q, y, 64.9393921)
    q = tl.fma(q, y, -19.7392082)
    sine = p * f
    cosine = tl.fma(q, y, 1.0)
    swap = (quarter & 1) != 0
    a = tl.where(swap, cosine, sine)
    b = tl.where(swap, sine, cosine)
    # Bit 1 of the quarter is the sign: moved to the sign bit.
    return from_bits(bits_of(a) ^ ((quarter & 2) << 30)), from_bits(bits_of(b) ^ (((quarter + 1) & 2) << 30))


@triton.jit
def cbrt_newton(x):
    """Return the cube root without a division, for normal x, zero and infinity.

    Denormals give a number below 2^-42. y ~ x^(-1/3) comes from a guess in the exponent bits and a third-order step.
    Then with r = 1 - x y^3 the root is x y^2 (1 - r)^(-2/3).
    """
    a = tl.abs(x)
    third = tl.umulhi(bits_of(a).to(tl.uint32, bitcast=True), 0x55555556).to(tl.int32, bitcast=True)
    y = from_bits(0x54A2FA8C - third)
    r = tl.fma(-(a * y), y * y, 1.0)
    y = tl.fma(y * r, tl.fma(r, 0.222222222, 0.333333333), y)
    p = a * y
    rest = tl.fma(-p, y * y, 1.0)
    correction = rest * tl.fma(rest, 0.555555556, 0.666666667)
    return copysign(tl.fma(p, y, p * y * correction), x)


@triton.jit
def copysign(size, sign):
    return from_bits((bits_of(size) & 0x7FFFFFFF) | (bits_of(sign) & -0x80000000))
