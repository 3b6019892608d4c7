// SPDX-License-Identifier: MIT
// The ops on a GPU: each thread takes groups of eight elements, two Philox calls for their normals, in 16-byte accesses
// where tensors are dense and aligned, element by element elsewhere; the arithmetic is csrc/gms.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace gms {
namespace {

constexpr int kThreads = 256;
constexpr int kGroup = 8;            // elements
constexpr int kBlocksPerProcessor = 16;

// Blocks that a processor holds at a time, at least: 3 leave 80 registers a thread, 2 leave 128.
constexpr int blocks_held(Fit fit, bool vector) { return vector && fit != Fit::kAdan ? 3 : 2; }

// A grid-stride walk over groups without divisions but the first: its stride in whole samples and groups.
struct Walk {
  int64_t groups, samples;  // groups per sample
  int64_t stride_samples, stride_groups;
  unsigned blocks;
};

struct Group {
  int64_t sample, begin;  // first element in the sample
  int count;
};

template <typename F>
__device__ void for_each_group(const Shape& shape, const Walk& walk, const F& body) {
  const int64_t first = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  int64_t sample = first / walk.groups, group = first - sample * walk.groups;
  while (sample < walk.samples) {
    const int64_t begin = group * kGroup, left = shape.elements - begin;
    body(Group{sample, begin, static_cast<int>(left < kGroup ? left : kGroup)});
    sample += walk.stride_samples, group += walk.stride_groups;
    if (group >= walk.groups) group -= walk.groups, ++sample;
  }
}

struct Raw {  // a group as it lies in memory: a word for each float32, half a word for each narrow number
  uint32_t w[kGroup];
};

// Calls body(j, offset) for the elements of a group that exist.
template <typename F>
__device__ void for_each_element(const Operand& tensor, const Shape& shape, const Group& g, const F& body) {
  const int64_t offset = g.sample * shape.elements + g.begin;
  if (tensor.dense) {
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      if (j < g.count) body(j, offset + j);
    }
    return;
  }
  Cursor cursor(shape, g.sample, g.begin);
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    if (j < g.count) body(j, cursor.offset(tensor.strides));
    cursor.advance(shape);
  }
}

__device__ uint4* vectors(const Operand& tensor, const Shape& shape, const Group& g) {
  const int64_t size = tensor.dtype == DType::kFloat32 ? 4 : 2;
  return reinterpret_cast<uint4*>(static_cast<char*>(tensor.data) + (g.sample * shape.elements + g.begin) * size);
}

template <bool kVector>
__device__ Raw fetch(const Operand& in, const Shape& shape, const Group& g) {
  Raw raw = {};
  if (in.data == nullptr) return raw;
  if (kVector) {
    const uint4* p = vectors(in, shape, g);
    const uint4 a = p[0];
    raw.w[0] = a.x, raw.w[1] = a.y, raw.w[2] = a.z, raw.w[3] = a.w;
    if (in.dtype == DType::kFloat32) {
      const uint4 b = p[1];
      raw.w[4] = b.x, raw.w[5] = b.y, raw.w[6] = b.z, raw.w[7] = b.w;
    }
  } else if (in.dtype == DType::kFloat32) {
    for_each_element(in, shape, g, [&](int j, int64_t i) { raw.w[j] = static_cast<const uint32_t*>(in.data)[i]; });
  } else {
    for_each_element(in, shape, g, [&](int j, int64_t i) {
      raw.w[j / 2] |= uint32_t{static_cast<const uint16_t*>(in.data)[i]} << (j % 2 * 16);
    });
  }
  return raw;
}

struct Values {
  float v[kGroup];
};

__device__ Values widen(const Raw& raw, DType dtype) {
  Values out;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    const uint32_t half = raw.w[j / 2] >> (j % 2 * 16);
    if (dtype == DType::kFloat32) {
      out.v[j] = from_bits(static_cast<int32_t>(raw.w[j]));
    } else if (dtype == DType::kBFloat16) {
      out.v[j] = from_bits(static_cast<int32_t>(half << 16));
    } else {
      out.v[j] = __half2float(__ushort_as_half(static_cast<unsigned short>(half & 0xffffu)));
    }
  }
  return out;
}

__device__ Raw narrow(const Values& values, DType dtype) {
  Raw raw = {};
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    const float x = values.v[j];
    if (dtype == DType::kFloat32) {
      raw.w[j] = static_cast<uint32_t>(bits_of(x));
    } else {
      const uint32_t half = dtype == DType::kBFloat16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x))
                                                      : __half_as_ushort(__float2half_rn(x));
      raw.w[j / 2] |= half << (j % 2 * 16);
    }
  }
  return raw;
}

template <bool kVector>
__device__ Values load(const Operand& in, const Shape& shape, const Group& g) {
  return widen(fetch<kVector>(in, shape, g), in.dtype);
}

// The inputs of a kernel: all are fetched before the first is used, so that their loads overlap with each other and
// with the drawing of noise.
template <bool kVector, int kCount>
struct Inputs {
  Raw raw[kCount];

  __device__ Inputs(const Operand* tensors, const Shape& shape, const Group& g) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) raw[i] = fetch<kVector>(tensors[i], shape, g);
  }
};

template <bool kVector>
__device__ void store(const Operand& out, const Shape& shape, const Group& g, const Values& values) {
  const Raw raw = narrow(values, out.dtype);
  if (kVector) {
    uint4* p = vectors(out, shape, g);
    p[0] = make_uint4(raw.w[0], raw.w[1], raw.w[2], raw.w[3]);
    if (out.dtype == DType::kFloat32) p[1] = make_uint4(raw.w[4], raw.w[5], raw.w[6], raw.w[7]);
  } else if (out.dtype == DType::kFloat32) {
    for_each_element(out, shape, g, [&](int j, int64_t i) { static_cast<uint32_t*>(out.data)[i] = raw.w[j]; });
  } else {
    for_each_element(out, shape, g, [&](int j, int64_t i) {
      static_cast<uint16_t*>(out.data)[i] = static_cast<uint16_t>(raw.w[j / 2] >> (j % 2 * 16));
    });
  }
}

__device__ Values draw_group(const Counter& counter, int64_t begin, bool normal) {
  Values out;
#pragma unroll
  for (int quad = 0; quad < kGroup / 4; ++quad) {
    float* v = out.v + 4 * quad;
    uint32_t w[4];
    philox_words(static_cast<uint32_t>(begin / 4 + quad), counter, w);
    if (normal) {
      box_muller(w[0], w[1], v[0], v[1]);
      box_muller(w[2], w[3], v[2], v[3]);
    } else {
      for (int j = 0; j < 4; ++j) v[j] = uniform(w[j]);
    }
  }
  return out;
}

__device__ Values given(const float* values, const Shape& shape, const Group& g) {
  Values out = {};
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    if (j < g.count) out.v[j] = values[g.sample * shape.elements + g.begin + j];
  }
  return out;
}

__device__ Values normals(const Noise& noise, const Shape& shape, const Group& g) {
  return noise.z != nullptr ? given(noise.z, shape, g) : draw_group(noise.counter(g.sample, kNormals), g.begin, true);
}

__device__ Values splat_group(float value) {
  Values out;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) out.v[j] = value;
  return out;
}

__device__ Values uniforms(const Noise& noise, const Shape& shape, const Group& g) {
  if (noise.element) {
    return noise.u != nullptr ? given(noise.u, shape, g)
                              : draw_group(noise.counter(g.sample, kUniforms), g.begin, false);
  }
  float u;
  if (noise.u != nullptr) {
    u = noise.u[g.sample];
  } else {
    uint32_t w[4];
    philox_words(0, noise.counter(g.sample, kUniforms), w);
    u = uniform(w[0]);
  }
  return splat_group(u);
}

template <size_t kTensors>
struct Arguments {
  Operand tensors[kTensors];
  Shape shape;
  Walk walk;
  Scheme scheme;
  const float* numbers;
  Noise noise;
};

template <Fit kFit, Moments kMoments, bool kCentral, bool kVector>
__global__ void __launch_bounds__(kThreads, blocks_held(kFit, kVector)) step_kernel(const __grid_constant__ Arguments<5> a) {
  const StepCoefficients<float> k = a.scheme.coefficients_from(a.numbers);
  for_each_group(a.shape, a.walk, [&](const Group& g) {
    const Inputs<kVector, 4> in(a.tensors, a.shape, g);
    const Values z = normals(a.noise, a.shape, g), u = kFit == Fit::kGaussian ? Values{} : uniforms(a.noise, a.shape, g);
    const Values x = widen(in.raw[0], a.tensors[0].dtype), e1 = widen(in.raw[1], a.tensors[1].dtype),
                 e2 = widen(in.raw[2], a.tensors[2].dtype), e3 = widen(in.raw[3], a.tensors[3].dtype);
    Values out;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      out.v[j] = gms_step<kFit, kMoments, kCentral>(x.v[j], e1.v[j], e2.v[j], e3.v[j], z.v[j], u.v[j], k,
                                                    a.scheme.parameters);
    }
    store<kVector>(a.tensors[4], a.shape, g, out);
  });
}

template <Fit kFit, bool kVector>
__global__ void __launch_bounds__(kThreads, blocks_held(kFit, kVector)) sample_kernel(const __grid_constant__ Arguments<4> a) {
  for_each_group(a.shape, a.walk, [&](const Group& g) {
    const Inputs<kVector, 3> in(a.tensors, a.shape, g);
    const Values z = normals(a.noise, a.shape, g), u = kFit == Fit::kGaussian ? Values{} : uniforms(a.noise, a.shape, g);
    const Values mean = widen(in.raw[0], a.tensors[0].dtype), var = widen(in.raw[1], a.tensors[1].dtype),
                 third = widen(in.raw[2], a.tensors[2].dtype);
    Values out;
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      out.v[j] = sample_mixture<kFit>(mean.v[j], var.v[j], third.v[j], a.scheme.floor, z.v[j], u.v[j],
                                      a.scheme.parameters);
    }
    store<kVector>(a.tensors[3], a.shape, g, out);
  });
}

template <Fit kFit, bool kVector>
__global__ void __launch_bounds__(kThreads) fit_kernel(const __grid_constant__ Arguments<7> a) {
  for_each_group(a.shape, a.walk, [&](const Group& g) {
    const Inputs<kVector, 3> in(a.tensors, a.shape, g);
    const Values mean = widen(in.raw[0], a.tensors[0].dtype), var = widen(in.raw[1], a.tensors[1].dtype),
                 third = widen(in.raw[2], a.tensors[2].dtype);
    Values out[4];
#pragma unroll
    for (int j = 0; j < kGroup; ++j) {
      const Mixture<float> fit =
          fit_mixture_above<kFit>(mean.v[j], var.v[j], third.v[j], a.scheme.floor, a.scheme.parameters);
      out[0].v[j] = fit.weight, out[1].v[j] = fit.mean_a, out[2].v[j] = fit.mean_b, out[3].v[j] = fit.var;
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) store<kVector>(a.tensors[3 + i], a.shape, g, out[i]);
  });
}

struct AffineArguments {
  Operand tensors[2];
  Shape shape;
  Walk walk;
  Affine affine;
  Noise noise;
};

template <bool kByElement, bool kVector>
__device__ Values weights_of(const Affine& affine, int row, const Shape& shape, const Group& g) {
  if constexpr (kByElement) {
    return load<kVector>(affine.by_element, shape, Group{row, g.begin, g.count});
  } else {
    return splat_group(affine.weight(row));
  }
}

__device__ void add(Values& sum, const Values& weights, const Values& values) {
#pragma unroll
  for (int j = 0; j < kGroup; ++j) sum.v[j] = fma(weights.v[j], values.v[j], sum.v[j]);
}

template <bool kByElement, bool kVector>
__global__ void __launch_bounds__(kThreads) affine_kernel(const __grid_constant__ AffineArguments a) {
  for_each_group(a.shape, a.walk, [&](const Group& g) {
    const auto weights = [&](int row) { return weights_of<kByElement, kVector>(a.affine, row, a.shape, g); };
    Values sum = load<kVector>(a.tensors[0], a.shape, g);
    const Values first = weights(0);
#pragma unroll
    for (int j = 0; j < kGroup; ++j) sum.v[j] *= first.v[j];
    for (int i = 0; i < a.affine.terms; ++i) add(sum, weights(i + 1), load<kVector>(a.affine.term[i], a.shape, g));
    if (kByElement) {
      const Values added = weights(a.affine.terms + 1);
#pragma unroll
      for (int j = 0; j < kGroup; ++j) sum.v[j] += added.v[j];
    }
    if (a.affine.noisy) add(sum, splat_group(a.affine.weight(a.affine.terms + 1)), normals(a.noise, a.shape, g));
    store<kVector>(a.tensors[1], a.shape, g, sum);
  });
}

struct PhiloxArguments {
  Operand out;
  Shape shape;
  Walk walk;
  Noise noise;
  uint32_t stream;
  bool normal;
};

template <bool kVector>
__global__ void __launch_bounds__(kThreads) philox_kernel(const __grid_constant__ PhiloxArguments a) {
  for_each_group(a.shape, a.walk, [&](const Group& g) {
    store<kVector>(a.out, a.shape, g, draw_group(a.noise.counter(g.sample, a.stream), g.begin, a.normal));
  });
}

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

// Enough blocks to fill the device, no more than there is work for.
Walk walk_over(const Shape& shape) {
  int device = 0, processors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device), "cudaDeviceGetAttribute");
  const int64_t groups = (shape.elements + kGroup - 1) / kGroup;
  const int64_t blocks = std::min<int64_t>((groups * shape.samples + kThreads - 1) / kThreads,
                                           int64_t{processors} * kBlocksPerProcessor);
  const int64_t stride = blocks * kThreads, per_sample = std::max<int64_t>(groups, 1);
  return {groups, shape.samples, stride / per_sample, stride % per_sample, static_cast<unsigned>(blocks)};
}

bool in_vectors(const Operand* tensors, int count, const Shape& shape) {
  const auto fits = [](const Operand& t) { return t.dense && reinterpret_cast<uintptr_t>(t.data) % 16 == 0; };
  return shape.elements % kGroup == 0 && std::all_of(tensors, tensors + count, fits);
}

template <typename A>
void launch(const char* name, void (*kernel)(const A), const A& arguments, const Where& where) {
  if (arguments.walk.blocks == 0) return;  // a launch of no blocks is an error
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(arguments.walk.blocks);
  config.blockDim = dim3(kThreads);
  config.stream = static_cast<cudaStream_t>(where.stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments), name);
}

// Calls body with a compile-time constant.
template <typename F>
void with_bool(bool value, const F& body) {
  value ? body(std::true_type()) : body(std::false_type());
}

template <size_t kTensors>
Arguments<kTensors> arguments_of(const Operand* tensors, const Shape& shape, const Scheme& scheme,
                                 const float* numbers, const Noise& noise) {
  Arguments<kTensors> a = {{}, shape, walk_over(shape), scheme, numbers, noise};
  std::copy_n(tensors, kTensors, a.tensors);
  return a;
}

template <Fit kFit, bool kVector>
auto step_kernel_of(const Scheme& s) {
  if (s.moments == Moments::kReleased) {
    return s.central ? step_kernel<kFit, Moments::kReleased, true, kVector>
                     : step_kernel<kFit, Moments::kReleased, false, kVector>;
  }
  return s.central ? step_kernel<kFit, Moments::kCumulant, true, kVector>
                   : step_kernel<kFit, Moments::kCumulant, false, kVector>;
}

void gms_step(const Operand tensors[5], const Shape& shape, const Scheme& scheme, const float* numbers,
              const Noise& noise, const Where& where) {
  const Arguments<5> a = arguments_of<5>(tensors, shape, scheme, numbers, noise);
  with_fit(scheme.fit, [&](auto fit) {
    with_bool(in_vectors(tensors, 5, shape), [&](auto vector) {
      launch("gms_step", step_kernel_of<decltype(fit)::value, decltype(vector)::value>(scheme), a, where);
    });
  });
}

void sample_mixture(const Operand tensors[4], const Shape& shape, const Scheme& scheme, const Noise& noise,
                    const Where& where) {
  const Arguments<4> a = arguments_of<4>(tensors, shape, scheme, nullptr, noise);
  with_fit(scheme.fit, [&](auto fit) {
    with_bool(in_vectors(tensors, 4, shape), [&](auto vector) {
      launch("sample_mixture", sample_kernel<decltype(fit)::value, decltype(vector)::value>, a, where);
    });
  });
}

void fit_mixture(const Operand tensors[7], const Shape& shape, const Scheme& scheme, const Where& where) {
  const Arguments<7> a = arguments_of<7>(tensors, shape, scheme, nullptr, Noise{});
  with_fit(scheme.fit, [&](auto fit) {
    with_bool(in_vectors(tensors, 7, shape), [&](auto vector) {
      launch("fit_mixture", fit_kernel<decltype(fit)::value, decltype(vector)::value>, a, where);
    });
  });
}

void affine_noise(const Operand tensors[2], const Shape& shape, const Affine& affine, const Noise& noise,
                  const Where& where) {
  const AffineArguments a = {{tensors[0], tensors[1]}, shape, walk_over(shape), affine, noise};
  const bool vector = in_vectors(tensors, 2, shape) && in_vectors(affine.term, affine.terms, shape) &&
                      in_vectors(&affine.by_element, 1, shape);
  with_bool(affine.by_element.data != nullptr, [&](auto by_element) {
    with_bool(vector, [&](auto v) {
      launch("affine_noise", affine_kernel<decltype(by_element)::value, decltype(v)::value>, a, where);
    });
  });
}

void philox(const Operand& out, const Shape& shape, const Noise& noise, uint32_t stream, bool normal,
            const Where& where) {
  const PhiloxArguments a = {out, shape, walk_over(shape), noise, stream, normal};
  with_bool(in_vectors(&out, 1, shape),
            [&](auto v) { launch("philox", philox_kernel<decltype(v)::value>, a, where); });
}

constexpr Table kTable = {gms_step, sample_mixture, fit_mixture, affine_noise, philox};

}  // namespace

const Table kCuda = kTable;

}  // namespace gms
