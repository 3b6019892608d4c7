// SPDX-License-Identifier: MIT
// Blocks that fit in the first-level cache: loading of inputs (gathered, widened), drawing of noise, watching and
// storing of results (narrowed, scattered).
#pragma once

#include <algorithm>
#include <array>
#include <cstring>
#include <utility>

#include "ops.h"

namespace gms {
namespace {

constexpr int64_t kBlock = 512;             // elements; a multiple of 4, so that blocks start at whole Philox calls
using Buffer = float[kBlock];
constexpr int64_t kParallelFrom = 1 << 14;  // elements below which a second thread costs more than it saves

struct Span {  // part of one sample, or a few whole small ones
  int64_t sample, samples, begin, size;
};

// A block is kBlock elements of one sample, or as many samples as fit with each starting at a whole Philox call.
template <typename F>
void for_each_block(const Shape& shape, const Where& where, const F& body) {
  const int64_t together = std::max<int64_t>(kBlock / ((shape.elements + 3) / 4 * 4), 1);
  const int64_t blocks = (shape.elements + kBlock - 1) / kBlock;  // of a sample; 1 where some go together
  const int64_t total = (shape.samples + together - 1) / together * blocks;
  const auto run = [&](int64_t i) __attribute__((noinline)) {
    const int64_t sample = i / blocks * together, begin = i % blocks * kBlock;
    const int64_t samples = std::min(together, shape.samples - sample);
    body(Span{sample, samples, begin, std::min(kBlock, shape.elements - begin) * samples});
  };
  if (where.threads == 1 || shape.samples * shape.elements < kParallelFrom) {
    for (int64_t i = 0; i < total; ++i) run(i);
    return;
  }
#pragma omp parallel for schedule(static) num_threads(where.threads)
  for (int64_t i = 0; i < total; ++i) run(i);
}

// The narrow types as integers, converted by integer arithmetic, which every instruction set vectorises.
struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

float float_of(uint32_t bits) { return from_bits(static_cast<int32_t>(bits)); }

float widen(float x) { return x; }
float widen(BFloat16 x) { return float_of(uint32_t{x.bits} << 16); }
float widen(Float16 x) {
  const uint32_t size = x.bits & 0x7fffu, sign = (x.bits & 0x8000u) << 16;
  const uint32_t denormal = static_cast<uint32_t>(bits_of(static_cast<float>(static_cast<int32_t>(size)) * 0x1p-24f));
  const uint32_t normal = (size << 13) + (size >= 0x7c00u ? 0x70000000u : 0x38000000u);
  return float_of((size < 0x400u ? denormal : normal) | sign);
}

// To nearest, ties to even; NaN stays NaN.
void narrow(float x, float& to) { to = x; }
void narrow(float x, BFloat16& to) {
  const uint32_t i = static_cast<uint32_t>(bits_of(x));
  const uint32_t rounded = (i + 0x7fffu + (i >> 16 & 1u)) >> 16;
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : rounded);
}
void narrow(float x, Float16& to) {
  const uint32_t i = static_cast<uint32_t>(bits_of(x)), size = i & 0x7fffffffu, sign = i >> 16 & 0x8000u;
  const uint32_t normal = (size - 0x38000000u + 0xfffu + (size >> 13 & 1u)) >> 13;
  // 0.5 has the last bit of its mantissa where a denormal half has its own: the sum is rounded there.
  const uint32_t small = static_cast<uint32_t>(bits_of(float_of(size) + 0.5f)) - 0x3f000000u;
  const uint32_t finite = size < 0x38800000u ? small : normal;
  const uint32_t half = size >= 0x477ff000u ? (size > 0x7f800000u ? 0x7e00u : 0x7c00u) : finite;
  to.bits = static_cast<uint16_t>(half | sign);
}

// Calls body(pointer to the tensor's first element, of its own type).
template <typename F>
void with_type(const Operand& tensor, const F& body) {
  if (tensor.dtype == DType::kFloat32) return body(static_cast<float*>(tensor.data));
  if (tensor.dtype == DType::kBFloat16) return body(static_cast<BFloat16*>(tensor.data));
  body(static_cast<Float16*>(tensor.data));
}

// Calls body(offset in the tensor, stride, place in the block, size) for the evenly spaced parts of a block.
template <typename F>
void for_each_run(const Operand& tensor, const Shape& shape, const Span& span, const F& body) {
  if (tensor.dense) return body(span.sample * shape.elements + span.begin, 1, 0, span.size);
  Cursor cursor(shape, span.sample, span.begin);
  for (int64_t done = 0, size; done < span.size; done += size) {
    size = std::min(span.size - done, shape.sizes[2] - cursor.k);
    body(cursor.offset(tensor.strides), tensor.strides[3], done, size);
    cursor.advance(shape, size);
    if (cursor.i == shape.sizes[0]) cursor.i = 0, ++cursor.sample;
  }
}

bool in_place(const Operand& tensor) { return tensor.dense && tensor.dtype == DType::kFloat32; }

float* address(const Operand& tensor, const Shape& shape, const Span& span) {
  return static_cast<float*>(tensor.data) + span.sample * shape.elements + span.begin;
}

// The block's values as float: in place if they are float, else copied into `buffer`.
const float* load(const Operand& in, const Shape& shape, const Span& span, float* buffer) {
  if (in.data == nullptr) {
    std::fill_n(buffer, span.size, 0.0f);
    return buffer;
  }
  if (in_place(in)) return address(in, shape, span);
  with_type(in, [&](const auto* data) {
    for_each_run(in, shape, span, [&](int64_t offset, int64_t stride, int64_t begin, int64_t size) {
      const auto* p = data + offset;
      if (stride == 1) {
        for (int64_t i = 0; i < size; ++i) buffer[begin + i] = widen(p[i]);
      } else {
        for (int64_t i = 0; i < size; ++i) buffer[begin + i] = widen(p[i * stride]);
      }
    });
  });
  return buffer;
}

// Address for a block's results: in the output itself, or in `buffer`, from which `store` copies them.
float* target(const Operand& out, const Shape& shape, const Span& span, float* buffer) {
  return in_place(out) ? address(out, shape, span) : buffer;
}

void store(const Operand& out, const Shape& shape, const Span& span, const float* buffer) {
  if (in_place(out)) return;
  with_type(out, [&](auto* data) {
    for_each_run(out, shape, span, [&](int64_t offset, int64_t stride, int64_t begin, int64_t size) {
      auto* p = data + offset;
      for (int64_t i = 0; i < size; ++i) narrow(buffer[begin + i], p[i * stride]);
    });
  });
}

struct Words {  // of the Philox calls of one block
  static constexpr int64_t kWhole = 16;  // calls are made in whole registers: what is too much is not looked at
  uint32_t w[4][kBlock / 4];
  int64_t total;

  // `calls` for every sample of the block, the first for element span.begin.
  Words(const Noise& noise, uint32_t stream, const Span& span, int64_t calls)
      : total((span.samples * calls + kWhole - 1) / kWhole * kWhole) {
    const Counter first = noise.counter(span.sample, stream);
    if (span.samples == 1) {
      Wide quad = static_cast<uint64_t>(span.begin / 4) - Wide{};
      for (int lane = 0; lane < kWide; ++lane) quad[lane] += static_cast<uint64_t>(lane);
      const Wide c1 = Wide{} + first.c1, c2 = Wide{} + first.c2, c3 = Wide{} + first.c3;
      for (int64_t i = 0; i < total; i += kWide, quad += kWide) draw(i, quad, c1, c2, c3, first.k0, first.k1);
      return;
    }
    uint32_t c0[kBlock / 4] = {}, c2[kBlock / 4] = {}, c3[kBlock / 4] = {}, k0[kBlock / 4] = {}, k1[kBlock / 4] = {};
    for (int64_t s = 0, i = 0; s < span.samples; ++s) {
      const Counter counter = noise.counter(span.sample + s, stream);
      for (int64_t quad = 0; quad < calls; ++quad, ++i) {
        c0[i] = static_cast<uint32_t>(quad);
        c2[i] = counter.c2, c3[i] = counter.c3, k0[i] = counter.k0, k1[i] = counter.k1;
      }
    }
    for (int64_t i = 0; i < total; i += kWide) {
      draw(i, wide(c0 + i), Wide{} + first.c1, wide(c2 + i), wide(c3 + i), wide(k0 + i), wide(k1 + i));
    }
  }

  static Wide wide(const uint32_t* from) {
    Wide words;
    for (int lane = 0; lane < kWide; ++lane) words[lane] = from[lane];
    return words;
  }

  template <typename K>
  void draw(int64_t i, Wide c0, Wide c1, Wide c2, Wide c3, K k0, K k1) {
    philox_rounds(c0, c1, c2, c3, k0, k1);
    const Wide four[4] = {c0, c1, c2, c3};
    for (int j = 0; j < 4; ++j) {
      const Words32 words = __builtin_convertvector(four[j], Words32);
      std::memcpy(w[j] + i, &words, sizeof words);
    }
  }
};

template <bool kNormal>
void fill_noise(const Noise& noise, uint32_t stream, const Span& span, float* out) {  // out holds kBlock floats
  const int64_t elements = span.size / span.samples, calls = (elements + 3) / 4;
  const Words words(noise, stream, span, calls);
  const int64_t total = words.total;
  for (int64_t q = 0; q < total; ++q) {
    const uint32_t w0 = words.w[0][q], w1 = words.w[1][q], w2 = words.w[2][q], w3 = words.w[3][q];
    float a = 0, b = 0, c = 0, d = 0;
    if (kNormal) {
      box_muller(w0, w1, a, b);
      box_muller(w2, w3, c, d);
    } else {
      a = uniform(w0), b = uniform(w1), c = uniform(w2), d = uniform(w3);
    }
    out[4 * q] = a, out[4 * q + 1] = b, out[4 * q + 2] = c, out[4 * q + 3] = d;
  }
  if (elements % 4 == 0) return;
  for (int64_t s = 1; s < span.samples; ++s) std::copy_n(out + s * 4 * calls, elements, out + s * elements);
}

// One uniform for each sample, for all its elements.
void fill_shared(const Noise& noise, const Span& span, float* out) {
  const int64_t elements = span.size / span.samples;
  const auto fill = [&](const auto& value) {
    for (int64_t s = 0; s < span.samples; ++s) std::fill_n(out + s * elements, elements, value(s));
  };
  if (noise.u != nullptr) return fill([&](int64_t s) { return noise.u[span.sample + s]; });
  const Words words(noise, kUniforms, Span{span.sample, span.samples, 0, span.samples}, 1);
  fill([&](int64_t s) { return uniform(words.w[0][s]); });
}

struct Draws {  // normals and uniforms of one block
  float z_buffer[kBlock], u_buffer[kBlock];
  const float* z;
  const float* u;

  Draws(const Noise& noise, const Shape& shape, const Span& span, bool needs_uniforms) : z(z_buffer), u(u_buffer) {
    const int64_t offset = span.sample * shape.elements + span.begin;
    if (noise.z != nullptr) {
      z = noise.z + offset;
    } else {
      fill_noise<true>(noise, kNormals, span, z_buffer);
    }
    if (!needs_uniforms) return;
    if (!noise.element) {
      fill_shared(noise, span, u_buffer);
    } else if (noise.u != nullptr) {
      u = noise.u + offset;
    } else {
      fill_noise<false>(noise, kUniforms, span, u_buffer);
    }
  }
};

// Records that tensor number `which` of a step was not finite; see `Watch`.
void note(const Watch& watch, int32_t which) {
  const int32_t code = watch.code + which;
  int32_t seen = __atomic_load_n(watch.first, __ATOMIC_RELAXED);
  while (code < seen &&
         !__atomic_compare_exchange_n(watch.first, &seen, code, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
}

uint32_t size_of(float x) { return static_cast<uint32_t>(bits_of(x)) & 0x7fffffffu; }  // grows with |x|; NaN is most

// Looks for numbers of a block that are infinite in a type, or NaN: in float32 all whose exponent is the largest.
void look(const Watch& watch, int32_t which, const float* block, int64_t size, DType type = DType::kFloat32) {
  if (watch.first == nullptr) return;
  uint32_t most = 0;
  for (int64_t i = 0; i < size; ++i) most = std::max(most, size_of(block[i]));
  if (most >= infinite_from(type)) note(watch, which);
}

// Stores a block of results that were computed in `target`.
void finish(const Operand& out, const Shape& shape, const Span& span, const float* block, const Watch& watch) {
  look(watch, kWritten, block, span.size, out.dtype);
  store(out, shape, span, block);
}

// A network's output with guidance, if there is an unconditional one.
const float* guided(const float* output, const Operand& unconditional, float scale, const Shape& shape,
                    const Span& span, float* buffer, const Watch& watch) {
  if (unconditional.data == nullptr) return output;
  const float* without = load(unconditional, shape, span, buffer);
  look(watch, 0, without, span.size);
  for (int64_t i = 0; i < span.size; ++i) buffer[i] = led(output[i], without[i], scale);
  return buffer;
}

}  // namespace
}  // namespace gms
