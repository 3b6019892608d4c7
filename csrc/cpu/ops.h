// SPDX-License-Identifier: MIT
// What an op is told, and the CPU loops: one table of functions per instruction set, all compiled from ops.cpp.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gms/mixture.h"
#include "gms/moments.h"
#include "gms/philox.h"

namespace gms {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

struct Input {  // data may be null where an op says so
  const void* data;
  DType dtype;
};

struct Output {
  void* data;
  DType dtype;
};

struct Shape {
  int64_t samples, elements;  // elements per sample
  int32_t threads;
};

struct Noise {
  uint64_t seed;
  const uint64_t* seeds;  // one key per sample, or null: then samples are told apart by their index
  uint64_t sample_offset;
  uint32_t step;
  const float* z;  // given normals (samples, elements), or null: drawn
  const float* u;  // given uniforms (samples) or (samples, elements), or null: drawn
  bool element;    // one uniform per element, else per sample
};

struct Fitting {
  Fit fit;
  FitParameters<float> parameters;
};

struct Stepping {
  StepCoefficients<float> coefficients;
  Moments moments;
  bool central;
};

GMS_HD Counter counter_of(const Noise& noise, int64_t sample, uint32_t stream) {
  if (noise.seeds != nullptr) return make_counter(noise.seeds[sample], 0, noise.step, stream);
  return make_counter(noise.seed, noise.sample_offset + static_cast<uint64_t>(sample), noise.step, stream);
}

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

struct Table {
  void (*gms_step)(Input x, Input e1, Input e2, Input e3, Output out, const Shape&, const Stepping&, const Fitting&,
                   const Noise&);
  void (*sample_mixture)(Input mean, Input var, Input third, Output out, const Shape&, float floor, const Fitting&,
                         const Noise&);
  void (*fit_mixture)(Input mean, Input var, Input third, Output weight, Output mean_a, Output mean_b, Output out_var,
                      const Shape&, float floor, const Fitting&);
  void (*philox)(Output out, const Shape&, const Noise&, uint32_t stream, bool normal);
};

extern const Table kBaseline;
#ifdef GMS_X86
extern const Table kAvx2, kAvx512;
#endif

}  // namespace gms
