// SPDX-License-Identifier: MIT
// Square roots and quotients without branches: the instructions that the compiler itself uses for ordinary numbers,
// without its check of each. `Quick` records the extremes of a thread's numbers instead, and the thread checks once. If
// one was out of range, the thread discards its results and repeats them in `Ieee`. So the bits are those of `Ieee`.
#pragma once

#include "gms/config.h"
#include "gms/elementary.h"

namespace gms {

// Within 1 ulp; denormals count as zero.
__device__ inline float rough_reciprocal(float x) {
#ifdef __CUDA_ARCH__
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return 1.0f / x;
#endif
}
__device__ inline float rough_inverse_root(float x) {
#ifdef __CUDA_ARCH__
  float r;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
  return r;
#else
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(x)));
#endif
}

// The larger; NaN if either is.
__device__ inline float larger(float a, float b) {
#ifdef __CUDA_ARCH__
  return at_least(a, b);
#else
  return a >= b || a != a ? a : b;
#endif
}

struct Quick {
  static constexpr float kTiny = 0x1p-60f, kHuge = 0x1p60f;
  uint32_t least = 0xffffffffu;  // of the bits less one, by which zero is the largest of all
  float largest = 0.0f;  // NaN stays

  // True if all numbers were zero or not tiny, and none was huge, infinite or NaN.
  __device__ bool reliable() const { return least >= static_cast<uint32_t>(bits_of(kTiny)) - 1 && largest < kHuge; }

  __device__ float not_tiny(float x) {
    least = __viaddmin_u32(static_cast<uint32_t>(bits_of(x)), 0xffffffffu, least);
    return x;
  }
  __device__ float not_huge(float x) {
    largest = larger(largest, std::fabs(x));
    return x;
  }
  __device__ float ordinary(float x) { return not_huge(not_tiny(x)); }

  // The summand changes no ordinary number and keeps zero from an infinite reciprocal. Infinity, and negative numbers
  // that are not tiny, give NaN, which `not_huge` sees in the result.
  __device__ float root(float x) { return root_of_log(not_tiny(x)); }
  __device__ float root_of_log(float x) const {
    const float y = rough_inverse_root(x + 0x1p-100f), s = x * y;
    return fma(fma(-s, s, x), 0.5f * y, s);
  }

  // For an ordinary b, where a is zero or |a| >= 2^-102; where a/b underflows, zero or nearly.
  __device__ float quotient(float a, float b) const {
    const float y = rough_reciprocal(b), r = fma(y, fma(-b, y, 1.0f), y), q = a * r;
    return fma(r, fma(-b, q, a), q);
  }
};

}  // namespace gms
