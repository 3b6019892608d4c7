// SPDX-License-Identifier: MIT
#pragma once

#include "cpu/ops.h"

namespace gms {

// The ops of cpu/ops.h on the current device, queued on `stream`. Throw std::runtime_error if a launch fails.
void cuda_gms_step(Input x, Input e1, Input e2, Input e3, Output out, const Shape&, const Stepping&, const Fitting&,
                   const Noise&, void* stream);
void cuda_sample_mixture(Input mean, Input var, Input third, Output out, const Shape&, float floor, const Fitting&,
                         const Noise&, void* stream);
void cuda_fit_mixture(Input mean, Input var, Input third, Output weight, Output mean_a, Output mean_b, Output out_var,
                      const Shape&, float floor, const Fitting&, void* stream);
void cuda_philox(Output out, const Shape&, const Noise&, uint32_t stream_id, bool normal, void* stream);

}  // namespace gms
