// SPDX-License-Identifier: MIT
// sample_mixture and fit_mixture on a GPU.
#include "cuda/kernel.cuh"
#include "cuda/table.h"

namespace gms {
namespace {

// Tensors: mean, var, third, out.
template <Fit kFit>
__global__ void __launch_bounds__(kThreads, 4) sample_kernel(const __grid_constant__ Arguments<4> a) {
  const Place p = any_place(a);
  const Values u = kFit == Fit::kGaussian ? Values{} : uniforms(a.noise, a.shape, p);
  if (p.sample >= a.shape.samples) return;
  const Values mean = load(a.tensors[0], a.shape, p), var = load(a.tensors[1], a.shape, p),
               third = load(a.tensors[2], a.shape, p);
  const Values z = normals(a.noise, a.shape, p);
  Values out;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    out.v[j] =
        sample_mixture<kFit>(mean.v[j], var.v[j], third.v[j], a.scheme.floor, z.v[j], u.v[j], a.scheme.parameters);
  }
  store(a.tensors[3], a.shape, p, out);
}

template <Fit kFit, bool kElement, bool kKeyed>
__device__ __noinline__ void redo_sample(const QuickArguments<4>& a, const Place p, float shared) {
  const Source<kKeyed> source(a.draws, static_cast<uint32_t>(p.sample));
  one_by_one(p, Flat(p, a.elements), [&](int64_t i, uint32_t quad, int j) {
    const float z = draw_one(source, kNormals, quad, j, true);
    const float u = kElement ? draw_one(source, kUniforms, quad, j, false) : shared;
    store_one(a.tensors[3], i,
              sample_mixture<kFit>(load_one(a.tensors[0], i), load_one(a.tensors[1], i), load_one(a.tensors[2], i),
                                   a.scheme.floor, z, u, a.scheme.parameters));
  });
}

template <Fit kFit, bool kElement, bool kKeyed, DType kMean, DType kOthers>
__global__ void __launch_bounds__(kThreads, kBlocksHeld)
    quick_sample_kernel(const __grid_constant__ QuickArguments<4> a) {
  const Place p = quick_place(a);
  const Flat flat(p, a.elements);
  const Fetched<kMean> mean(a.tensors[0], flat);
  const Fetched<kOthers> var(a.tensors[1], flat), third(a.tensors[2], flat);
  const Source<kKeyed> source(a.draws, static_cast<uint32_t>(p.sample));
  const Uniforms<kFit != Fit::kGaussian, kElement> uniforms(source, p);
  Quick math;
  const Values z = draw(source, kNormals, p, true, math), u = uniforms.values();
  const Values m = mean.values(), v = var.values(), k = third.values();
  Values out;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    out.v[j] = math.not_huge(
        sample_mixture<kFit>(m.v[j], v.v[j], k.v[j], a.scheme.floor, z.v[j], u.v[j], a.scheme.parameters, math));
  }
  if (math.reliable()) {
    store(a.tensors[3], flat, out);
  } else {
    redo_sample<kFit, kElement, kKeyed>(a, p, u.v[0]);
  }
}

// Tensors: mean, var, third, weight, mean_a, mean_b, var.
template <Fit kFit>
__global__ void __launch_bounds__(kThreads) fit_kernel(const __grid_constant__ Arguments<7> a) {
  const Place p = any_place(a);
  if (p.sample >= a.shape.samples) return;
  const Values mean = load(a.tensors[0], a.shape, p), var = load(a.tensors[1], a.shape, p),
               third = load(a.tensors[2], a.shape, p);
  Values out[4];
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    const Mixture<float> fit =
        fit_mixture_above<kFit>(mean.v[j], var.v[j], third.v[j], a.scheme.floor, a.scheme.parameters);
    out[0].v[j] = fit.weight, out[1].v[j] = fit.mean_a, out[2].v[j] = fit.mean_b, out[3].v[j] = fit.var;
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) store(a.tensors[3 + i], a.shape, p, out[i]);
}

template <Fit kFit>
__device__ __noinline__ void redo_fit(const QuickArguments<7>& a, const Place p) {
  one_by_one(p, Flat(p, a.elements), [&](int64_t i, uint32_t, int) {
    const Mixture<float> fit = fit_mixture_above<kFit>(load_one(a.tensors[0], i), load_one(a.tensors[1], i),
                                                       load_one(a.tensors[2], i), a.scheme.floor, a.scheme.parameters);
    store_one(a.tensors[3], i, fit.weight), store_one(a.tensors[4], i, fit.mean_a);
    store_one(a.tensors[5], i, fit.mean_b), store_one(a.tensors[6], i, fit.var);
  });
}

template <Fit kFit, DType kType>
__global__ void __launch_bounds__(kThreads, kBlocksHeld) quick_fit_kernel(const __grid_constant__ QuickArguments<7> a) {
  const Place p = quick_place(a);
  const Flat flat(p, a.elements);
  const Fetched<kType> mean(a.tensors[0], flat), var(a.tensors[1], flat), third(a.tensors[2], flat);
  const Values m = mean.values(), v = var.values(), k = third.values();
  Quick math;
  Values out[4];
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    const Mixture<float> fit =
        fit_mixture_above<kFit>(m.v[j], v.v[j], k.v[j], a.scheme.floor, a.scheme.parameters, math);
    out[0].v[j] = math.not_tiny(fit.weight);
    out[1].v[j] = math.not_huge(fit.mean_a), out[2].v[j] = math.not_huge(fit.mean_b), out[3].v[j] = fit.var;
  }
  if (!math.reliable()) return redo_fit<kFit>(a, p);
#pragma unroll
  for (int i = 0; i < 4; ++i) store<kType>(a.tensors[3 + i], flat, out[i]);
}

}  // namespace

void cuda::sample_mixture(const Operand tensors[4], const Shape& shape, const Scheme& scheme, const Noise& noise,
                          const Where& where) {
  const bool quick = scheme.fit != Fit::kAdan && drawn(noise) && in_pairs(tensors[0], tensors + 1, 2) &&
                     in_quads(tensors, 4, shape) && in_reach(scheme);
  with_fit(scheme.fit, [&](auto fit) {
    constexpr Fit kFit = decltype(fit)::value;
    if (!quick) {
      return launch("sample_mixture", sample_kernel<kFit>, arguments_of<4>(tensors, shape, scheme, nullptr, noise),
                    where);
    }
    if constexpr (kFit != Fit::kAdan) {
      constexpr bool kGaussian = kFit == Fit::kGaussian;
      const auto arguments = quick_arguments_of<4>(tensors, shape, scheme);
      with_bool(noise.element && !kGaussian, [&](auto element) {
        with_bool(keyed(noise), [&](auto key) {
          with_types(tensors[0].dtype, tensors[1].dtype, [&](auto mean, auto others) {
            launch_quick("sample_mixture",
                         quick_sample_kernel<kFit, element() && !kGaussian, key(), mean(), others()>, arguments,
                                                                                shape.samples, noise, where);
          });
        });
      });
    }
  });
}

void cuda::fit_mixture(const Operand tensors[7], const Shape& shape, const Scheme& scheme, const Where& where) {
  const DType type = tensors[0].dtype;
  const bool quick = all_of_type(tensors, 7, type) && in_quads(tensors, 7, shape) && in_reach(scheme);
  with_fit(scheme.fit, [&](auto fit) {
    constexpr Fit kFit = decltype(fit)::value;
    if constexpr (kFit != Fit::kAdan) {
      if (quick) {
        return with_type(type, [&](auto t) {
          launch_quick("fit_mixture", quick_fit_kernel<kFit, t()>, quick_arguments_of<7>(tensors, shape, scheme),
                       shape.samples, Noise{}, where);
        });
      }
    }
    launch("fit_mixture", fit_kernel<kFit>, arguments_of<7>(tensors, shape, scheme, nullptr, Noise{}), where);
  });
}

}  // namespace gms
