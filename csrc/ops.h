// SPDX-License-Identifier: MIT
// What an op is told, and the table of functions that every instruction set and the GPU fill in.
#pragma once

#include <type_traits>

#include "gms/layout.h"
#include "gms/philox.h"
#include "gms/step.h"

namespace gms {

constexpr int kMaxTerms = 8;  // of affine_noise

struct Where {  // threads on a CPU, a stream on a GPU
  int32_t threads;
  void* stream;
};

// Numbers that may change between the replays of a CUDA graph are read through a pointer where there is one.
struct Noise {
  uint64_t seed;
  const uint64_t* seeds;  // one key per sample, or (shared) one for all, or null: `seed`
  bool shared;            // samples with one key are told apart by their index
  uint64_t sample_offset;
  uint32_t step;
  const int64_t* step_at;  // or null: `step`
  const float* z;          // given normals (samples, elements), or null: drawn
  const float* u;          // given uniforms (samples) or (samples, elements), or null: drawn
  bool element;            // one uniform per element, else per sample

  GMS_HD Counter counter(int64_t sample, uint32_t stream) const {
    uint64_t key = seed;
    uint32_t t = step;
    if (seeds != nullptr) key = seeds[shared ? 0 : sample];
    if (step_at != nullptr) t = static_cast<uint32_t>(*step_at);
    const bool own_key = seeds != nullptr && !shared;
    return make_counter(key, own_key ? 0 : sample_offset + static_cast<uint64_t>(sample), t, stream);
  }
};

constexpr int kNumbers = 10;  // of StepCoefficients, those before the data range

struct Scheme {  // of a step or a fit; what can be prepared once for many calls
  Fit fit;
  FitParameters<float> parameters;
  Moments moments;
  bool central;
  float floor;
  StepCoefficients<float> coefficients;

  // With the numbers at `numbers`, where that is not null.
  GMS_HD StepCoefficients<float> coefficients_from(const float* numbers) const {
    StepCoefficients<float> k = coefficients;
    if (numbers == nullptr) return k;
    float* const to[kNumbers] = {&k.inv_alpha, &k.r, &k.r2, &k.r3, &k.A, &k.B, &k.B2, &k.c, &k.var_max, &k.std};
    GMS_UNROLL
    for (int i = 0; i < kNumbers; ++i) *to[i] = numbers[i];
    return k;
  }
};

struct Affine {
  int32_t terms;  // besides x
  Operand term[kMaxTerms];
  float weights[kMaxTerms + 2];  // of x, of the terms, of the noise
  const float* weights_at;       // the same, or null
  Operand by_element;            // (terms + 2, elements): weights of x, of the terms, and what is added; may be null
  bool noisy;

  GMS_HD float weight(int i) const { return weights_at != nullptr ? weights_at[i] : weights[i]; }
};

// Calls body with the fit as a compile-time constant.
template <typename F>
inline __attribute__((always_inline)) void with_fit(Fit fit, const F& body) {
  switch (fit) {
    case Fit::kFree: return body(std::integral_constant<Fit, Fit::kFree>());
    case Fit::kAdan: return body(std::integral_constant<Fit, Fit::kAdan>());
    case Fit::kGaussian: return body(std::integral_constant<Fit, Fit::kGaussian>());
    default: return body(std::integral_constant<Fit, Fit::kExact>());
  }
}

// A GPU's functions queue their work on `Where::stream` and throw std::runtime_error if a launch fails.
struct Table {
  // tensors: x, e1, e2, e3, out; `numbers`: coefficients on the device, or null
  void (*gms_step)(const Operand tensors[5], const Shape&, const Scheme&, const float* numbers, const Noise&,
                   const Where&);
  // tensors: mean, var, third, out
  void (*sample_mixture)(const Operand tensors[4], const Shape&, const Scheme&, const Noise&, const Where&);
  // tensors: mean, var, third, weight, mean_a, mean_b, var
  void (*fit_mixture)(const Operand tensors[7], const Shape&, const Scheme&, const Where&);
  // tensors: x, out
  void (*affine_noise)(const Operand tensors[2], const Shape&, const Affine&, const Noise&, const Where&);
  void (*philox)(const Operand& out, const Shape&, const Noise&, uint32_t stream, bool normal, const Where&);
};

extern const Table kBaseline;
#ifdef GMS_X86
extern const Table kAvx2, kAvx512;
#endif
#ifdef GMS_WITH_CUDA
extern const Table kCuda;
#endif

}  // namespace gms
