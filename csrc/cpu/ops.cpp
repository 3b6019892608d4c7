// SPDX-License-Identifier: MIT
// The CPU loops over blocks: draw the noise of a block, load its inputs, fit and draw, store. Compiled once per
// instruction set, with GMS_TABLE naming the table.
#include "cpu/block.h"
#include "cpu/linear.h"

namespace gms {
namespace {

struct Fitted {  // the released fit of one block, iteration by iteration for a few registers of elements together
  static constexpr int kTogether = 4, kStride = kTogether * kLanes;
  float mean_a[kBlock], mean_b[kBlock], var[kBlock];

  Fitted(const float* mean, const float* variance, const float* third, int64_t size, const FitParameters<float>& p) {
    for (int64_t i = 0; i < size; i += kStride) {
      const auto start = [&](int64_t j) {
        return Adan<Lanes>(lanes_of(mean, j, size), lanes_of(variance, j, size), lanes_of(third, j, size));
      };
      Adan<Lanes> fits[kTogether] = {start(i), start(i + kLanes), start(i + 2 * kLanes), start(i + 3 * kLanes)};
      AdanClock<float> clock;
      for (int32_t k = 0; k < p.iterations; ++k) {
        const AdanRates<float> rates = clock.next(p);
        GMS_UNROLL
        for (Adan<Lanes>& fit : fits) fit.iterate(p.weight, k == 0, rates);
      }
      for (int r = 0; r < kTogether; ++r) {
        const Mixture<Lanes> fit = fits[r].mixture(p.weight);
        for (int j = 0; j < kLanes; ++j) {
          const int64_t at = i + r * kLanes + j;
          mean_a[at] = fit.mean_a[j], mean_b[at] = fit.mean_b[j], var[at] = fit.var[j];
        }
      }
    }
  }

  static Lanes lanes_of(const float* values, int64_t begin, int64_t size) {
    Lanes lanes = {};
    for (int64_t j = begin; j < std::min(begin + kLanes, size); ++j) lanes[j - begin] = values[j];
    return lanes;
  }

  // Of variances that may be negative.
  static Fitted above_zero(const float* mean, const float* variance, const float* third, int64_t size,
                           const FitParameters<float>& p) {
    float var[kBlock];
    for (int64_t i = 0; i < size; ++i) var[i] = base_of<Fit::kAdan>(variance[i], 0.0f);
    return Fitted(mean, var, third, size, p);
  }

  // The components that u chooses.
  void draw_to(float* out, int64_t size, const Draws& draws, float weight, float most) const {
    for (int64_t i = 0; i < size; ++i) {
      const Component<float> c = {draws.u[i] < weight ? mean_a[i] : mean_b[i], root(at_most(var[i], most))};
      out[i] = draw(c, draws.z[i]);
    }
  }
};

// The blocks take their numbers by value: through a reference, any written element might change them.

template <Fit kFit, Moments kMoments, bool kCentral>
void step_block(const float* const in[5], float* out, int64_t size, const StepCoefficients<float> k,
                const FitParameters<float> p, const Draws& draws) {
  const float *x = in[0], *e1 = in[1], *e2 = in[2], *e3 = in[3], *to = in[4], *z = draws.z, *u = draws.u;
  if constexpr (kFit == Fit::kAdan) {
    float mean[kBlock] = {}, var[kBlock] = {}, third[kBlock] = {};
    for (int64_t i = 0; i < size; ++i) {
      const StepMoments<float> s = moments_of_step<kMoments, kCentral>(x[i], e1[i], e2[i], e3[i], to[i], k);
      mean[i] = s.mean, var[i] = s.base + s.excess, third[i] = s.third;
    }
    Fitted(mean, var, third, size, p).draw_to(out, size, draws, p.weight, k.var_max);
  } else {
#pragma GCC ivdep  // out may be an input, but no element is read after another is written
    for (int64_t i = 0; i < size; ++i) {
      out[i] = gms_step<kFit, kMoments, kCentral>(x[i], e1[i], e2[i], e3[i], to[i], z[i], u[i], k, p);
    }
  }
}

using StepBlock = void (*)(const float* const[5], float*, int64_t, StepCoefficients<float>, FitParameters<float>,
                           const Draws&);

template <Fit kFit>
StepBlock step_block_of(const Scheme& s) {
  if (s.moments == Moments::kReleased) {
    return s.central ? step_block<kFit, Moments::kReleased, true> : step_block<kFit, Moments::kReleased, false>;
  }
  return s.central ? step_block<kFit, Moments::kCumulant, true> : step_block<kFit, Moments::kCumulant, false>;
}

void gms_step(const Operand tensors[6], const Shape& shape, const Scheme& scheme, const float* numbers,
              const Noise& noise, const Watch& watch, const Where& where) {
  StepBlock block = nullptr;
  with_fit(scheme.fit, [&](auto fit) { block = step_block_of<decltype(fit)::value>(scheme); });
  const StepCoefficients<float> k = scheme.coefficients_from(numbers);
  for_each_block(shape, where, [&](const Span& span) {
    const Draws draws(noise, shape, span, scheme.fit != Fit::kGaussian);
    Buffer buffers[6];
    const float* in[5];
    for (int j = 0; j < 4; ++j) in[j] = load(tensors[j], shape, span, buffers[j]);
    for (int j = 1; j < 4; ++j) {
      if (tensors[j].data != nullptr) look(watch, j - 1, in[j], span.size);
    }
    in[4] = guided(in[1], tensors[4], scheme.guidance, shape, span, buffers[4], watch);
    float* out = target(tensors[5], shape, span, buffers[5]);
    block(in, out, span.size, k, scheme.parameters, draws);
    finish(tensors[5], shape, span, out, watch);
  });
}

template <Fit kFit>
void sample_block(const float* const in[3], float* out, int64_t size, const float floor, const FitParameters<float> p,
                  const Draws& draws) {
  const float *mean = in[0], *var = in[1], *third = in[2], *z = draws.z, *u = draws.u;
  if constexpr (kFit == Fit::kAdan) {
    Fitted::above_zero(mean, var, third, size, p).draw_to(out, size, draws, p.weight, INFINITY);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < size; ++i) out[i] = sample_mixture<kFit>(mean[i], var[i], third[i], floor, z[i], u[i], p);
  }
}

void sample_mixture(const Operand tensors[4], const Shape& shape, const Scheme& scheme, const Noise& noise,
                    const Where& where) {
  with_fit(scheme.fit, [&](auto fit) {
    for_each_block(shape, where, [&](const Span& span) {
      const Draws draws(noise, shape, span, scheme.fit != Fit::kGaussian);
      float buffers[4][kBlock];
      const float* in[3];
      for (int j = 0; j < 3; ++j) in[j] = load(tensors[j], shape, span, buffers[j]);
      float* out = target(tensors[3], shape, span, buffers[3]);
      sample_block<decltype(fit)::value>(in, out, span.size, scheme.floor, scheme.parameters, draws);
      store(tensors[3], shape, span, out);
    });
  });
}

// Not inlined: the compiler would then lose the fact that the seven do not overlap.
template <Fit kFit>
__attribute__((noinline)) void fit_block(const float* __restrict mean, const float* __restrict var,
                                         const float* __restrict third, float* __restrict weight,
                                         float* __restrict mean_a, float* __restrict mean_b, float* __restrict rest,
                                         int64_t size, const float floor, const FitParameters<float> p) {
  if constexpr (kFit == Fit::kAdan) {
    const Fitted fit = Fitted::above_zero(mean, var, third, size, p);
    std::fill_n(weight, size, p.weight);
    std::copy_n(fit.mean_a, size, mean_a);
    std::copy_n(fit.mean_b, size, mean_b);
    std::copy_n(fit.var, size, rest);
  } else {
    for (int64_t i = 0; i < size; ++i) {
      const Mixture<float> fit = fit_mixture_above<kFit>(mean[i], var[i], third[i], floor, p);
      weight[i] = fit.weight, mean_a[i] = fit.mean_a, mean_b[i] = fit.mean_b, rest[i] = fit.var;
    }
  }
}

void fit_mixture(const Operand tensors[7], const Shape& shape, const Scheme& scheme, const Where& where) {
  with_fit(scheme.fit, [&](auto fit) {
    for_each_block(shape, where, [&](const Span& span) {
      float buffers[7][kBlock];
      const float* in[3];
      float* out[4];
      for (int j = 0; j < 3; ++j) in[j] = load(tensors[j], shape, span, buffers[j]);
      for (int j = 0; j < 4; ++j) out[j] = target(tensors[3 + j], shape, span, buffers[3 + j]);
      fit_block<decltype(fit)::value>(in[0], in[1], in[2], out[0], out[1], out[2], out[3], span.size, scheme.floor,
                                      scheme.parameters);
      for (int j = 0; j < 4; ++j) store(tensors[3 + j], shape, span, out[j]);
    });
  });
}

void philox(const Operand& out, const Shape& shape, const Noise& noise, uint32_t stream, bool normal,
            const Where& where) {
  for_each_block(shape, where, [&](const Span& span) {
    float values[kBlock];
    normal ? fill_noise<true>(noise, stream, span, values) : fill_noise<false>(noise, stream, span, values);
    std::copy_n(values, in_place(out) ? span.size : 0, target(out, shape, span, values));
    store(out, shape, span, values);
  });
}

}  // namespace

extern const Table GMS_TABLE;
const Table GMS_TABLE = {gms_step, sample_mixture, fit_mixture, linear_step, philox};

}  // namespace gms
