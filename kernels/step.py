"""The kernels: each program takes BLOCK elements of one sample, BLOCK a multiple of 4 so that it starts at a whole
Philox call. Tensors are contiguous (samples, elements); any of float32, bfloat16, float16 each, float32 inside.
"""

import triton
import triton.language as tl

from gms_fast.kernels.mixture import draw, fit_mixture
from gms_fast.kernels.moments import at_least, at_most, released_moments, step_moments
from gms_fast.kernels.philox import NORMALS, UNIFORMS, fill_noise, make_counter, shared_uniform

_COUNTERS = ["seed_low", "seed_high", "sample_offset", "step", "stream"]  # vary from step to step: one kernel for all


@triton.jit
def span(elements, BLOCK: tl.constexpr):
    """(sample, first element, offsets into the tensors, mask) of this program."""
    blocks = tl.cdiv(elements, BLOCK)
    sample = (tl.program_id(0) // blocks).to(tl.int64)  # offsets pass 2^31 before the grid does
    begin = (tl.program_id(0) % blocks).to(tl.int64) * BLOCK
    inside = begin + tl.arange(0, BLOCK)
    return sample, begin, sample * elements + inside, inside < elements


@triton.jit
def load(pointer, offsets, mask):
    if pointer is None:
        value = tl.zeros(offsets.shape, tl.float32)
    else:
        value = tl.load(pointer + offsets, mask=mask, other=0.0).to(tl.float32)
    return value


@triton.jit
def store(pointer, offsets, mask, value):
    tl.store(pointer + offsets, tl.cast(value, tl.float32).to(pointer.dtype.element_ty), mask=mask)


@triton.jit
def normals(z, counters, place):
    """The given normals, else drawn."""
    sample, begin, offsets, mask = place
    if z is None:
        counter = make_counter(counters, sample, NORMALS)
        value = fill_noise(begin // 4, counter, True, offsets.shape[0])
    else:
        value = load(z, offsets, mask)
    return value


@triton.jit
def uniforms(u, counters, place, ELEMENT: tl.constexpr):
    """The given uniforms, else drawn: one for each element, or one for the sample."""
    sample, begin, offsets, mask = place
    if u is None:
        counter = make_counter(counters, sample, UNIFORMS)
        value = fill_noise(begin // 4, counter, False, offsets.shape[0]) if ELEMENT else shared_uniform(counter)
    elif ELEMENT:
        value = load(u, offsets, mask)
    else:
        value = tl.load(u + sample)
    return value


@triton.jit
def draw_and_store(out, mixture, z, u, counters, place, FIT: tl.constexpr, ELEMENT: tl.constexpr):
    _, _, offsets, mask = place
    normal = normals(z, counters, place)
    if FIT == "gaussian":
        _, mean, _, var = mixture
        result = tl.fma(tl.sqrt_rn(var), normal, mean)
    else:
        result = draw(mixture, normal, uniforms(u, counters, place, ELEMENT))
    store(out, offsets, mask, result)


@triton.jit(do_not_specialize=_COUNTERS)
def step_kernel(
    x,
    e1,
    e2,
    e3,
    out,
    elements,
    k,
    p,
    seeds,
    seed_low,
    seed_high,
    sample_offset,
    step,
    z,
    u,
    FIT: tl.constexpr,
    ITERATIONS: tl.constexpr,
    MOMENTS: tl.constexpr,
    CENTRAL: tl.constexpr,
    ELEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = span(elements, BLOCK)
    _, _, offsets, mask = place
    GUARD: tl.constexpr = FIT == "free" and MOMENTS == "cumulant"
    x1, n1, n2, n3 = load(x, offsets, mask), load(e1, offsets, mask), load(e2, offsets, mask), load(e3, offsets, mask)
    if MOMENTS == "released":
        mean, base, excess, third, m = released_moments(x1, n1, n2, n3, k, CENTRAL)
    else:
        mean, base, excess, third, m = step_moments(x1, n1, n2, n3, k, CENTRAL, GUARD)
    below = float("inf")
    above = float("inf")
    if GUARD:
        below = k.B * (m - k.lo)
        above = k.B * (k.hi - m)
    weight, mean_a, mean_b, var = fit_mixture(mean, base, excess, third, below, above, p, FIT, ITERATIONS)
    mixture = weight, mean_a, mean_b, at_most(var, k.var_max)
    counters = seeds, seed_low, seed_high, sample_offset, step
    draw_and_store(out, mixture, z, u, counters, place, FIT, ELEMENT)


@triton.jit
def fit_at(mean, var, third, floor, p, place, FIT: tl.constexpr, ITERATIONS: tl.constexpr):
    """The mixture of var = min(var, floor) + the rest, of which the means may use the second part only."""
    _, _, offsets, mask = place
    m, v, t = load(mean, offsets, mask), load(var, offsets, mask), load(third, offsets, mask)
    base = at_most(v, floor)
    excess = at_least(v - floor, 0.0)
    return fit_mixture(m, base, excess, t, float("inf"), float("inf"), p, FIT, ITERATIONS)


@triton.jit(do_not_specialize=_COUNTERS)
def sample_kernel(
    mean,
    var,
    third,
    out,
    elements,
    floor,
    p,
    seeds,
    seed_low,
    seed_high,
    sample_offset,
    step,
    z,
    u,
    FIT: tl.constexpr,
    ITERATIONS: tl.constexpr,
    ELEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = span(elements, BLOCK)
    mixture = fit_at(mean, var, third, floor, p, place, FIT, ITERATIONS)
    counters = seeds, seed_low, seed_high, sample_offset, step
    draw_and_store(out, mixture, z, u, counters, place, FIT, ELEMENT)


@triton.jit
def fit_kernel(
    mean,
    var,
    third,
    weight_out,
    mean_a_out,
    mean_b_out,
    var_out,
    elements,
    floor,
    p,
    FIT: tl.constexpr,
    ITERATIONS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = span(elements, BLOCK)
    _, _, offsets, mask = place
    weight, mean_a, mean_b, v = fit_at(mean, var, third, floor, p, place, FIT, ITERATIONS)
    store(weight_out, offsets, mask, weight)
    store(mean_a_out, offsets, mask, mean_a)
    store(mean_b_out, offsets, mask, mean_b)
    store(var_out, offsets, mask, v)


@triton.jit(do_not_specialize=_COUNTERS)
def philox_kernel(
    out,
    elements,
    seeds,
    seed_low,
    seed_high,
    sample_offset,
    step,
    stream,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    sample, begin, offsets, mask = span(elements, BLOCK)
    counter = make_counter((seeds, seed_low, seed_high, sample_offset, step), sample, stream)
    store(out, offsets, mask, fill_noise(begin // 4, counter, NORMAL, BLOCK))
