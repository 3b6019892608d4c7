// SPDX-License-Identifier: MIT
// Arguments of the ops, and the table of functions that each instruction set and the GPU provide.
#pragma once

#include <type_traits>

#include "gms/layout.h"
#include "gms/philox.h"
#include "gms/step.h"

namespace gms {

constexpr int kMaxTerms = 8;    // of a linear step, besides x and the data estimate
constexpr int kMaxResults = 3;  // of one with weights by element

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

// Detects values that are not finite: *first receives the smallest code seen, and codes grow with time.
struct Watch {
  int32_t* first;  // or null: nobody asks
  int32_t code;  // of the network's first tensor; those of the next ones follow, and kWritten later that of results
};
constexpr int32_t kWritten = 3;

constexpr int kNumbers = 10;  // of StepCoefficients, those before the data range

struct Scheme {  // of a step or a fit; what can be prepared once for many calls
  Fit fit;
  FitParameters<float> parameters;
  Moments moments;
  bool central;
  float floor, guidance;
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

// m = E[x_0|x_t] = clamp(of_x x + of_output y, lo, hi) from the output y of a network, in any form of prediction.
struct Reading {
  float of_x, of_output, guidance, lo, hi;
};

// w_0 x + w_1 m + sum_j w_{j+2} term_j + std z; without an output no m.
struct Linear {
  Operand output, unconditional;  // of the network, given its condition and without; null where there is none
  Reading reading;
  int32_t terms, results;
  Operand term[kMaxTerms], result[kMaxResults];
  Operand kept;  // takes m, or null
  float weights[kMaxTerms + 3];  // of x, of m if there is an output, of the terms, of the noise
  const float* numbers;  // of_x and of_output if there is an output, then the weights; or null
  bool noisy;  // the first result
  Operand by_element;  // rows of weights, each of all elements of a sample, or null
  uint64_t present;  // which: see `bit`
  Watch watch;

  static constexpr int kColumns = kMaxTerms + 3;  // x, m, the terms, and what is added
  static constexpr int kAdded = kColumns - 1;
  GMS_HD static constexpr uint64_t bit(int result, int column) { return uint64_t{1} << (result * kColumns + column); }
  GMS_HD bool has(int result, int column) const { return (present & bit(result, column)) != 0; }
  GMS_HD int row(int result, int column) const {
#ifdef __CUDA_ARCH__
    return __popcll(present & (bit(result, column) - 1));
#else
    return __builtin_popcountll(present & (bit(result, column) - 1));
#endif
  }

  GMS_HD bool reads_output() const { return output.data != nullptr; }
  GMS_HD Reading read() const {
    Reading r = reading;
    if (numbers != nullptr && reads_output()) r.of_x = numbers[0], r.of_output = numbers[1];
    return r;
  }
  GMS_HD float weight(int i) const { return numbers != nullptr ? numbers[i + (reads_output() ? 2 : 0)] : weights[i]; }
  GMS_HD float std() const { return weight(1 + (reads_output() ? 1 : 0) + terms); }
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
  // tensors: x, e1, e2, e3, e1 without condition, out; `numbers`: coefficients on the device, or null
  void (*gms_step)(const Operand tensors[6], const Shape&, const Scheme&, const float* numbers, const Noise&,
                   const Watch&, const Where&);
  // tensors: mean, var, third, out
  void (*sample_mixture)(const Operand tensors[4], const Shape&, const Scheme&, const Noise&, const Where&);
  // tensors: mean, var, third, weight, mean_a, mean_b, var
  void (*fit_mixture)(const Operand tensors[7], const Shape&, const Scheme&, const Where&);
  void (*linear_step)(const Operand& x, const Shape&, const Linear&, const Noise&, const Where&);
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
