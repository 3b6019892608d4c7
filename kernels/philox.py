"""Counter-based noise (csrc/gms/philox.h): Philox4x32-10, a pure function of (seed, sample, step, element).

Counter words: c0 = element // 4, c1 = step, c2 = sample & 0xffffffff, c3 = (sample >> 32) << 8 | stream.
Key words: low and high half of the seed. Word j of a call belongs to element 4 c0 + j.
"""

import triton
import triton.language as tl

from gms_fast.kernels.elementary import log_unit, sincos_turn

NORMALS = tl.constexpr(0)
UNIFORMS = tl.constexpr(1)


@triton.jit
def make_counter(counters, sample, stream):
    """Counter words c1..c3 and the key (k0, k1), uint32, from counters = (seeds, seed_low, seed_high, offset, step).

    seeds: one int64 key per sample, or None: then samples are told apart by their index. The words are int32 bits.
    """
    seeds, seed_low, seed_high, sample_offset, step = counters
    if seeds is None:
        k0 = seed_low.to(tl.uint32, bitcast=True)
        k1 = seed_high.to(tl.uint32, bitcast=True)
        index = sample + sample_offset
    else:
        key = tl.load(seeds + sample)
        k0 = key.to(tl.uint32)
        k1 = (key >> 32).to(tl.uint32)
        index = sample * 0
    c3 = (((index >> 32) << 8) | stream).to(tl.uint32)
    return step.to(tl.uint32, bitcast=True), index.to(tl.uint32), c3, k0, k1


@triton.jit
def uniform(w):
    """u = w 2^-32 + 2^-33 in float32, in (0, 1]."""
    return w.to(tl.float32) * 2.3283064365386963e-10 + 1.1641532182693481e-10


@triton.jit
def box_muller(w0, w1):
    """Two normals from two words."""
    s, c = sincos_turn(uniform(w1))
    r = tl.sqrt_rn(-2.0 * log_unit(uniform(w0)))
    return r * c, r * s


@triton.jit
def fill_noise(first, counter, NORMAL: tl.constexpr, BLOCK: tl.constexpr):
    """The draws of elements 4 first .. 4 first + BLOCK - 1, in order: one Philox call for four of them."""
    c1, c2, c3, k0, k1 = counter
    quad = (first + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(quad, c1, c2, c3, k0, k1)
    if NORMAL:
        a, b = box_muller(w0, w1)
        c, d = box_muller(w2, w3)
    else:
        a, b, c, d = uniform(w0), uniform(w1), uniform(w2), uniform(w3)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def shared_uniform(counter):
    """The uniform of a whole sample: that of its element 0."""
    c1, c2, c3, k0, k1 = counter
    w, _, _, _ = tl.philox_impl(c1 * 0, c1, c2, c3, k0, k1)
    return uniform(w)
