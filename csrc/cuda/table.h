// SPDX-License-Identifier: MIT
// The ops on a GPU, one file a family, and their table.
#pragma once

#include "ops.h"

namespace gms {
namespace cuda {

void gms_step(const Operand tensors[6], const Shape&, const Scheme&, const float* numbers, const Noise&, const Watch&,
              const Where&);
void sample_mixture(const Operand tensors[4], const Shape&, const Scheme&, const Noise&, const Where&);
void fit_mixture(const Operand tensors[7], const Shape&, const Scheme&, const Where&);
void linear_step(const Operand& x, const Shape&, const Linear&, const Noise&, const Where&);
void philox(const Operand& out, const Shape&, const Noise&, uint32_t stream, bool normal, const Where&);

}  // namespace cuda
}  // namespace gms
