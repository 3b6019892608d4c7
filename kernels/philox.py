"""Counter-based noise: Philox4x32-10 (csrc/gms/philox.h).

Each draw is a pure function of (seed, sample, step, element).

Counter words: c0 = element // 4, c1 = step, c2 = sample & 0xffffffff, c3 = (sample >> 32) << 8 | stream.
Key words: low and high half of the seed. Word j of a call belongs to element 4 c0 + j.
"""

import triton
import triton.language as tl

from gms_fast.kernels.elementary import minus_two_log, root_of_log, sincos_turn

NORMALS = tl.constexpr(0)
UNIFORMS = tl.constexpr(1)


@triton.jit
def make_counter(counters, sample, stream):
    """Return the counter words c1 .. c3 and the key (k0, k1), all uint32.

    counters = (seeds, seed_at, step_at, seed_low, seed_high, sample_offset, step); the first three are pointers to
    int64, or None. `seeds` holds one key per sample. Otherwise `seed_at`, or seed_low and seed_high, is the key of all,
    and the index tells samples apart. The step is at `step_at`, or is `step`. The words are the bits of int32 numbers.
    """
    seeds, seed_at, step_at, seed_low, seed_high, sample_offset, step = counters
    index = sample + sample_offset
    if seeds is not None:
        key = tl.load(seeds + sample)
        index = sample * 0
    elif seed_at is not None:
        key = tl.load(seed_at)
    else:
        key = (seed_high.to(tl.int64) << 32) | (seed_low.to(tl.int64) & 0xFFFFFFFF)
    c1 = step if step_at is None else tl.load(step_at)
    c3 = (((index >> 32) << 8) | stream).to(tl.uint32)
    return c1.to(tl.uint32), index.to(tl.uint32), c3, key.to(tl.uint32), (key >> 32).to(tl.uint32)


@triton.jit
def philox_words(quad, counter):
    """Return four words; 64-bit products give both halves in one instruction."""
    c1, c2, c3, k0, k1 = counter
    c0 = quad
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53
        p1 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = p1.to(tl.uint32)
        c3 = p0.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def uniform(w):
    """Return u = w 2^-32 + 2^-33 in float32, in (0, 1]."""
    return tl.fma(w.to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10)


@triton.jit
def box_muller(w0, w1):
    """Return two normals from two words."""
    s, c = sincos_turn(uniform(w1))
    r = root_of_log(minus_two_log(uniform(w0)))
    return r * c, r * s


@triton.jit
def fill_noise(first, counter, NORMAL: tl.constexpr, BLOCK: tl.constexpr):
    """Return the draws of elements 4 first .. 4 first + BLOCK - 1, four for each Philox call."""
    quad = (first + tl.arange(0, BLOCK // 4)).to(tl.uint32)
    w0, w1, w2, w3 = philox_words(quad, counter)
    if NORMAL:
        a, b = box_muller(w0, w1)
        c, d = box_muller(w2, w3)
    else:
        a, b, c, d = uniform(w0), uniform(w1), uniform(w2), uniform(w3)
    return tl.interleave(tl.interleave(a, c), tl.interleave(b, d))


@triton.jit
def shared_uniform(counter):
    """Return the uniform of a whole sample: that of its element 0."""
    w, _, _, _ = philox_words(counter[0] * 0, counter)
    return uniform(w)
