// SPDX-License-Identifier: MIT
// Tensors of any layout, as (samples, elements) in logical order: draws follow the logical index.
#pragma once

#include "gms/config.h"

namespace gms {

enum class DType : int32_t { kFloat32 = 0, kBFloat16 = 1, kFloat16 = 2 };

// The bits of the least float32 that is infinite in a type.
GMS_HD uint32_t infinite_from(DType type) {
  return type == DType::kFloat32 ? 0x7f800000u : type == DType::kBFloat16 ? 0x7f7f8000u : 0x477ff000u;
}

struct Operand {  // data is null where an op says so, which stands for zeros
  void* data;
  DType dtype;
  bool dense;           // the elements of all samples follow each other; strides are not looked at
  int64_t strides[4];   // of the sample and of the three dimensions inside it, in elements
};

struct Shape {
  int64_t samples, elements;  // elements per sample
  int64_t sizes[3];           // inside a sample, as far as neighbouring dimensions do not merge
};

// A position inside a sample that advances in logical order; after the last element i is sizes[0].
struct Cursor {
  int64_t sample, i, j, k;

  GMS_HD Cursor(const Shape& shape, int64_t sample, int64_t element) : sample(sample) {
    const int64_t row = element / shape.sizes[2];
    k = element - row * shape.sizes[2];
    i = row / shape.sizes[1];
    j = row - i * shape.sizes[1];
  }
  GMS_HD int64_t offset(const int64_t strides[4]) const {
    return sample * strides[0] + i * strides[1] + j * strides[2] + k * strides[3];
  }
  // Advance by `count` elements, not past the end of the row.
  GMS_HD void advance(const Shape& shape, int64_t count = 1) {
    k += count;
    if (k < shape.sizes[2]) return;
    k = 0;
    if (++j < shape.sizes[1]) return;
    j = 0, ++i;
  }
};

}  // namespace gms
