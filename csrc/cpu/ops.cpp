// SPDX-License-Identifier: MIT
// The CPU loops over blocks that fit in the first-level cache: draw the noise of a block, load (gather, widen) its
// inputs, fit and draw, store (narrow, scatter). Compiled once per instruction set, with GMS_TABLE naming the table.
#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "ops.h"

namespace gms {
namespace {

constexpr int64_t kBlock = 512;             // elements; a multiple of 4, so that blocks start at whole Philox calls
constexpr int64_t kParallelFrom = 1 << 14;  // elements below which a second thread costs more than it saves

struct Span {  // part of one sample, or a few whole small ones
  int64_t sample, samples, begin, size;
};

// A block is kBlock elements of one sample, or as many samples as have room with every one at a whole Philox call.
template <typename F>
void for_each_block(const Shape& shape, const Where& where, const F& body) {
  const int64_t together = std::max<int64_t>(kBlock / ((shape.elements + 3) / 4 * 4), 1);
  const int64_t blocks = (shape.elements + kBlock - 1) / kBlock;  // of a sample; 1 where some go together
  const int64_t total = (shape.samples + together - 1) / together * blocks;
  const auto run = [&](int64_t i) __attribute__((noinline)) {
    const int64_t sample = i / blocks * together, begin = i % blocks * kBlock;
    const int64_t samples = std::min(together, shape.samples - sample);
    body(Span{sample, samples, begin, std::min(kBlock, shape.elements - begin) * samples});
  };
  if (where.threads == 1 || shape.samples * shape.elements < kParallelFrom) {
    for (int64_t i = 0; i < total; ++i) run(i);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(where.threads)
  for (int64_t i = 0; i < total; ++i) run(i);
}

// The narrow types as integers, converted by integer arithmetic, which every instruction set vectorises.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

float float_of(uint32_t bits) { return from_bits(static_cast<int32_t>(bits)); }

float widen(float x) { return x; }
float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
float widen(Float16 x) {
  const uint32_t size = x.bits & 0x7fffu, sign = (x.bits & 0x8000u) << 16;
  const uint32_t denormal = static_cast<uint32_t>(bits_of(static_cast<float>(static_cast<int32_t>(size)) * 0x1p-24f));
  const uint32_t normal = (size << 13) + (size >= 0x7c00u ? 0x70000000u : 0x38000000u);
  return float_of((size < 0x400u ? denormal : normal) | sign);
}

// To nearest, ties to even; NaN stays NaN.
void narrow(float x, float& to) { to = x; }
void narrow(float x, BFloat16& to) {
  const uint32_t i = static_cast<uint32_t>(bits_of(x));
  const uint32_t rounded = (i + 0x7fffu + (i >> 16 & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}
void narrow(float x, Float16& to) {
  const uint32_t i = static_cast<uint32_t>(bits_of(x)), size = i & 0x7fffffffu, sign = i >> 16 & 0x8000u;
  const uint32_t normal = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  // 0.5 has the last bit of its mantissa where a denormal half has its own: the sum is rounded there.
  const uint32_t small = static_cast<uint32_t>(bits_of(float_of(size) + 0.5f)) - 0x3f000000u;
  const uint32_t finite = size < 0x38800000u ? small : normal;
  const uint32_t half = size >= 0x477ff000u ? (size > 0x7f800000u ? 0x7e00u : 0x7c00u) : finite;
  to.bits = static_cast<uint16_t>(half | sign);
}

// Calls body(pointer to the tensor's first element, of its own type).
template <typename F>
void with_type(const Operand& tensor, const F& body) {
  if (tensor.dtype == DType::kFloat32) return body(static_cast<float*>(tensor.data));
  if (tensor.dtype == DType::kBFloat16) return body(static_cast<BFloat16*>(tensor.data));
  body(static_cast<Float16*>(tensor.data));
}

// Calls body(offset in the tensor, stride, place in the block, size) for the parts of a block that lie evenly.
template <typename F>
void for_each_run(const Operand& tensor, const Shape& shape, const Span& span, const F& body) {
  if (tensor.dense) return body(span.sample * shape.elements + span.begin, 1, 0, span.size);
  Cursor cursor(shape, span.sample, span.begin);
  for (int64_t done = 0, size; done < span.size; done += size) {
    size = std::min(span.size - done, shape.sizes[2] - cursor.k);
    body(cursor.offset(tensor.strides), tensor.strides[3], done, size);
    cursor.advance(shape, size);
    if (cursor.i == shape.sizes[0]) cursor.i = 0, ++cursor.sample;
  }
}

bool in_place(const Operand& tensor) { return tensor.dense && tensor.dtype == DType::kFloat32; }

float* address(const Operand& tensor, const Shape& shape, const Span& span) {
  return static_cast<float*>(tensor.data) + span.sample * shape.elements + span.begin;
}

// The block's values as float: in place where they are, else brought into `buffer`.
const float* load(const Operand& in, const Shape& shape, const Span& span, float* buffer) {
  if (in.data == nullptr) {
    std::fill_n(buffer, span.size, 0.0f);
    return buffer;
  }
  if (in_place(in)) return address(in, shape, span);
  with_type(in, [&](const auto* data) {
    for_each_run(in, shape, span, [&](int64_t offset, int64_t stride, int64_t begin, int64_t size) {
      const auto* p = data + offset;
      if (stride == 1) {
        for (int64_t i = 0; i < size; ++i) buffer[begin + i] = widen(p[i]);
      } else {
        for (int64_t i = 0; i < size; ++i) buffer[begin + i] = widen(p[i * stride]);
      }
    });
  });
  return buffer;
}

// Where a block's results are computed: in the output itself, or in `buffer`, from which `store` takes them.
float* target(const Operand& out, const Shape& shape, const Span& span, float* buffer) {
  return in_place(out) ? address(out, shape, span) : buffer;
}

void store(const Operand& out, const Shape& shape, const Span& span, const float* buffer) {
  if (in_place(out)) return;
  with_type(out, [&](auto* data) {
    for_each_run(out, shape, span, [&](int64_t offset, int64_t stride, int64_t begin, int64_t size) {
      auto* p = data + offset;
      for (int64_t i = 0; i < size; ++i) narrow(buffer[begin + i], p[i * stride]);
    });
  });
}

struct Words {  // of the Philox calls of one block
  static constexpr int64_t kWhole = 16;  // calls are made in whole registers: what is too much is not looked at
  uint32_t w[4][kBlock / 4];
  int64_t total;

  // `calls` for every sample of the block, the first for element span.begin.
  Words(const Noise& noise, uint32_t stream, const Span& span, int64_t calls)
      : total((span.samples * calls + kWhole - 1) / kWhole * kWhole) {
    const Counter first = noise.counter(span.sample, stream);
    if (span.samples == 1) {
      Wide quad = static_cast<uint64_t>(span.begin / 4) - Wide{};
      for (int lane = 0; lane < kWide; ++lane) quad[lane] += static_cast<uint64_t>(lane);
      const Wide c1 = Wide{} + first.c1, c2 = Wide{} + first.c2, c3 = Wide{} + first.c3;
      for (int64_t i = 0; i < total; i += kWide, quad += kWide) draw(i, quad, c1, c2, c3, first.k0, first.k1);
      return;
    }
    uint32_t c0[kBlock / 4] = {}, c2[kBlock / 4] = {}, c3[kBlock / 4] = {}, k0[kBlock / 4] = {}, k1[kBlock / 4] = {};
    for (int64_t s = 0, i = 0; s < span.samples; ++s) {
      const Counter counter = noise.counter(span.sample + s, stream);
      for (int64_t quad = 0; quad < calls; ++quad, ++i) {
        c0[i] = static_cast<uint32_t>(quad);
        c2[i] = counter.c2, c3[i] = counter.c3, k0[i] = counter.k0, k1[i] = counter.k1;
      }
    }
    for (int64_t i = 0; i < total; i += kWide) {
      draw(i, wide(c0 + i), Wide{} + first.c1, wide(c2 + i), wide(c3 + i), wide(k0 + i), wide(k1 + i));
    }
  }

  static Wide wide(const uint32_t* from) {
    Wide words;
    for (int lane = 0; lane < kWide; ++lane) words[lane] = from[lane];
    return words;
  }

  template <typename K>
  void draw(int64_t i, Wide c0, Wide c1, Wide c2, Wide c3, K k0, K k1) {
    philox_rounds(c0, c1, c2, c3, k0, k1);
    const Wide four[4] = {c0, c1, c2, c3};
    for (int j = 0; j < 4; ++j) {
      const Words32 words = __builtin_convertvector(four[j], Words32);
      std::memcpy(w[j] + i, &words, sizeof words);
    }
  }
};

template <bool kNormal>
void fill_noise(const Noise& noise, uint32_t stream, const Span& span, float* out) {  // out holds kBlock floats
  const int64_t elements = span.size / span.samples, calls = (elements + 3) / 4;
  const Words words(noise, stream, span, calls);
  const int64_t total = words.total;
  for (int64_t q = 0; q < total; ++q) {
    const uint32_t w0 = words.w[0][q], w1 = words.w[1][q], w2 = words.w[2][q], w3 = words.w[3][q];
    float a = 0, b = 0, c = 0, d = 0;
    if (kNormal) {
      box_muller(w0, w1, a, b);
      box_muller(w2, w3, c, d);
    } else {
      a = uniform(w0), b = uniform(w1), c = uniform(w2), d = uniform(w3);
    }
    out[4 * q] = a, out[4 * q + 1] = b, out[4 * q + 2] = c, out[4 * q + 3] = d;
  }
  if (elements % 4 == 0) return;
  for (int64_t s = 1; s < span.samples; ++s) std::copy_n(out + s * 4 * calls, elements, out + s * elements);
}

// One uniform for each sample, for all its elements.
void fill_shared(const Noise& noise, const Span& span, float* out) {
  const int64_t elements = span.size / span.samples;
  const auto fill = [&](const auto& value) {
    for (int64_t s = 0; s < span.samples; ++s) std::fill_n(out + s * elements, elements, value(s));
  };
  if (noise.u != nullptr) return fill([&](int64_t s) { return noise.u[span.sample + s]; });
  const Words words(noise, kUniforms, Span{span.sample, span.samples, 0, span.samples}, 1);
  fill([&](int64_t s) { return uniform(words.w[0][s]); });
}

struct Draws {  // normals and uniforms of one block
  float z_buffer[kBlock], u_buffer[kBlock];
  const float* z;
  const float* u;

  Draws(const Noise& noise, const Shape& shape, const Span& span, bool needs_uniforms) : z(z_buffer), u(u_buffer) {
    const int64_t offset = span.sample * shape.elements + span.begin;
    if (noise.z != nullptr) {
      z = noise.z + offset;
    } else {
      fill_noise<true>(noise, kNormals, span, z_buffer);
    }
    if (!needs_uniforms) return;
    if (!noise.element) {
      fill_shared(noise, span, u_buffer);
    } else if (noise.u != nullptr) {
      u = noise.u + offset;
    } else {
      fill_noise<false>(noise, kUniforms, span, u_buffer);
    }
  }
};

struct Fitted {  // the released fit of one block, iteration by iteration for a few registers of elements together
  static constexpr int kTogether = 4, kStride = kTogether * kLanes;
  float mean_a[kBlock], mean_b[kBlock], var[kBlock];

  Fitted(const float* mean, const float* variance, const float* third, int64_t size, const FitParameters<float>& p) {
    for (int64_t i = 0; i < size; i += kStride) {
      const auto start = [&](int64_t j) {
        return Adan<Lanes>(lanes_of(mean, j, size), lanes_of(variance, j, size), lanes_of(third, j, size));
      };
      Adan<Lanes> fits[kTogether] = {start(i), start(i + kLanes), start(i + 2 * kLanes), start(i + 3 * kLanes)};
      AdanClock<float> clock;
      for (int32_t k = 0; k < p.iterations; ++k) {
        const AdanRates<float> rates = clock.next(p);
        GMS_UNROLL
        for (Adan<Lanes>& fit : fits) fit.iterate(p.weight, k == 0, rates);
      }
      for (int r = 0; r < kTogether; ++r) {
        const Mixture<Lanes> fit = fits[r].mixture(p.weight);
        for (int j = 0; j < kLanes; ++j) {
          const int64_t at = i + r * kLanes + j;
          mean_a[at] = fit.mean_a[j], mean_b[at] = fit.mean_b[j], var[at] = fit.var[j];
        }
      }
    }
  }

  static Lanes lanes_of(const float* values, int64_t begin, int64_t size) {
    Lanes lanes = {};
    for (int64_t j = begin; j < std::min(begin + kLanes, size); ++j) lanes[j - begin] = values[j];
    return lanes;
  }

  // Of variances that may be negative.
  static Fitted above_zero(const float* mean, const float* variance, const float* third, int64_t size,
                           const FitParameters<float>& p) {
    float var[kBlock];
    for (int64_t i = 0; i < size; ++i) var[i] = base_of<Fit::kAdan>(variance[i], 0.0f);
    return Fitted(mean, var, third, size, p);
  }

  // The components that u chooses.
  void draw_to(float* out, int64_t size, const Draws& draws, float weight, float most) const {
    for (int64_t i = 0; i < size; ++i) {
      const Component<float> c = {draws.u[i] < weight ? mean_a[i] : mean_b[i], root(at_most(var[i], most))};
      out[i] = draw(c, draws.z[i]);
    }
  }
};

// The blocks take their numbers by value: behind a reference they might change with every element that is written.

template <Fit kFit, Moments kMoments, bool kCentral>
void step_block(const float* const in[4], float* out, int64_t size, const StepCoefficients<float> k,
                const FitParameters<float> p, const Draws& draws) {
  const float *x = in[0], *e1 = in[1], *e2 = in[2], *e3 = in[3], *z = draws.z, *u = draws.u;
  if constexpr (kFit == Fit::kAdan) {
    float mean[kBlock] = {}, var[kBlock] = {}, third[kBlock] = {};
    for (int64_t i = 0; i < size; ++i) {
      const StepMoments<float> s = moments_of_step<kMoments, kCentral>(x[i], e1[i], e2[i], e3[i], k);
      mean[i] = s.mean, var[i] = s.base + s.excess, third[i] = s.third;
    }
    Fitted(mean, var, third, size, p).draw_to(out, size, draws, p.weight, k.var_max);
  } else {
#pragma GCC ivdep  // out may be an input, but no element is read after another is written
    for (int64_t i = 0; i < size; ++i) {
      out[i] = gms_step<kFit, kMoments, kCentral>(x[i], e1[i], e2[i], e3[i], z[i], u[i], k, p);
    }
  }
}

using StepBlock = void (*)(const float* const[4], float*, int64_t, StepCoefficients<float>, FitParameters<float>,
                           const Draws&);

template <Fit kFit>
StepBlock step_block_of(const Scheme& s) {
  if (s.moments == Moments::kReleased) {
    return s.central ? step_block<kFit, Moments::kReleased, true> : step_block<kFit, Moments::kReleased, false>;
  }
  return s.central ? step_block<kFit, Moments::kCumulant, true> : step_block<kFit, Moments::kCumulant, false>;
}

void gms_step(const Operand tensors[5], const Shape& shape, const Scheme& scheme, const float* numbers,
              const Noise& noise, const Where& where) {
  StepBlock block = nullptr;
  with_fit(scheme.fit, [&](auto fit) { block = step_block_of<decltype(fit)::value>(scheme); });
  const StepCoefficients<float> k = scheme.coefficients_from(numbers);
  for_each_block(shape, where, [&](const Span& span) {
    const Draws draws(noise, shape, span, scheme.fit != Fit::kGaussian);
    float buffers[5][kBlock];
    const float* in[4];
    for (int j = 0; j < 4; ++j) in[j] = load(tensors[j], shape, span, buffers[j]);
    float* out = target(tensors[4], shape, span, buffers[4]);
    block(in, out, span.size, k, scheme.parameters, draws);
    store(tensors[4], shape, span, out);
  });
}

template <Fit kFit>
void sample_block(const float* const in[3], float* out, int64_t size, const float floor, const FitParameters<float> p,
                  const Draws& draws) {
  const float *mean = in[0], *var = in[1], *third = in[2], *z = draws.z, *u = draws.u;
  if constexpr (kFit == Fit::kAdan) {
    Fitted::above_zero(mean, var, third, size, p).draw_to(out, size, draws, p.weight, INFINITY);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) out[i] = sample_mixture<kFit>(mean[i], var[i], third[i], floor, z[i], u[i], p);
  }
}

void sample_mixture(const Operand tensors[4], const Shape& shape, const Scheme& scheme, const Noise& noise,
                    const Where& where) {
  with_fit(scheme.fit, [&](auto fit) {
    for_each_block(shape, where, [&](const Span& span) {
      const Draws draws(noise, shape, span, scheme.fit != Fit::kGaussian);
      float buffers[4][kBlock];
      const float* in[3];
      for (int j = 0; j < 3; ++j) in[j] = load(tensors[j], shape, span, buffers[j]);
      float* out = target(tensors[3], shape, span, buffers[3]);
      sample_block<decltype(fit)::value>(in, out, span.size, scheme.floor, scheme.parameters, draws);
      store(tensors[3], shape, span, out);
    });
  });
}

// Not inlined: there the compiler would forget that the seven do not overlap.
template <Fit kFit>
__attribute__((noinline)) void fit_block(const float* __restrict mean, const float* __restrict var,
                                         const float* __restrict third, float* __restrict weight,
                                         float* __restrict mean_a, float* __restrict mean_b, float* __restrict rest,
                                         int64_t size, const float floor, const FitParameters<float> p) {
  if constexpr (kFit == Fit::kAdan) {
    const Fitted fit = Fitted::above_zero(mean, var, third, size, p);
    std::fill_n(weight, size, p.weight);
    std::copy_n(fit.mean_a, size, mean_a);
    std::copy_n(fit.mean_b, size, mean_b);
    std::copy_n(fit.var, size, rest);
  } else {
    for (int64_t i = 0; i < size; ++i) {
      const Mixture<float> fit = fit_mixture_above<kFit>(mean[i], var[i], third[i], floor, p);
      weight[i] = fit.weight, mean_a[i] = fit.mean_a, mean_b[i] = fit.mean_b, rest[i] = fit.var;
    }
  }
}

void fit_mixture(const Operand tensors[7], const Shape& shape, const Scheme& scheme, const Where& where) {
  with_fit(scheme.fit, [&](auto fit) {
    for_each_block(shape, where, [&](const Span& span) {
      float buffers[7][kBlock];
      const float* in[3];
      float* out[4];
      for (int j = 0; j < 3; ++j) in[j] = load(tensors[j], shape, span, buffers[j]);
      for (int j = 0; j < 4; ++j) out[j] = target(tensors[3 + j], shape, span, buffers[3 + j]);
      fit_block<decltype(fit)::value>(in[0], in[1], in[2], out[0], out[1], out[2], out[3], span.size, scheme.floor,
                                      scheme.parameters);
      for (int j = 0; j < 4; ++j) store(tensors[3 + j], shape, span, out[j]);
    });
  });
}

struct Constant {  // a weight that all elements share
  float value;
  float operator[](int64_t) const { return value; }
};

// The weights of a block's elements: in place where they are, else one sample after the other in `buffer`.
template <bool kByElement>
auto weights_of(const Affine& affine, int row, const Shape& shape, const Span& span, float* buffer) {
  if constexpr (kByElement) {
    const float* weights = address(affine.by_element, shape, Span{row, 1, span.begin, 0});
    if (span.samples == 1) return weights;
    for (int64_t s = 0; s < span.samples; ++s) std::copy_n(weights, shape.elements, buffer + s * shape.elements);
    return static_cast<const float*>(buffer);
  } else {
    return Constant{affine.weight(row)};
  }
}

template <bool kByElement>
using Weights = std::array<decltype(weights_of<kByElement>({}, 0, {}, {}, nullptr)), kMaxTerms + 2>;
using Inputs = std::array<const float*, kMaxTerms + 1>;

// In one loop, so that no sum goes through memory.
template <bool kByElement, size_t kTerms>
void affine_block(const Inputs in, const Weights<kByElement> weights, float* out, int64_t size) {
#pragma GCC ivdep  // out may be an input, but no element is read after another is written
  for (int64_t i = 0; i < size; ++i) {
    float sum = weights[0][i] * in[0][i];
    GMS_UNROLL
    for (size_t term = 1; term <= kTerms; ++term) sum = fma(weights[term][i], in[term][i], sum);
    if constexpr (kByElement) sum += weights[kTerms + 1][i];
    out[i] = sum;
  }
}

template <bool kByElement, size_t... kTerms>
constexpr auto affine_blocks_of(std::index_sequence<kTerms...>) {
  return std::array{affine_block<kByElement, kTerms>...};
}

template <bool kByElement>
void affine_blocks(const Operand tensors[2], const Shape& shape, const Affine& affine, const Noise& noise,
                   const Where& where) {
  constexpr auto blocks = affine_blocks_of<kByElement>(std::make_index_sequence<kMaxTerms + 1>());
  const auto block = blocks[affine.terms];
  for_each_block(shape, where, [&](const Span& span) {
    float buffers[kMaxTerms + 2][kBlock], weight_buffers[kByElement ? kMaxTerms + 2 : 1][kBlock];
    Inputs in = {load(tensors[0], shape, span, buffers[0])};
    for (int i = 1; i <= affine.terms; ++i) in[i] = load(affine.term[i - 1], shape, span, buffers[i]);
    Weights<kByElement> weights = {};
    for (int i = 0; i < affine.terms + 2; ++i) {
      weights[i] = weights_of<kByElement>(affine, i, shape, span, weight_buffers[kByElement ? i : 0]);
    }
    float* out = target(tensors[1], shape, span, buffers[kMaxTerms + 1]);
    block(in, weights, out, span.size);
    if (affine.noisy) {
      const Draws draws(noise, shape, span, false);
      const float std = affine.weight(affine.terms + 1);
      for (int64_t i = 0; i < span.size; ++i) out[i] = fma(std, draws.z[i], out[i]);
    }
    store(tensors[1], shape, span, out);
  });
}

void affine_noise(const Operand tensors[2], const Shape& shape, const Affine& affine, const Noise& noise,
                  const Where& where) {
  const auto blocks = affine.by_element.data != nullptr ? affine_blocks<true> : affine_blocks<false>;
  blocks(tensors, shape, affine, noise, where);
}

void philox(const Operand& out, const Shape& shape, const Noise& noise, uint32_t stream, bool normal,
            const Where& where) {
  for_each_block(shape, where, [&](const Span& span) {
    float values[kBlock];
    normal ? fill_noise<true>(noise, stream, span, values) : fill_noise<false>(noise, stream, span, values);
    std::copy_n(values, in_place(out) ? span.size : 0, target(out, shape, span, values));
    store(out, shape, span, values);
  });
}

}  // namespace

extern const Table GMS_TABLE;
const Table GMS_TABLE = {gms_step, sample_mixture, fit_mixture, affine_noise, philox};

}  // namespace gms
