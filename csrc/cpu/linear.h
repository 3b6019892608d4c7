// SPDX-License-Identifier: MIT
// linear_step on a CPU.
#pragma once

#include "cpu/block.h"

namespace gms {
namespace {

constexpr size_t kMostInputs = kMaxTerms + 2;  // x, the data estimate and the terms

struct Constant {  // a weight that all elements share
  float value;
  float operator[](int64_t) const { return value; }
};

template <bool kByElement>
using Weight = std::conditional_t<kByElement, const float*, Constant>;

// Summands of a result: inputs, each times its weight.
template <bool kByElement>
struct Sum {
  size_t count = 0;
  std::array<const float*, kMostInputs> in = {};
  std::array<Weight<kByElement>, kMostInputs> weight = {};

  void add(const float* input, Weight<kByElement> times) { in[count] = input, weight[count++] = times; }
};

// One loop, so that no partial sum goes through memory.
template <bool kByElement, size_t kCount>
void sum_block(const Sum<kByElement> sum, float* out, int64_t size) {
#pragma GCC ivdep  // out may be an input, but no element is read after another is written
  for (int64_t i = 0; i < size; ++i) {
    float total = sum.weight[0][i] * sum.in[0][i];
    GMS_UNROLL
    for (size_t j = 1; j < kCount; ++j) total = fma(sum.weight[j][i], sum.in[j][i], total);
    out[i] = total;
  }
}

template <bool kByElement, size_t... kTerms>
constexpr auto sum_blocks_of(std::index_sequence<kTerms...>) {
  return std::array{sum_block<kByElement, kTerms + 1>...};
}

template <bool kByElement>
void compute(const Sum<kByElement>& sum, float* out, int64_t size) {
  static constexpr auto blocks = sum_blocks_of<kByElement>(std::make_index_sequence<kMostInputs>());
  blocks[sum.count - 1](sum, out, size);
}

// A row of weights for the block's elements: in place, or one sample after the other in `buffer`.
const float* row_of(const Operand& by_element, int row, const Shape& shape, const Span& span, float* buffer) {
  const float* weights = address(by_element, shape, Span{row, 1, span.begin, 0});
  if (span.samples == 1) return weights;
  for (int64_t s = 0; s < span.samples; ++s) std::copy_n(weights, shape.elements, buffer + s * shape.elements);
  return buffer;
}

// E[x_0|x_t] of a block, in `buffer` or in its own output.
const float* estimate_block(const Linear& step, const Shape& shape, const Span& span, const float* x, float* buffer) {
  Buffer outputs, without;
  const float* y = load(step.output, shape, span, outputs);
  const Reading r = step.read();
  if (step.unconditional.data != nullptr) {
    look(step.watch, 0, y, span.size);
    y = guided(y, step.unconditional, r.guidance, shape, span, without, step.watch);
  }
  const bool keeps = step.kept.data != nullptr;
  float* m = keeps ? target(step.kept, shape, span, buffer) : buffer;
  uint32_t most = 0;
#pragma GCC ivdep
  for (int64_t i = 0; i < span.size; ++i) {
    most = std::max(most, size_of(y[i]));
    m[i] = data_estimate(x[i], y[i], r.of_x, r.of_output, r.lo, r.hi);
  }
  if (step.watch.first != nullptr && most >= infinite_from(DType::kFloat32)) note(step.watch, 0);
  if (keeps) finish(step.kept, shape, span, m, step.watch);
  return m;
}

void add_noise(const Linear& step, const Noise& noise, const Shape& shape, const Span& span, float* out) {
  const Draws draws(noise, shape, span, false);
  const float std = step.std();
  for (int64_t i = 0; i < span.size; ++i) out[i] = fma(std, draws.z[i], out[i]);
}

template <bool kByElement>
void linear_blocks(const Operand& x, const Shape& shape, const Linear& step, const Noise& noise, const Where& where) {
  for_each_block(shape, where, [&](const Span& span) {
    Buffer buffers[kMostInputs], rows[kByElement ? kMostInputs + 1 : 1], made;
    const float* in[kMostInputs] = {load(x, shape, span, buffers[0])};  // null where there is no data estimate
    if (step.reads_output()) in[1] = estimate_block(step, shape, span, in[0], buffers[1]);
    if (step.results > 0) {
      for (int j = 0; j < step.terms; ++j) in[j + 2] = load(step.term[j], shape, span, buffers[j + 2]);
    }
    for (int r = 0; r < step.results; ++r) {
      float* out = target(step.result[r], shape, span, made);
      Sum<kByElement> sum;
      for (int j = 0; j < step.terms + 2; ++j) {
        if constexpr (kByElement) {
          if (step.has(r, j)) sum.add(in[j], row_of(step.by_element, step.row(r, j), shape, span, rows[j]));
        } else if (in[j] != nullptr) {
          sum.add(in[j], Constant{step.weight(static_cast<int>(sum.count))});
        }
      }
      compute(sum, out, span.size);
      if (kByElement && step.has(r, Linear::kAdded)) {
        const int row = step.row(r, Linear::kAdded);
        const float* added = row_of(step.by_element, row, shape, span, rows[kByElement ? kMostInputs : 0]);
        for (int64_t i = 0; i < span.size; ++i) out[i] += added[i];
      }
      if (step.noisy && r == 0) add_noise(step, noise, shape, span, out);
      finish(step.result[r], shape, span, out, step.watch);
    }
  });
}

void linear_step(const Operand& x, const Shape& shape, const Linear& step, const Noise& noise, const Where& where) {
  const auto blocks = step.by_element.data != nullptr ? linear_blocks<true> : linear_blocks<false>;
  blocks(x, shape, step, noise, where);
}

}  // namespace
}  // namespace gms
