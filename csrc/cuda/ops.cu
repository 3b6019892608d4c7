// SPDX-License-Identifier: MIT
// The ops on a GPU: each thread takes groups of four elements, one Philox call each; the arithmetic is csrc/gms.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cuda/ops.h"

namespace gms {
namespace {

constexpr int kThreads = 256;

struct StepArguments {
  Input x, e1, e2, e3;
  Output out;
  Shape shape;
  StepCoefficients<float> coefficients;
  FitParameters<float> fit;
  Noise noise;
};

__device__ float load(const Input& in, int64_t i) {
  if (in.data == nullptr) return 0.0f;
  if (in.dtype == DType::kFloat32) return static_cast<const float*>(in.data)[i];
  if (in.dtype == DType::kBFloat16) return __bfloat162float(static_cast<const __nv_bfloat16*>(in.data)[i]);
  return __half2float(static_cast<const __half*>(in.data)[i]);
}

__device__ void store(const Output& out, int64_t i, float value) {
  if (out.dtype == DType::kFloat32) {
    static_cast<float*>(out.data)[i] = value;
  } else if (out.dtype == DType::kBFloat16) {
    static_cast<__nv_bfloat16*>(out.data)[i] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(out.data)[i] = __float2half_rn(value);
  }
}

__device__ void draw_four(const Counter& counter, uint32_t quad, bool normal, float out[4]) {
  uint32_t w[4];
  philox_words(quad, counter, w);
  if (normal) {
    box_muller(w[0], w[1], out[0], out[1]);
    box_muller(w[2], w[3], out[2], out[3]);
  } else {
    for (int j = 0; j < 4; ++j) out[j] = uniform(w[j]);
  }
}

struct Draws {  // of four neighbouring elements
  float z[4], u[4];

  __device__ Draws(const Noise& noise, int64_t sample, uint32_t quad, bool needs_uniforms) {
    if (noise.z == nullptr) draw_four(counter_of(noise, sample, kNormals), quad, true, z);
    if (!needs_uniforms || noise.u != nullptr) return;
    draw_four(counter_of(noise, sample, kUniforms), noise.element ? quad : 0, false, u);
    if (!noise.element) u[1] = u[2] = u[3] = u[0];
  }

  __device__ float normal(const Noise& noise, int j, int64_t i) const { return noise.z != nullptr ? noise.z[i] : z[j]; }
  __device__ float uniform_at(const Noise& noise, int j, int64_t i, int64_t sample) const {
    return noise.u != nullptr ? noise.u[noise.element ? i : sample] : u[j];
  }
};

template <Fit kFit>
__device__ float draw_from(const Mixture<float>& fit, const Draws& draws, const Noise& noise, int j, int64_t i,
                           int64_t sample) {
  const float z = draws.normal(noise, j, i);
  if (kFit == Fit::kGaussian) return std::fma(std::sqrt(fit.var), z, fit.mean_a);
  return draw(fit, z, draws.uniform_at(noise, j, i, sample));
}

// Calls body(sample, quad) for this thread's groups of four, in a grid-stride loop.
template <typename F>
__device__ void for_each_quad(const Shape& shape, const F& body) {
  const int64_t quads = (shape.elements + 3) / 4, total = quads * shape.samples;
  for (int64_t g = blockIdx.x * int64_t{kThreads} + threadIdx.x; g < total; g += int64_t{gridDim.x} * kThreads) {
    body(g / quads, g % quads);
  }
}

// Calls body(j, i) for the elements of a group that exist, i being the index in the whole tensor.
template <typename F>
__device__ void for_each_lane(const Shape& shape, int64_t sample, int64_t quad, const F& body) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (4 * quad + j < shape.elements) body(j, sample * shape.elements + 4 * quad + j);
  }
}

template <Fit kFit, Moments kMoments, bool kCentral>
__global__ void __launch_bounds__(kThreads) step_kernel(const StepArguments a) {
  constexpr bool kGuard = kFit == Fit::kFree && kMoments == Moments::kCumulant;
  const StepCoefficients<float>& k = a.coefficients;
  for_each_quad(a.shape, [&](int64_t sample, int64_t quad) {
    const Draws draws(a.noise, sample, static_cast<uint32_t>(quad), kFit != Fit::kGaussian);
    for_each_lane(a.shape, sample, quad, [&](int j, int64_t i) {
      const float x = load(a.x, i), e1 = load(a.e1, i), e2 = load(a.e2, i), e3 = load(a.e3, i);
      const StepMoments<float> s = kMoments == Moments::kReleased ? released_moments<kCentral>(x, e1, e2, e3, k)
                                                                  : step_moments<kCentral, kGuard>(x, e1, e2, e3, k);
      const float below = kGuard ? k.B * (s.m - k.lo) : INFINITY, above = kGuard ? k.B * (k.hi - s.m) : INFINITY;
      Mixture<float> fit = fit_mixture<kFit>(s.mean, s.base, s.excess, s.third, below, above, a.fit);
      fit.var = at_most(fit.var, k.var_max);
      store(a.out, i, draw_from<kFit>(fit, draws, a.noise, j, i, sample));
    });
  });
}

struct MixtureArguments {
  Input mean, var, third;
  Output out[4];  // the draw, or weight, mean_a, mean_b, var
  Shape shape;
  float floor;
  FitParameters<float> fit;
  Noise noise;
};

template <Fit kFit>
__device__ Mixture<float> fit_at(const MixtureArguments& a, int64_t i) {
  const float var = load(a.var, i);
  return fit_mixture<kFit>(load(a.mean, i), at_most(var, a.floor), at_least(var - a.floor, 0.0f), load(a.third, i),
                           INFINITY, INFINITY, a.fit);
}

template <Fit kFit>
__global__ void __launch_bounds__(kThreads) sample_kernel(const MixtureArguments a) {
  for_each_quad(a.shape, [&](int64_t sample, int64_t quad) {
    const Draws draws(a.noise, sample, static_cast<uint32_t>(quad), kFit != Fit::kGaussian);
    for_each_lane(a.shape, sample, quad, [&](int j, int64_t i) {
      store(a.out[0], i, draw_from<kFit>(fit_at<kFit>(a, i), draws, a.noise, j, i, sample));
    });
  });
}

template <Fit kFit>
__global__ void __launch_bounds__(kThreads) fit_kernel(const MixtureArguments a) {
  for_each_quad(a.shape, [&](int64_t sample, int64_t quad) {
    for_each_lane(a.shape, sample, quad, [&](int, int64_t i) {
      const Mixture<float> fit = fit_at<kFit>(a, i);
      store(a.out[0], i, fit.weight);
      store(a.out[1], i, fit.mean_a);
      store(a.out[2], i, fit.mean_b);
      store(a.out[3], i, fit.var);
    });
  });
}

__global__ void __launch_bounds__(kThreads)
    philox_kernel(const Output out, const Shape shape, const Noise noise, uint32_t stream, bool normal) {
  for_each_quad(shape, [&](int64_t sample, int64_t quad) {
    float values[4];
    draw_four(counter_of(noise, sample, stream), static_cast<uint32_t>(quad), normal, values);
    for_each_lane(shape, sample, quad, [&](int j, int64_t i) { store(out, i, values[j]); });
  });
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Enough blocks to fill the device, no more than there is work for.
template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), const Shape& shape, void* stream, Arguments... arguments) {
  const int64_t groups = (shape.elements + 3) / 4 * shape.samples;
  if (groups == 0) return;  // a launch of no blocks is an error
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  const int64_t blocks = std::min<int64_t>((groups + kThreads - 1) / kThreads, int64_t{processors} * 16);
  kernel<<<static_cast<unsigned>(blocks), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  check(cudaGetLastError(), name);
}

template <Fit kFit>
auto step_kernel_of(const Stepping& s) {
  if (s.moments == Moments::kReleased) {
    return s.central ? step_kernel<kFit, Moments::kReleased, true> : step_kernel<kFit, Moments::kReleased, false>;
  }
  return s.central ? step_kernel<kFit, Moments::kCumulant, true> : step_kernel<kFit, Moments::kCumulant, false>;
}

}  // namespace

void cuda_gms_step(Input x, Input e1, Input e2, Input e3, Output out, const Shape& shape, const Stepping& stepping,
                   const Fitting& fitting, const Noise& noise, void* stream) {
  const StepArguments a = {x, e1, e2, e3, out, shape, stepping.coefficients, fitting.parameters, noise};
  with_fit(fitting.fit,
           [&](auto kind) { launch("gms_step", step_kernel_of<decltype(kind)::value>(stepping), shape, stream, a); });
}

void cuda_sample_mixture(Input mean, Input var, Input third, Output out, const Shape& shape, float floor,
                         const Fitting& fitting, const Noise& noise, void* stream) {
  const MixtureArguments a = {mean, var, third, {out}, shape, floor, fitting.parameters, noise};
  with_fit(fitting.fit,
           [&](auto kind) { launch("sample_mixture", sample_kernel<decltype(kind)::value>, shape, stream, a); });
}

void cuda_fit_mixture(Input mean, Input var, Input third, Output weight, Output mean_a, Output mean_b, Output out_var,
                      const Shape& shape, float floor, const Fitting& fitting, void* stream) {
  const MixtureArguments a = {mean,  var,   third,             {weight, mean_a, mean_b, out_var},
                              shape, floor, fitting.parameters, Noise{}};
  with_fit(fitting.fit,
           [&](auto kind) { launch("fit_mixture", fit_kernel<decltype(kind)::value>, shape, stream, a); });
}

void cuda_philox(Output out, const Shape& shape, const Noise& noise, uint32_t stream_id, bool normal, void* stream) {
  launch("philox", philox_kernel, shape, stream, out, shape, noise, stream_id, normal);
}

}  // namespace gms
