// SPDX-License-Identifier: MIT
// Definitions for both compilers. g++ compiles the arithmetic for the CPU and nvcc for the GPU, for one number at a
// time (float, or double in tests) or for a register of numbers (Lanes).
#pragma once

#include <cmath>
#include <cstdint>
#if defined(__AVX2__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

#ifdef __CUDACC__
#define GMS_HD __host__ __device__ __forceinline__
#define GMS_UNROLL _Pragma("unroll")
#else
#define GMS_UNROLL _Pragma("GCC unroll 16")
#define GMS_HD inline __attribute__((always_inline))
#endif

namespace gms {

GMS_HD float fma(float a, float b, float c) { return std::fma(a, b, c); }
GMS_HD double fma(double a, double b, double c) { return std::fma(a, b, c); }
GMS_HD float root(float x) { return std::sqrt(x); }
GMS_HD double root(double x) { return std::sqrt(x); }

template <typename T>
struct ScalarOf {
  using type = T;
};

#ifndef __CUDACC__
// A vector register of numbers.
#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
using Lanes = float __attribute__((vector_size(4 * kLanes)));

// A vector register of 32-bit words, each in the low half of 64 bits, where their products have room.
constexpr int kWide = kLanes / 2;
using Wide = uint64_t __attribute__((vector_size(4 * kLanes)));
using Words32 = uint32_t __attribute__((vector_size(2 * kLanes)));

GMS_HD Wide multiply_low(Wide a, uint32_t m) {
#if defined(__AVX512F__)
  return (Wide)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(m));
#elif defined(__AVX2__)
  return (Wide)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(m));
#else
  return (a & 0xffffffffu) * m;
#endif
}

template <>
struct ScalarOf<Lanes> {
  using type = float;
};

GMS_HD Lanes fma(Lanes a, Lanes b, Lanes c) {
  Lanes r;
  for (int i = 0; i < kLanes; ++i) r[i] = std::fma(a[i], b[i], c[i]);
  return r;
}
GMS_HD Lanes root(Lanes x) {
  Lanes r;
  for (int i = 0; i < kLanes; ++i) r[i] = std::sqrt(x[i]);
  return r;
}
#endif

template <typename T>
using Scalar = typename ScalarOf<T>::type;

// A number in every lane.
template <typename T>
GMS_HD T splat(Scalar<T> x) {
  return x - T{};  // x - 0 is x, -0 too
}

// These propagate NaN in x: every comparison with NaN is false, so x stays.
template <typename T>
GMS_HD T at_least(T x, T low) {
  return x < low ? low : x;
}
template <typename T>
GMS_HD T at_most(T x, T high) {
  return x > high ? high : x;
}
#ifdef __CUDA_ARCH__
__device__ __forceinline__ float at_least(float x, float low) {
  float r;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(x), "f"(low));
  return r;
}
__device__ __forceinline__ float at_most(float x, float high) {
  float r;
  asm("min.NaN.f32 %0, %1, %2;" : "=f"(r) : "f"(x), "f"(high));
  return r;
}
#endif
template <typename T>
GMS_HD T clamp(T x, T low, T high) {
  return at_most(at_least(x, low), high);
}

// Square roots and quotients as IEEE 754 rounds them, for all numbers. On a GPU each takes a branch. `Quick`
// (csrc/cuda/quick.cuh) takes none, for numbers that are not extreme; `not_tiny` and `ordinary` mark the numbers that
// must not be extreme.
struct Ieee {
  template <typename T>
  GMS_HD T root(T x) const {
    return gms::root(x);
  }
  template <typename T>
  GMS_HD T root_of_log(T x) const {
    return gms::root(x);
  }  // of what `minus_two_log` returns
  template <typename T>
  GMS_HD T quotient(T a, T b) const {
    return a / b;
  }
  template <typename T>
  GMS_HD T not_tiny(T x) const {
    return x;
  }
  template <typename T>
  GMS_HD T ordinary(T x) const {
    return x;
  }
};

}  // namespace gms
