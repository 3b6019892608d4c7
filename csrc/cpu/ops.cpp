// SPDX-License-Identifier: MIT
// The CPU loops over blocks that fit in the first-level cache: draw the noise of a block, load (and widen) its
// inputs, fit and draw, store (and narrow). Compiled once per instruction set, with GMS_TABLE naming the table.
#include "cpu/ops.h"

#include <algorithm>
#include <limits>

namespace gms {
namespace {

constexpr int64_t kBlock = 512;            // elements; a multiple of 4, so that blocks start at whole Philox calls
constexpr int64_t kParallelFrom = 1 << 14;  // elements below which a second thread costs more than it saves
constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Span {  // part of one sample
  int64_t sample, begin, size, elements;
  int64_t offset() const { return sample * elements + begin; }
};

template <typename F>
void for_each_block(const Shape& shape, const F& body) {
  const int64_t blocks = (shape.elements + kBlock - 1) / kBlock, total = shape.samples * blocks;
  const bool parallel = shape.threads > 1 && shape.samples * shape.elements >= kParallelFrom;
#pragma omp parallel for schedule(static) num_threads(shape.threads) if (parallel)
  for (int64_t i = 0; i < total; ++i) {
    const int64_t begin = i % blocks * kBlock;
    body(Span{i / blocks, begin, std::min(kBlock, shape.elements - begin), shape.elements});
  }
}

// The block's values as float: in place where they are, else widened into `buffer`.
const float* load(Input in, const Span& span, float* buffer) {
  if (in.data == nullptr) {
    std::fill_n(buffer, span.size, 0.0f);
    return buffer;
  }
  if (in.dtype == DType::kFloat32) return static_cast<const float*>(in.data) + span.offset();
  if (in.dtype == DType::kBFloat16) {
    const uint16_t* p = static_cast<const uint16_t*>(in.data) + span.offset();
    for (int64_t i = 0; i < span.size; ++i) buffer[i] = from_bits(static_cast<int32_t>(uint32_t{p[i]} << 16));
  } else {
    const _Float16* p = static_cast<const _Float16*>(in.data) + span.offset();
    for (int64_t i = 0; i < span.size; ++i) buffer[i] = static_cast<float>(p[i]);
  }
  return buffer;
}

uint16_t to_bfloat16(float x) {  // to nearest, ties to even; NaN stays NaN
  const uint32_t i = static_cast<uint32_t>(bits_of(x));
  const uint32_t rounded = (i + 0x7fffu + (i >> 16 & 1u)) >> 16;
  return static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}

// Where a block's results are computed: in the output itself, or in `buffer` and narrowed by `store`.
float* target(Output out, const Span& span, float* buffer) {
  return out.dtype == DType::kFloat32 ? static_cast<float*>(out.data) + span.offset() : buffer;
}

void store(Output out, const Span& span, const float* buffer) {
  if (out.dtype == DType::kBFloat16) {
    uint16_t* p = static_cast<uint16_t*>(out.data) + span.offset();
    for (int64_t i = 0; i < span.size; ++i) p[i] = to_bfloat16(buffer[i]);
  } else if (out.dtype == DType::kFloat16) {
    _Float16* p = static_cast<_Float16*>(out.data) + span.offset();
    for (int64_t i = 0; i < span.size; ++i) p[i] = static_cast<_Float16>(buffer[i]);
  }
}

template <bool kNormal>
void fill_noise(const Counter& counter, const Span& span, float* out) {  // out holds kBlock floats
  const uint32_t first = static_cast<uint32_t>(span.begin / 4);
  const int64_t quads = (span.size + 3) / 4;
  uint32_t w0[kBlock / 4], w1[kBlock / 4], w2[kBlock / 4], w3[kBlock / 4];
  for (int64_t q = 0; q < quads; ++q) {
    uint32_t w[4];
    philox_words(first + static_cast<uint32_t>(q), counter, w);
    w0[q] = w[0], w1[q] = w[1], w2[q] = w[2], w3[q] = w[3];
  }
  for (int64_t q = 0; q < quads; ++q) {
    float a = 0, b = 0, c = 0, d = 0;
    if (kNormal) {
      box_muller(w0[q], w1[q], a, b);
      box_muller(w2[q], w3[q], c, d);
    } else {
      a = uniform(w0[q]), b = uniform(w1[q]), c = uniform(w2[q]), d = uniform(w3[q]);
    }
    out[4 * q] = a, out[4 * q + 1] = b, out[4 * q + 2] = c, out[4 * q + 3] = d;
  }
}

struct Draws {  // normals and uniforms of one block
  float z_buffer[kBlock], u_buffer[kBlock];
  const float* z;
  const float* u;

  Draws(const Noise& noise, const Span& span, bool needs_uniforms) : z(z_buffer), u(u_buffer) {
    if (noise.z != nullptr) {
      z = noise.z + span.offset();
    } else {
      fill_noise<true>(counter_of(noise, span.sample, kNormals), span, z_buffer);
    }
    if (!needs_uniforms) return;
    if (noise.element) {
      if (noise.u != nullptr) {
        u = noise.u + span.offset();
      } else {
        fill_noise<false>(counter_of(noise, span.sample, kUniforms), span, u_buffer);
      }
    } else {
      std::fill_n(u_buffer, span.size, noise.u != nullptr ? noise.u[span.sample] : shared_uniform(noise, span.sample));
    }
  }

  static float shared_uniform(const Noise& noise, int64_t sample) {
    uint32_t w[4];
    philox_words(0, counter_of(noise, sample, kUniforms), w);
    return uniform(w[0]);
  }
};

template <Fit kFit, Moments kMoments, bool kCentral>
void step_block(const float* x, const float* e1, const float* e2, const float* e3, float* out, int64_t n,
                const StepCoefficients<float>& k, const Fitting& f, const Draws& draws) {
  constexpr bool kGuard = kFit == Fit::kFree && kMoments == Moments::kCumulant;
  const float* __restrict z = draws.z;
  const float* __restrict u = draws.u;
  for (int64_t i = 0; i < n; ++i) {
    const StepMoments<float> s = kMoments == Moments::kReleased
                                     ? released_moments<kCentral>(x[i], e1[i], e2[i], e3[i], k)
                                     : step_moments<kCentral, kGuard>(x[i], e1[i], e2[i], e3[i], k);
    const float below = kGuard ? k.B * (s.m - k.lo) : kInfinity, above = kGuard ? k.B * (k.hi - s.m) : kInfinity;
    Mixture<float> fit = fit_mixture<kFit>(s.mean, s.base, s.excess, s.third, below, above, f.parameters);
    fit.var = at_most(fit.var, k.var_max);
    out[i] = kFit == Fit::kGaussian ? std::fma(std::sqrt(fit.var), z[i], fit.mean_a) : draw(fit, z[i], u[i]);
  }
}

using StepBlock = void (*)(const float*, const float*, const float*, const float*, float*, int64_t,
                           const StepCoefficients<float>&, const Fitting&, const Draws&);

template <Fit kFit>
StepBlock step_block_of(const Stepping& s) {
  if (s.moments == Moments::kReleased) {
    return s.central ? step_block<kFit, Moments::kReleased, true> : step_block<kFit, Moments::kReleased, false>;
  }
  return s.central ? step_block<kFit, Moments::kCumulant, true> : step_block<kFit, Moments::kCumulant, false>;
}

void gms_step(Input x, Input e1, Input e2, Input e3, Output out, const Shape& shape, const Stepping& stepping,
              const Fitting& fitting, const Noise& noise) {
  StepBlock block = nullptr;
  with_fit(fitting.fit, [&](auto kind) { block = step_block_of<decltype(kind)::value>(stepping); });
  for_each_block(shape, [&](const Span& span) {
    const Draws draws(noise, span, fitting.fit != Fit::kGaussian);
    float buffers[5][kBlock];
    float* result = target(out, span, buffers[4]);
    block(load(x, span, buffers[0]), load(e1, span, buffers[1]), load(e2, span, buffers[2]),
          load(e3, span, buffers[3]), result, span.size, stepping.coefficients, fitting, draws);
    store(out, span, result);
  });
}

template <Fit kFit>
Mixture<float> fit_at(float mean, float var, float third, float floor, const Fitting& f) {
  return fit_mixture<kFit>(mean, at_most(var, floor), at_least(var - floor, 0.0f), third, kInfinity, kInfinity,
                           f.parameters);
}

void sample_mixture(Input mean, Input var, Input third, Output out, const Shape& shape, float floor,
                    const Fitting& fitting, const Noise& noise) {
  with_fit(fitting.fit, [&](auto kind) {
    constexpr Fit kFit = decltype(kind)::value;
    for_each_block(shape, [&](const Span& span) {
      const Draws draws(noise, span, kFit != Fit::kGaussian);
      float buffers[4][kBlock];
      const float* m = load(mean, span, buffers[0]);
      const float* v = load(var, span, buffers[1]);
      const float* t = load(third, span, buffers[2]);
      float* result = target(out, span, buffers[3]);
      for (int64_t i = 0; i < span.size; ++i) {
        const Mixture<float> fit = fit_at<kFit>(m[i], v[i], t[i], floor, fitting);
        result[i] = kFit == Fit::kGaussian ? std::fma(std::sqrt(fit.var), draws.z[i], fit.mean_a)
                                           : draw(fit, draws.z[i], draws.u[i]);
      }
      store(out, span, result);
    });
  });
}

void fit_mixture(Input mean, Input var, Input third, Output weight, Output mean_a, Output mean_b, Output out_var,
                 const Shape& shape, float floor, const Fitting& fitting) {
  with_fit(fitting.fit, [&](auto kind) {
    for_each_block(shape, [&](const Span& span) {
      float in[3][kBlock], out[4][kBlock];
      const float* m = load(mean, span, in[0]);
      const float* v = load(var, span, in[1]);
      const float* t = load(third, span, in[2]);
      const Output outputs[4] = {weight, mean_a, mean_b, out_var};
      float* r[4];
      for (int j = 0; j < 4; ++j) r[j] = target(outputs[j], span, out[j]);
      for (int64_t i = 0; i < span.size; ++i) {
        const Mixture<float> fit = fit_at<decltype(kind)::value>(m[i], v[i], t[i], floor, fitting);
        r[0][i] = fit.weight, r[1][i] = fit.mean_a, r[2][i] = fit.mean_b, r[3][i] = fit.var;
      }
      for (int j = 0; j < 4; ++j) store(outputs[j], span, r[j]);
    });
  });
}

void philox(Output out, const Shape& shape, const Noise& noise, uint32_t stream, bool normal) {
  for_each_block(shape, [&](const Span& span) {
    float values[kBlock];
    const Counter counter = counter_of(noise, span.sample, stream);
    normal ? fill_noise<true>(counter, span, values) : fill_noise<false>(counter, span, values);
    if (out.dtype == DType::kFloat32) std::copy_n(values, span.size, target(out, span, nullptr));
    store(out, span, values);
  });
}

}  // namespace

extern const Table GMS_TABLE;
const Table GMS_TABLE = {gms_step, sample_mixture, fit_mixture, philox};

}  // namespace gms
