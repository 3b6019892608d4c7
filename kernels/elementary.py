"""log, sin/cos of a turn and cube root in float32 (csrc/gms/elementary.h): polynomials and rounded operations only.

No tl.log or tl.sin: their results differ between GPUs and the interpreter, and from the C++ build.
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
def log_unit(u):
    """log u for normal u in (0, 1]: u = 2^e (1 + r) with 1 + r in [1/sqrt 2, sqrt 2), then r - r^2/2 + r^3 P(r)."""
    i = bits_of(u) - 0x3F3504F3  # offset by 1/sqrt 2
    e = (i >> 23).to(tl.float32)
    r = from_bits((i & 0x007FFFFF) + 0x3F3504F3) - 1.0
    p = tl.fma(r, 0.0697161108, -0.114797339)
    p = tl.fma(p, r, 0.116854198)
    p = tl.fma(p, r, -0.124256872)
    p = tl.fma(p, r, 0.142490581)
    p = tl.fma(p, r, -0.166678026)
    p = tl.fma(p, r, 0.200007156)
    p = tl.fma(p, r, -0.24999997)
    p = tl.fma(p, r, 0.333333313)
    r2 = r * r
    # ln 2 in two parts: e times the first is exact.
    low = tl.fma(e, -2.12194440e-4, tl.fma(p * r, r2, -0.5 * r2))
    return tl.fma(e, 0.693359375, r + low)


@triton.jit
def sincos_turn(u):
    """sin and cos of 2 pi u for u in [0, 1]: the nearest quarter turn is taken off exactly."""
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
    return tl.where((quarter & 2) != 0, -a, a), tl.where(((quarter + 1) & 2) != 0, -b, b)


@triton.jit
def cbrt_newton(x):
    """Cube root without a division: x^(-1/3) from a guess in the exponent and two third-order steps, times x^(2/3)."""
    a = tl.abs(x)
    tiny = a < 8.077935669463161e-28  # 2^-90: denormals, and where a y^3 would lose digits
    a = tl.where(tiny, a * 4722366482869645213696.0, a)  # 2^72
    y = from_bits(0x54A2FA8C - bits_of(a) // 3)
    for _ in tl.static_range(2):
        r = tl.fma(-a * y, y * y, 1.0)
        y = tl.fma(y * r, tl.fma(r, 0.222222222, 0.333333333), y)
    t = a * y * y
    residual = tl.fma(-t * t, t, a)
    t = tl.fma(residual * 0.333333333, y * y, t)
    t = tl.where(tiny, t * 5.9604644775390625e-08, t)  # 2^-24
    # Zero, infinity and NaN are their own cube roots.
    t = tl.where((a > 0.0) & (a <= 3.4028234663852886e38), t, a)
    return from_bits(bits_of(t) | (bits_of(x) & -0x80000000))
