// As much of the CUDA runtime as csrc/cuda uses, for one CPU thread: a launch runs its threads one by one, row by row.
// The kernels must not need more than that: a barrier may only wait for what the first thread of a row has made, which
// here has run before the others. With GMS_IDLE_LAUNCHES a launch does nothing, for bench/speed/call.py.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>

#define __device__
#define __global__
#define __grid_constant__
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))
#define __shared__ static
inline void __syncthreads() {}
inline uint32_t __viaddmin_u32(uint32_t a, uint32_t b, uint32_t c) { return a + b < c ? a + b : c; }
inline int atomicMin(int* at, int value) { return std::exchange(*at, std::min(*at, value)); }

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  dim3() = default;
  explicit dim3(unsigned x, unsigned y = 1) : x(x), y(y) {}
};
inline thread_local dim3 blockIdx, threadIdx, blockDim;

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  void* attrs;
  unsigned numAttrs;
};

template <typename... P, typename... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...), const A&... arguments) {
#ifdef GMS_IDLE_LAUNCHES
  (void)config, (void)kernel, ((void)arguments, ...);
#else
  blockDim = config->blockDim;
  for (blockIdx.y = 0; blockIdx.y < config->gridDim.y; ++blockIdx.y) {
    for (blockIdx.x = 0; blockIdx.x < config->gridDim.x; ++blockIdx.x) {
      for (threadIdx.y = 0; threadIdx.y < blockDim.y; ++threadIdx.y) {
        for (threadIdx.x = 0; threadIdx.x < blockDim.x; ++threadIdx.x) kernel(arguments...);
      }
    }
  }
#endif
  return cudaSuccess;
}
