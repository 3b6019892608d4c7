"""The kernels: each program works on BLOCK elements of one sample.

BLOCK is a multiple of 4, so that a program starts at a whole Philox call. Each tensor is float32, bfloat16 or float16;
the arithmetic is float32. WHOLE: samples are whole blocks. The grid is (blocks of a sample, samples); with MANY it is
(samples, blocks), because the second size is below 2^16.

tensor    (pointer or None, strides): strides of the sample and of the sizes inside it, or None for a dense tensor
sizes     those inside a sample, if some tensor has strides
counters  see `make_counter`
z, u      pointers to given draws, or None
watch     (pointer to the smallest code of what was not finite, or None; code of this step)
"""

import triton
import triton.language as tl

from gms_fast.kernels.elementary import bits_of
from gms_fast.kernels.mixture import base_of, choose, excess_of, fit_mixture, within
from gms_fast.kernels.moments import (
    StepCoefficients,
    at_most,
    data_estimate,
    led,
    posterior,
    released_moments,
    step_moments,
)
from gms_fast.kernels.philox import NORMALS, UNIFORMS, fill_noise, make_counter, shared_uniform

WRITTEN = tl.constexpr(3)  # after the code of a step, where the network's tensors are 0, 1 and 2

# They vary from step to step, so one kernel serves all values. (Triton still inspects what is inside a tuple.)
_VARYING = ["seed_low", "seed_high", "sample_offset", "step", "stream", "code"]


@triton.jit
def span(elements, BLOCK: tl.constexpr, WHOLE: tl.constexpr, MANY: tl.constexpr):
    """Return (sample, first element, elements, number of elements, mask of valid ones).

    A thread has four elements in a row, as its noise lies. A wider access to narrow types would be possible, but then
    elements would change places through shared memory.
    """
    sample = tl.program_id(0 if MANY else 1).to(tl.int64)  # offsets pass 2^31 before the grid does
    begin = tl.program_id(1 if MANY else 0).to(tl.int64) * BLOCK
    inside = tl.max_contiguous(begin + tl.arange(0, BLOCK), 4)
    mask = tl.full([BLOCK], True, tl.int1) if WHOLE else inside < elements
    return sample, begin, inside, elements, mask


@triton.jit
def offsets_in(strides, sizes, place):
    """Return the offsets of the program's elements in a tensor."""
    sample, _, inside, elements, _ = place
    if strides is None:
        offsets = sample * elements + inside
    else:
        row = inside // sizes[2]
        offsets = sample * strides[0] + row // sizes[1] * strides[1] + row % sizes[1] * strides[2]
        offsets += inside % sizes[2] * strides[3]
    return offsets


@triton.jit
def load(tensor, sizes, place):
    pointer, strides = tensor
    _, _, inside, _, mask = place
    if pointer is None:
        value = tl.zeros(inside.shape, tl.float32)
    else:
        value = tl.load(pointer + offsets_in(strides, sizes, place), mask=mask).to(tl.float32)
    return value


@triton.jit
def store(tensor, sizes, place, value):
    pointer, strides = tensor
    value = tl.cast(value, tl.float32).to(pointer.dtype.element_ty)
    tl.store(pointer + offsets_in(strides, sizes, place), value, mask=place[4])


@triton.jit
def look(watch, which: tl.constexpr, value, place, INFINITE: tl.constexpr = 0x7F800000):
    """Record tensor number `which` of a step if it is not finite.

    That is, if it is at least as large as the float32 with bits INFINITE. A thread tests its four elements together.
    """
    first, code = watch
    if first is not None:
        size = tl.where(place[4], bits_of(value) & 0x7FFFFFFF, 0)
        most = tl.max(tl.reshape(size, [value.shape[0] // 4, 4]), 1)
        tl.atomic_min(first + tl.zeros_like(most), code + which, mask=most >= INFINITE, sem="relaxed")


@triton.jit
def finish(tensor, sizes, place, value, watch):
    """Store a result, and record it if it is not finite in its own dtype."""
    value = tl.cast(value, tl.float32)
    if tensor[0].dtype.element_ty == tl.float16:
        look(watch, WRITTEN, value, place, 0x477FF000)
    elif tensor[0].dtype.element_ty == tl.bfloat16:
        look(watch, WRITTEN, value, place, 0x7F7F8000)
    else:
        look(watch, WRITTEN, value, place)
    store(tensor, sizes, place, value)


@triton.jit
def guided(output, unconditional, scale, sizes, place, watch):
    """Return a network's output with classifier-free guidance, if there is an unconditional one."""
    if unconditional[0] is not None:
        without = load(unconditional, sizes, place)
        look(watch, 0, without, place)
        output = led(output, without, scale)
    return output


@triton.jit
def normals(z, counters, place):
    """Return the given normals, or draw them."""
    sample, begin, inside, _, _ = place
    if z is None:
        value = fill_noise(begin // 4, make_counter(counters, sample, NORMALS), True, inside.shape[0])
    else:
        value = load((z, None), None, place)
    return value


@triton.jit
def uniforms(u, counters, place, ELEMENT: tl.constexpr):
    """Return the given uniforms, or draw them: one per element, or one for the sample."""
    sample, begin, inside, _, _ = place
    if u is None:
        counter = make_counter(counters, sample, UNIFORMS)
        value = fill_noise(begin // 4, counter, False, inside.shape[0]) if ELEMENT else shared_uniform(counter)
    elif ELEMENT:
        value = load((u, None), None, place)
    else:
        value = tl.load(u + sample)
    return value


@triton.jit
def coefficients_from(numbers, k):
    """Return k, with the numbers that `numbers` points to, if it is not None."""
    if numbers is not None:
        n = numbers
        k = StepCoefficients(
            tl.load(n), tl.load(n + 1), tl.load(n + 2), tl.load(n + 3), tl.load(n + 4), tl.load(n + 5),
            tl.load(n + 6), tl.load(n + 7), tl.load(n + 8), tl.load(n + 9), k.lo, k.hi,
        )  # fmt: skip
    return k


@triton.jit(do_not_specialize=_VARYING)
def step_kernel(
    tensors,  # x, e1, e2, e3, e1 without condition, out
    sizes,
    elements,
    k,
    p,
    guidance,
    numbers,
    seeds,
    seed_at,
    step_at,
    seed_low,
    seed_high,
    sample_offset,
    step,
    z,
    u,
    first,
    code,
    FIT: tl.constexpr,
    ITERATIONS: tl.constexpr,
    MOMENTS: tl.constexpr,
    CENTRAL: tl.constexpr,
    ELEMENT: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    MANY: tl.constexpr,
):
    """Take a GMS step: moments, fit and draw.

    q(x_s|x_t) is the law of x_0 given x_t, scaled by B, shifted by A x_t and widened by the known Gaussian (eq. 1). So
    the closed fits are made for x_0. The released moments and optimiser are those of x_s itself.
    """
    place = span(elements, BLOCK, WHOLE, MANY)
    x, e1, e2, e3 = (
        load(tensors[0], sizes, place),
        load(tensors[1], sizes, place),
        load(tensors[2], sizes, place),
        load(tensors[3], sizes, place),
    )
    watch = first, code
    look(watch, 0, e1, place)
    look(watch, 1, e2, place)
    look(watch, 2, e3, place)
    to = guided(e1, tensors[4], guidance, sizes, place, watch)
    k = coefficients_from(numbers, k)
    counters = seeds, seed_at, step_at, seed_low, seed_high, sample_offset, step
    if FIT != "adan":  # where the loop needs the registers
        normal = normals(z, counters, place)
    uniform = 0.0 if FIT == "gaussian" else uniforms(u, counters, place, ELEMENT)
    if MOMENTS == "released" or FIT == "adan":
        if MOMENTS == "released":
            mean, base, excess, third = released_moments(x, e1, e2, e3, to, k, CENTRAL)
        else:
            mean, base, excess, third = step_moments(x, e1, e2, e3, to, k, CENTRAL)
        known = 1.0, base, k.var_max, tl.sqrt_rn(at_most(base, k.var_max))
        mean, std = choose(mean, excess, third, uniform, known, p, FIT, ITERATIONS)
    else:
        m, v, third = posterior(x, e1, e2, e3, to, k, CENTRAL, FIT == "free")
        if FIT == "free":
            third = within(third, v, m - k.lo, k.hi - m)
        chosen, std = choose(m, v, third, uniform, (k.B2, k.c, k.var_max, k.std), p, FIT, ITERATIONS)
        mean = tl.fma(chosen, k.B, k.A * x)
    if FIT == "adan":
        normal = normals(z, counters, place)
    finish(tensors[5], sizes, place, tl.fma(std, normal, mean), watch)


@triton.jit(do_not_specialize=_VARYING)
def sample_kernel(
    tensors,  # mean, var, third, out
    sizes,
    elements,
    floor,
    p,
    seeds,
    seed_at,
    step_at,
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
    WHOLE: tl.constexpr,
    MANY: tl.constexpr,
):
    place = span(elements, BLOCK, WHOLE, MANY)
    mean, var, third = load(tensors[0], sizes, place), load(tensors[1], sizes, place), load(tensors[2], sizes, place)
    counters = seeds, seed_at, step_at, seed_low, seed_high, sample_offset, step
    if FIT != "adan":  # where the loop needs the registers
        normal = normals(z, counters, place)
    uniform = 0.0 if FIT == "gaussian" else uniforms(u, counters, place, ELEMENT)
    base = base_of(var, floor, FIT)
    known = 1.0, base, float("inf"), tl.sqrt_rn(base)
    mean, std = choose(mean, excess_of(var, floor, FIT), third, uniform, known, p, FIT, ITERATIONS)
    if FIT == "adan":
        normal = normals(z, counters, place)
    store(tensors[3], sizes, place, tl.fma(std, normal, mean))


@triton.jit
def fit_kernel(
    tensors,  # mean, var, third, weight, mean_a, mean_b, var
    sizes,
    elements,
    floor,
    p,
    FIT: tl.constexpr,
    ITERATIONS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    MANY: tl.constexpr,
):
    place = span(elements, BLOCK, WHOLE, MANY)
    mean, var, third = load(tensors[0], sizes, place), load(tensors[1], sizes, place), load(tensors[2], sizes, place)
    base, excess = base_of(var, floor, FIT), excess_of(var, floor, FIT)
    weight, mean_a, mean_b, var = fit_mixture(mean, base, excess, third, p, FIT, ITERATIONS)
    store(tensors[3], sizes, place, weight)
    store(tensors[4], sizes, place, mean_a)
    store(tensors[5], sizes, place, mean_b)
    store(tensors[6], sizes, place, var)


@triton.jit(do_not_specialize=_VARYING)
def linear_kernel(
    tensors,  # x, output, the same without condition, terms, results, and E[x_0|x_t] if it is kept
    sizes,
    elements,
    reading,  # of_x, of_output, lo, hi, guidance, or None where no output is read
    weights,  # see `weight_at`
    seeds,
    seed_at,
    step_at,
    seed_low,
    seed_high,
    sample_offset,
    step,
    z,
    first,
    code,
    SUMS: tl.constexpr,  # for each result, see `weighted_sum`
    TERMS: tl.constexpr,
    KEEPS: tl.constexpr,
    STD: tl.constexpr,  # the place of the weight of the noise, -1 where there is none
    WEIGHTS: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    MANY: tl.constexpr,
):
    place = span(elements, BLOCK, WHOLE, MANY)
    watch = first, code
    x = load(tensors[0], sizes, place)
    m = x
    if reading is not None:
        y = load(tensors[1], sizes, place)
        look(watch, 0, y, place)
        of_x, of_output, lo, hi, guidance = reading
        if WEIGHTS == "on device":
            of_x = tl.load(weights[0])
            of_output = tl.load(weights[0] + 1)
        m = data_estimate(x, guided(y, tensors[2], guidance, sizes, place, watch), of_x, of_output, lo, hi)
        if KEEPS:
            finish(tensors[3 + TERMS + len(SUMS)], sizes, place, m, watch)
    inputs = (x, m)
    if len(SUMS) > 0:
        for i in tl.static_range(TERMS):
            inputs += (load(tensors[3 + i], sizes, place),)
    for r in tl.static_range(len(SUMS)):
        total = weighted_sum(inputs, SUMS, r, weights, place, WEIGHTS)
        if STD >= 0 and r == 0:
            counters = seeds, seed_at, step_at, seed_low, seed_high, sample_offset, step
            std = weights[1] if WEIGHTS == "by element" else weight_at(weights, STD, place, WEIGHTS)
            total = tl.fma(normals(z, counters, place), std, total)
        finish(tensors[3 + TERMS + r], sizes, place, total, watch)


@triton.jit
def weighted_sum(inputs, SUMS: tl.constexpr, r: tl.constexpr, weights, place, WEIGHTS: tl.constexpr):
    """Return the sum of the weighted inputs, in order, and of the constant that is added.

    SUMS[r] has the places of the weights, the last that of the constant; -1 where there is none.
    """
    total = None
    for i in tl.static_range(len(inputs)):
        if SUMS[r][i] >= 0:
            weight = weight_at(weights, SUMS[r][i], place, WEIGHTS)
            total = inputs[i] * weight if total is None else tl.fma(inputs[i], weight, total)
    if SUMS[r][len(inputs)] >= 0:
        total += weight_at(weights, SUMS[r][len(inputs)], place, WEIGHTS)
    return total


@triton.jit
def weight_at(weights, i: tl.constexpr, place, WEIGHTS: tl.constexpr):
    """Return weight i.

    weights: "given", the numbers; "on device", (pointer to them,); "by element", (pointer to rows of them, weight of
    the noise).
    """
    if WEIGHTS == "by element":
        _, begin, inside, elements, mask = place
        weight = load((weights[0], None), None, (tl.cast(i, tl.int64), begin, inside, elements, mask))
    elif WEIGHTS == "on device":
        weight = tl.load(weights[0] + i)
    else:
        weight = weights[i]
    return weight


@triton.jit(do_not_specialize=_VARYING)
def philox_kernel(
    out,
    elements,
    seeds,
    seed_at,
    step_at,
    seed_low,
    seed_high,
    sample_offset,
    step,
    stream,
    NORMAL: tl.constexpr,
    BLOCK: tl.constexpr,
    WHOLE: tl.constexpr,
    MANY: tl.constexpr,
):
    place = span(elements, BLOCK, WHOLE, MANY)
    sample, begin, _, _, _ = place
    counters = seeds, seed_at, step_at, seed_low, seed_high, sample_offset, step
    store((out, None), None, place, fill_noise(begin // 4, make_counter(counters, sample, stream), NORMAL, BLOCK))
