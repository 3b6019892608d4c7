// SPDX-License-Identifier: MIT
// Common parts of the kernels: the elements of a thread, how it loads and stores them and draws their noise, and how a
// kernel is launched. The arithmetic is csrc/gms.
//
// A thread takes two quads of four elements: a Philox call and an access of up to 16 bytes each. They lie a block's
// width apart, so that a warp reads whole lines. The grid is (chunk of a sample, sample). Quick kernels serve the
// common case, with all choices made at compile time: dense tensors of one or two types in whole quads, drawn noise,
// and numbers that are not extreme (`Quick`). The other kernels take anything.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/quick.cuh"
#include "ops.h"

namespace gms {
namespace {

constexpr int kThreads = 128;
constexpr int kQuads = 2;
constexpr int kGroup = 4 * kQuads;  // elements a thread
constexpr int kBlocksHeld = 6;      // a processor, at least: that leaves 80 registers a thread

struct Values {
  float v[kGroup];
};

__device__ inline Values splat(float value) {
  Values out;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) out.v[j] = value;
  return out;
}

struct Place {
  int64_t sample;
  uint32_t quad, stride;  // the first quad in the sample, and how far on the second is

  __device__ uint32_t quad_of(int i) const { return quad + i * stride; }
};

// ---- Numbers in memory ----

template <DType kType>
constexpr int kSize = kType == DType::kFloat32 ? 4 : 2;

__device__ inline float widen(uint32_t bits, DType type) {
  if (type == DType::kFloat32) return from_bits(static_cast<int32_t>(bits));
  if (type == DType::kBFloat16) return from_bits(static_cast<int32_t>(bits << 16));
  return __half2float(__ushort_as_half(static_cast<unsigned short>(bits)));
}

__device__ inline uint32_t narrow(float x, DType type) {
  if (type == DType::kFloat32) return static_cast<uint32_t>(bits_of(x));
  return type == DType::kBFloat16 ? __bfloat16_as_ushort(__float2bfloat16_rn(x)) : __half_as_ushort(__float2half_rn(x));
}

// A quad in memory.
template <DType kType>
struct alignas(4 * kSize<kType>) Packed {
  uint32_t w[kSize<kType>];
};

template <DType kType>
__device__ void unpack(const Packed<kType>& packed, float* v) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint32_t word = kSize<kType> == 4 ? packed.w[j % kSize<kType>] : packed.w[j / 2] >> (j % 2 * 16) & 0xffffu;
    v[j] = widen(word, kType);
  }
}

template <DType kType>
__device__ Packed<kType> pack(const float* v) {
  Packed<kType> packed = {};
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (kSize<kType> == 4) {
      packed.w[j % kSize<kType>] = narrow(v[j], kType);
    } else {
      packed.w[j / 2] |= narrow(v[j], kType) << (j % 2 * 16);
    }
  }
  return packed;
}

__device__ inline float load_one(const Operand& in, int64_t index) {
  if (in.data == nullptr) return 0.0f;
  return in.dtype == DType::kFloat32 ? static_cast<const float*>(in.data)[index]
                                     : widen(static_cast<const uint16_t*>(in.data)[index], in.dtype);
}

__device__ inline void store_one(const Operand& out, int64_t index, float value) {
  if (out.dtype == DType::kFloat32) {
    static_cast<float*>(out.data)[index] = value;
  } else {
    static_cast<uint16_t*>(out.data)[index] = static_cast<uint16_t>(narrow(value, out.dtype));
  }
}

// ---- Quick access: dense tensors, whole quads ----

// The quads of a thread in a dense tensor.
struct Flat {
  uint64_t sample;  // its first element
  uint32_t quads, quad;

  __device__ Flat(const Place& p, uint32_t elements)
      : sample(static_cast<uint64_t>(static_cast<uint32_t>(p.sample)) * elements), quads(elements / 4), quad(p.quad) {}
  __device__ bool has(int i) const { return quad + i * kThreads < quads; }

  template <DType kType>
  __device__ Packed<kType>* at(const Operand& tensor) const {
    return reinterpret_cast<Packed<kType>*>(static_cast<char*>(tensor.data) + sample * kSize<kType>) + quad;
  }
};

// The values of a tensor, fetched by the constructor. A kernel constructs all of them before it needs the first, and
// draws its noise meanwhile. A quad that does not exist keeps the registers' old values; none of its results is stored.
template <DType kType>
struct Fetched {
  Packed<kType> quads[kQuads];

  Fetched() = default;
  // Zeros if there is no tensor; only some callers need this.
  __device__ Fetched(const Operand& in, const Flat& flat, bool may_be_missing = false) {
#pragma unroll
    for (int i = 0; i < kQuads; ++i) {
      if (may_be_missing) quads[i] = {};
      if (may_be_missing && in.data == nullptr) continue;
      if (flat.has(i)) quads[i] = flat.at<kType>(in)[i * kThreads];
    }
  }
  __device__ Values values() const {
    Values out;
#pragma unroll
    for (int i = 0; i < kQuads; ++i) unpack(quads[i], out.v + 4 * i);
    return out;
  }
};

// The same value, hidden from the compiler, so that it keeps no results computed from it in registers for later use.
template <DType kType>
__device__ Fetched<kType> hidden(Fetched<kType> tensor) {
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
#pragma unroll
    for (int j = 0; j < kSize<kType>; ++j) asm volatile("" : "+r"(tensor.quads[i].w[j]));
  }
  return tensor;
}

template <DType kType>
__device__ void store(const Operand& out, const Flat& flat, const Values& values) {
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    if (flat.has(i)) flat.at<kType>(out)[i * kThreads] = pack<kType>(values.v + 4 * i);
  }
}

__device__ inline void store(const Operand& out, const Flat& flat, const Values& values) {
  if (out.dtype == DType::kFloat32) return store<DType::kFloat32>(out, flat, values);
  if (out.dtype == DType::kBFloat16) return store<DType::kBFloat16>(out, flat, values);
  store<DType::kFloat16>(out, flat, values);
}

// Calls body(index in the tensor, quad in the sample, element of the quad) for each element. Not unrolled: for rare
// work.
template <typename F>
__device__ void one_by_one(const Place& p, const Flat& flat, const F& body) {
#pragma unroll 1
  for (int j = 0; j < kGroup; ++j) {
    const uint32_t quad = p.quad_of(j / 4);
    if (quad < flat.quads) body(static_cast<int64_t>(flat.sample) + int64_t{quad} * 4 + j % 4, quad, j % 4);
  }
}

// ---- Any access: tensors of any type and layout ----

// Calls body(j, offset) for the elements of a thread that exist.
template <typename F>
__device__ void for_each_element(const Operand& tensor, const Shape& shape, const Place& p, const F& body) {
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const int64_t begin = int64_t{p.quad_of(i)} * 4, left = shape.elements - begin;
    if (tensor.dense) {
      const int64_t offset = p.sample * shape.elements + begin;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j < left) body(4 * i + j, offset + j);
      }
    } else if (left > 0) {
      Cursor cursor(shape, p.sample, begin);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (j < left) body(4 * i + j, cursor.offset(tensor.strides));
        cursor.advance(shape);
      }
    }
  }
}

__device__ inline Values load(const Operand& in, const Shape& shape, const Place& p) {
  Values out = {};
  if (in.data == nullptr) return out;
  for_each_element(in, shape, p, [&](int j, int64_t offset) { out.v[j] = load_one(in, offset); });
  return out;
}

__device__ inline void store(const Operand& out, const Shape& shape, const Place& p, const Values& values) {
  for_each_element(out, shape, p, [&](int j, int64_t offset) { store_one(out, offset, values.v[j]); });
}

// ---- Noise ----

constexpr int kRounds = 10;  // of Philox

// Source of a quick kernel's noise. kKeyed: seed or step index are on the device.
struct Draws {
  uint32_t step, sample, high;        // words of the counter: those of sample 0, `high` being c3 without the stream
  uint32_t counted;                   // 1, or 0 where every sample has a key of its own
  uint32_t k0[kRounds], k1[kRounds];  // the keys of all rounds, read where they are; kKeyed needs the first at most
  const uint64_t* seeds;
  const int64_t* step_at;
};

// Stands for the key of a round in `philox_rounds`, which adds to it.
struct RoundKey {
  const uint32_t* at;
  __device__ void operator+=(uint32_t) { ++at; }
};
__device__ inline uint32_t operator^(uint32_t word, RoundKey key) { return word ^ *key.at; }

template <bool kKeyed>
struct Source {
  uint32_t c1, c2, c3;
  std::conditional_t<kKeyed, uint32_t, RoundKey> k0, k1;

  __device__ Source(const Draws& d, uint32_t sample) : c1(d.step), c2(d.sample + sample), c3(d.high) {
    if constexpr (kKeyed) {
      uint64_t key = static_cast<uint64_t>(d.k1[0]) << 32 | d.k0[0];
      if (d.seeds != nullptr) key = d.seeds[d.counted ? 0 : sample];
      k0 = static_cast<uint32_t>(key), k1 = static_cast<uint32_t>(key >> 32);
      if (d.step_at != nullptr) c1 = static_cast<uint32_t>(*d.step_at);
      c2 = d.sample + d.counted * sample;
    } else {
      k0 = {d.k0}, k1 = {d.k1};
    }
  }
};

// The words of both quads of a thread, drawn in step: they share the key of each round.
struct Words {
  uint32_t of[kQuads];
};
__device__ inline Words operator^(const Words& a, const Words& b) { return {{a.of[0] ^ b.of[0], a.of[1] ^ b.of[1]}}; }
template <typename K>
__device__ Words operator^(const Words& a, K key) {
  return {{a.of[0] ^ key, a.of[1] ^ key}};
}
__device__ inline Product<Words> product(const Words& a, uint32_t m) {
  const Product<uint32_t> p = gms::product(a.of[0], m), q = gms::product(a.of[1], m);
  return {{{p.high, q.high}}, {{p.low, q.low}}};
}

template <typename Math>
__device__ void numbers_of(const uint32_t* w, bool normal, float* v, Math&& math) {
  if (normal) {
    box_muller(w[0], w[1], v[0], v[1], math);
    box_muller(w[2], w[3], v[2], v[3], math);
  } else {
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = uniform(w[j]);
  }
}

// c: a Counter or a Source.
template <typename C, typename Math>
__device__ Values draw(const C& c, uint32_t stream, const Place& p, bool normal, Math&& math) {
  const uint32_t c3 = c.c3 | stream;
  Words w[4] = {{{p.quad_of(0), p.quad_of(1)}}, {{c.c1, c.c1}}, {{c.c2, c.c2}}, {{c3, c3}}};
  philox_rounds(w[0], w[1], w[2], w[3], c.k0, c.k1);
  Values out;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const uint32_t of_quad[4] = {w[0].of[i], w[1].of[i], w[2].of[i], w[3].of[i]};
    numbers_of(of_quad, normal, out.v + 4 * i, math);
  }
  return out;
}

// The number of one element of a quad.
template <typename C>
__device__ float draw_one(const C& c, uint32_t stream, uint32_t quad, int element, bool normal) {
  uint32_t w[4] = {quad, c.c1, c.c2, c.c3 | stream};
  float v[4];
  philox_rounds(w[0], w[1], w[2], w[3], c.k0, c.k1);
  numbers_of(w, normal, v, Ieee{});
  return element < 2 ? (element == 0 ? v[0] : v[1]) : (element == 2 ? v[2] : v[3]);
}

// A value that the first thread of a row computes for the whole row; the others continue until they need it.
template <typename F>
__device__ const float* once_a_row(const F& make) {
  __shared__ float made[kThreads];
  if (threadIdx.x == 0) made[threadIdx.y] = make();
  return made + threadIdx.y;
}
__device__ inline float when_made(const float* at) {
  __syncthreads();
  return *at;
}

// The uniforms of a quick kernel, if it needs any: one per element, or one per sample, which is then read late.
template <bool kNeeded, bool kElement>
struct Uniforms {
  Values of_elements = {};
  const float* of_sample = nullptr;

  template <bool kKeyed>
  __device__ Uniforms(const Source<kKeyed>& source, const Place& p) {
    if (kNeeded && kElement) of_elements = draw(source, kUniforms, p, false, Ieee{});
    if (kNeeded && !kElement) of_sample = once_a_row([&] { return draw_one(source, kUniforms, 0, 0, false); });
  }
  __device__ Values values() const { return kNeeded && !kElement ? splat(when_made(of_sample)) : of_elements; }
};

__device__ inline Values given(const float* values, const Shape& shape, const Place& p) {
  return load(Operand{const_cast<float*>(values), DType::kFloat32, true, {}}, shape, p);
}

__device__ inline Values normals(const Noise& noise, const Shape& shape, const Place& p) {
  if (noise.z != nullptr) return given(noise.z, shape, p);
  return draw(noise.counter(p.sample, 0), kNormals, p, true, Ieee{});
}

// For all threads of a block together, also those of no sample.
__device__ inline Values uniforms(const Noise& noise, const Shape& shape, const Place& p) {
  const bool exists = p.sample < shape.samples;
  if (noise.element) {
    if (!exists) return {};
    return noise.u != nullptr ? given(noise.u, shape, p)
                              : draw(noise.counter(p.sample, 0), kUniforms, p, false, Ieee{});
  }
  return splat(when_made(once_a_row([&] {
    if (!exists) return 0.0f;
    return noise.u != nullptr ? noise.u[p.sample] : draw_one(noise.counter(p.sample, 0), kUniforms, 0, 0, false);
  })));
}

// ---- Launches ----

// A launch takes samples from `first_sample` on.
template <size_t kTensors>
struct QuickArguments {
  Operand tensors[kTensors];
  uint32_t elements, first_sample;
  Scheme scheme;
  Draws draws;
};

template <size_t kTensors>
struct Arguments {
  Operand tensors[kTensors];
  Shape shape;
  int64_t first_sample;
  Scheme scheme;
  const float* numbers;
  Noise noise;
};

template <typename A>
__device__ Place quick_place(const A& a) {
  return {a.first_sample + blockIdx.y, blockIdx.x * (kQuads * kThreads) + threadIdx.x, kThreads};
}

template <typename A>
__device__ Place any_place(const A& a) {
  const int64_t row = int64_t{blockIdx.y} * blockDim.y + threadIdx.y;
  return {a.first_sample + row, blockIdx.x * (kQuads * blockDim.x) + threadIdx.x, blockDim.x};
}

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

template <typename A>
void launch_on(const char* name, void (*kernel)(const A), const A& arguments, dim3 grid, dim3 block,
               const Where& where) {
  cudaLaunchConfig_t config = {};
  config.gridDim = grid, config.blockDim = block;
  config.stream = static_cast<cudaStream_t>(where.stream);
  check(cudaLaunchKernelEx(&config, kernel, arguments), name);
}

constexpr int64_t kMostRows = 65535;  // of a grid

inline unsigned chunks(int64_t elements, unsigned width) {
  const int64_t chunk = int64_t{width} * kGroup;
  return static_cast<unsigned>((elements + chunk - 1) / chunk);
}

// Blocks as wide as a small sample's quads, with several rows of threads. A launch of no blocks is an error.
template <typename A>
void launch(const char* name, void (*kernel)(const A), A arguments, const Where& where) {
  const auto [samples, elements, sizes] = arguments.shape;
  if (elements == 0) return;
  unsigned width = kThreads;
  while (width > 1 && int64_t{width} / 2 * kGroup >= elements) width /= 2;
  const unsigned rows = kThreads / width;
  for (int64_t first = 0; first < samples; first += kMostRows * rows) {
    const int64_t left = std::min(samples - first, kMostRows * rows);
    arguments.first_sample = first;
    launch_on(name, kernel, arguments, dim3(chunks(elements, width), static_cast<unsigned>((left + rows - 1) / rows)),
              dim3(width, rows), where);
  }
}

// The draws of samples from `first` on; `samples` are cut so that the low word of their index does not wrap.
inline Draws draws_of(const Noise& noise, int64_t first, int64_t& samples) {
  const bool own_key = noise.seeds != nullptr && !noise.shared;
  const uint64_t index = own_key ? 0 : noise.sample_offset + static_cast<uint64_t>(first);
  if (!own_key) samples = std::min<int64_t>(samples, (int64_t{1} << 32) - static_cast<uint32_t>(index));
  Draws d = {noise.step, 0, static_cast<uint32_t>(index >> 32) << 8, !own_key, {}, {}, noise.seeds, noise.step_at};
  if (!own_key) d.sample = static_cast<uint32_t>(index) - static_cast<uint32_t>(first);
  d.k0[0] = static_cast<uint32_t>(noise.seed), d.k1[0] = static_cast<uint32_t>(noise.seed >> 32);
  for (int i = 1; i < kRounds; ++i) d.k0[i] = d.k0[i - 1] + kWeyl0, d.k1[i] = d.k1[i - 1] + kWeyl1;
  return d;
}

template <typename A>
void launch_quick(const char* name, void (*kernel)(const A), A arguments, int64_t samples, const Noise& noise,
                  const Where& where) {
  for (int64_t first = 0, size; first < samples; first += size) {
    size = std::min(samples - first, kMostRows);
    arguments.first_sample = static_cast<uint32_t>(first);
    arguments.draws = draws_of(noise, first, size);
    launch_on(name, kernel, arguments, dim3(chunks(arguments.elements, kThreads), static_cast<unsigned>(size)),
              dim3(kThreads), where);
  }
}

template <size_t kTensors>
Arguments<kTensors> arguments_of(const Operand* tensors, const Shape& shape, const Scheme& scheme, const float* numbers,
                                 const Noise& noise) {
  Arguments<kTensors> a = {{}, shape, 0, scheme, numbers, noise};
  std::copy_n(tensors, kTensors, a.tensors);
  return a;
}

template <size_t kTensors>
QuickArguments<kTensors> quick_arguments_of(const Operand* tensors, const Shape& shape, const Scheme& scheme) {
  QuickArguments<kTensors> a = {{}, static_cast<uint32_t>(shape.elements), 0, scheme, {}};
  std::copy_n(tensors, kTensors, a.tensors);
  return a;
}

// True if a quick kernel can take them: dense, aligned to whole quads, in samples that fill at least half a block.
inline bool in_quads(const Operand* tensors, size_t count, const Shape& shape) {
  const auto fits = [](const Operand& t) {
    const uintptr_t quad = t.dtype == DType::kFloat32 ? 16 : 8;
    return t.dense && reinterpret_cast<uintptr_t>(t.data) % quad == 0;
  };
  constexpr int64_t kWords = int64_t{1} << 32;
  return shape.elements % 4 == 0 && shape.elements >= 4 * kThreads && shape.elements < kWords &&
         shape.samples < kWords && std::all_of(tensors, tensors + count, fits);
}

inline bool all_of_type(const Operand* tensors, size_t count, DType type) {
  return std::all_of(tensors, tensors + count, [&](const Operand& t) { return t.data == nullptr || t.dtype == type; });
}

// True if `Quick` can handle these numbers: a third moment that decides is then not tiny (`quotient`), and the data
// range is infinite or can be squared.
inline bool in_reach(const Scheme& s) {
  const float width = s.coefficients.hi - s.coefficients.lo;
  const bool skewed = std::fabs(1 - 2 * s.parameters.weight) >= 0x1p-10f || s.fit == Fit::kGaussian;
  return skewed && (width <= Quick::kHuge || std::isinf(width));
}

inline bool drawn(const Noise& noise) { return noise.z == nullptr && noise.u == nullptr; }
inline bool keyed(const Noise& noise) { return noise.seeds != nullptr || noise.step_at != nullptr; }

// Calls body with a compile-time constant.
template <typename F>
void with_bool(bool value, const F& body) {
  value ? body(std::true_type()) : body(std::false_type());
}

template <DType kType>
using TypeIs = std::integral_constant<DType, kType>;

template <typename F>
void with_type(DType type, const F& body) {
  switch (type) {
    case DType::kFloat32: return body(TypeIs<DType::kFloat32>());
    case DType::kBFloat16: return body(TypeIs<DType::kBFloat16>());
    default: return body(TypeIs<DType::kFloat16>());
  }
}

// Pairs of types that quick kernels take, for the first tensor and for all others that are read: one type, or float32
// with narrow ones. Results have any type.
inline bool in_pairs(const Operand& first, const Operand* others, size_t count) {
  return (first.dtype == others->dtype || first.dtype == DType::kFloat32) && all_of_type(others, count, others->dtype);
}

// Calls body(type of the first, type of the others).
template <typename F>
void with_types(DType first, DType others, const F& body) {
  with_type(others, [&](auto type) { first == others ? body(type, type) : body(TypeIs<DType::kFloat32>(), type); });
}

}  // namespace
}  // namespace gms
