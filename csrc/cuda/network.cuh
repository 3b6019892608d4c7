// SPDX-License-Identifier: MIT
// Handling of a network's output before a step, and of a step's results: watching, guidance and storing.
#pragma once

#include "cuda/kernel.cuh"

namespace gms {
namespace {

// Records that tensor number `which` of a step was not finite; see `Watch`.
__device__ inline void note(const Watch& watch, int32_t which) {
  const int32_t code = watch.code + which;
  if (code < *static_cast<const volatile int32_t*>(watch.first)) atomicMin(watch.first, code);
}

__device__ inline bool infinite_in(DType type, float size) {  // NaN too
  return !(size < from_bits(static_cast<int32_t>(infinite_from(type))));
}

__device__ inline void look(const Watch& watch, int32_t which, float value, DType type = DType::kFloat32) {
  if (watch.first != nullptr && infinite_in(type, std::fabs(value))) note(watch, which);
}

// A network's output with guidance, if there is an unconditional one. load(it) fetches that; seen(value) watches it.
template <typename Load, typename Seen>
__device__ Values guided(const Values& output, const Operand& unconditional, float scale, const Load& load,
                         const Seen& seen) {
  if (unconditional.data == nullptr) return output;
  const Values without = load(unconditional);
  seen(without);
  Values out;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) out.v[j] = led(output.v[j], without.v[j], scale);
  return out;
}

// ---- Quick ----

__device__ inline void look(const Watch& watch, int32_t which, const Values& values, const Flat& flat,
                            DType type = DType::kFloat32) {
  if (watch.first == nullptr) return;
  bool seen = false;
#pragma unroll
  for (int i = 0; i < kQuads; ++i) {
    const float* const v = values.v + 4 * i;
    const float most = larger(larger(std::fabs(v[0]), std::fabs(v[1])), larger(std::fabs(v[2]), std::fabs(v[3])));
    seen |= flat.has(i) && infinite_in(type, most);
  }
  if (seen) note(watch, which);
}

__device__ inline void finish(const Operand& out, const Flat& flat, const Values& values, const Watch& watch) {
  look(watch, kWritten, values, flat, out.dtype);
  store(out, flat, values);
}

// ---- Any ----

__device__ inline void look(const Watch& watch, int32_t which, const Values& values, const Shape& shape, const Place& p,
                            DType type = DType::kFloat32) {
  if (watch.first == nullptr) return;
  bool seen = false;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    const bool exists = int64_t{p.quad_of(j / 4)} * 4 + j % 4 < shape.elements;
    seen |= exists && infinite_in(type, std::fabs(values.v[j]));
  }
  if (seen) note(watch, which);
}

__device__ inline void finish(const Operand& out, const Shape& shape, const Place& p, const Values& values,
                              const Watch& watch) {
  look(watch, kWritten, values, shape, p, out.dtype);
  store(out, shape, p, values);
}

}  // namespace
}  // namespace gms
