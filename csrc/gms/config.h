// SPDX-License-Identifier: MIT
// What both compilers need: the arithmetic below is compiled by g++ for the CPU and by nvcc for the GPU.
#pragma once

#include <cmath>
#include <cstdint>

#ifdef __CUDACC__
#define GMS_HD __host__ __device__ __forceinline__
#define GMS_UNROLL _Pragma("unroll")
#else
#define GMS_UNROLL _Pragma("GCC unroll 16")
#define GMS_HD inline __attribute__((always_inline))
#endif
