// SPDX-License-Identifier: MIT
// affine_noise and philox on a GPU.
#include "cuda/kernel.cuh"
#include "cuda/table.h"

namespace gms {
namespace {

constexpr int kMostQuickTerms = 3;  // besides x: what multistep solvers of order three need

struct AffineArguments {
  Operand tensors[2];  // x, out
  Shape shape;
  int64_t first_sample;
  Affine affine;
  Noise noise;
};

struct QuickAffineArguments {
  Operand tensors[2];
  uint32_t elements, first_sample;
  Operand term[kMostQuickTerms];
  float weights[kMostQuickTerms + 2];
  Operand by_element;
  Draws draws;
};

__device__ void add(Values& sum, const Values& weights, const Values& values) {
#pragma unroll
  for (int j = 0; j < kGroup; ++j) sum.v[j] = fma(weights.v[j], values.v[j], sum.v[j]);
}

__device__ void multiply(Values& values, const Values& by) {
#pragma unroll
  for (int j = 0; j < kGroup; ++j) values.v[j] *= by.v[j];
}

__device__ void add(Values& sum, const Values& values) {
#pragma unroll
  for (int j = 0; j < kGroup; ++j) sum.v[j] += values.v[j];
}

template <bool kByElement>
__global__ void __launch_bounds__(kThreads) affine_kernel(const __grid_constant__ AffineArguments a) {
  const Place p = any_place(a);
  if (p.sample >= a.shape.samples) return;
  const auto weights = [&](int row) {
    return kByElement ? load(a.affine.by_element, a.shape, Place{row, p.quad, p.stride}) : splat(a.affine.weight(row));
  };
  Values sum = load(a.tensors[0], a.shape, p);
  multiply(sum, weights(0));
  for (int i = 0; i < a.affine.terms; ++i) add(sum, weights(i + 1), load(a.affine.term[i], a.shape, p));
  if (kByElement) add(sum, weights(a.affine.terms + 1));
  if (a.affine.noisy) add(sum, splat(a.affine.weight(a.affine.terms + 1)), normals(a.noise, a.shape, p));
  store(a.tensors[1], a.shape, p, sum);
}

template <bool kNoisy, bool kKeyed>
__device__ Values quick_normals(const Draws& draws, const Place& p) {
  if (!kNoisy) return {};
  return draw(Source<kKeyed>(draws, static_cast<uint32_t>(p.sample)), kNormals, p, true, Quick{});
}

template <int kTerms, bool kNoisy, bool kKeyed, DType kState, DType kOthers>
__global__ void __launch_bounds__(kThreads, kBlocksHeld)
    quick_affine_kernel(const __grid_constant__ QuickAffineArguments a) {
  const Place p = quick_place(a);
  const Flat flat(p, a.elements);
  const Fetched<kState> x(a.tensors[0], flat);
  const Fetched<kOthers> first(a.term[0], flat), second(a.term[kTerms > 1 ? 1 : 0], flat),
      third(a.term[kTerms > 2 ? 2 : 0], flat);
  const Values z = quick_normals<kNoisy, kKeyed>(a.draws, p);
  Values sum = x.values();
  multiply(sum, splat(a.weights[0]));
  add(sum, splat(a.weights[1]), first.values());
  if (kTerms > 1) add(sum, splat(a.weights[2]), second.values());
  if (kTerms > 2) add(sum, splat(a.weights[3]), third.values());
  if (kNoisy) add(sum, splat(a.weights[kTerms + 1]), z);
  store(a.tensors[1], flat, sum);
}

// Weights of each element, in float32.
template <int kTerms, bool kNoisy, bool kKeyed, DType kState, DType kOthers>
__global__ void __launch_bounds__(kThreads, 4) quick_weighted_kernel(const __grid_constant__ QuickAffineArguments a) {
  const Place p = quick_place(a);
  const Flat flat(p, a.elements);
  const auto weights = [&](int row) {
    Flat in_row = flat;
    in_row.sample = static_cast<uint64_t>(row) * a.elements;
    return Fetched<DType::kFloat32>(a.by_element, in_row).values();
  };
  Values sum = Fetched<kState>(a.tensors[0], flat).values();
  multiply(sum, weights(0));
#pragma unroll
  for (int i = 0; i < kTerms; ++i) add(sum, weights(i + 1), Fetched<kOthers>(a.term[i], flat).values());
  add(sum, weights(kTerms + 1));
  if (kNoisy) add(sum, splat(a.weights[kTerms + 1]), quick_normals<kNoisy, kKeyed>(a.draws, p));
  store(a.tensors[1], flat, sum);
}

struct PhiloxArguments {
  Operand out;
  Shape shape;
  int64_t first_sample;
  Noise noise;
  uint32_t stream;
  bool normal;
};

struct QuickPhiloxArguments {
  Operand out;
  uint32_t elements, first_sample;
  uint32_t stream;
  Draws draws;
};

__global__ void __launch_bounds__(kThreads) philox_kernel(const __grid_constant__ PhiloxArguments a) {
  const Place p = any_place(a);
  if (p.sample >= a.shape.samples) return;
  store(a.out, a.shape, p, draw(a.noise.counter(p.sample, 0), a.stream, p, a.normal, Ieee{}));
}

template <bool kNormal, bool kKeyed, DType kType>
__global__ void __launch_bounds__(kThreads) quick_philox_kernel(const __grid_constant__ QuickPhiloxArguments a) {
  const Place p = quick_place(a);
  const Source<kKeyed> source(a.draws, static_cast<uint32_t>(p.sample));
  store<kType>(a.out, Flat(p, a.elements), draw(source, a.stream, p, kNormal, Quick{}));
}

template <typename F>
void with_terms(int terms, const F& body) {
  if (terms == 1) return body(std::integral_constant<int, 1>());
  if (terms == 2) return body(std::integral_constant<int, 2>());
  body(std::integral_constant<int, 3>());
}

bool quick(const Operand tensors[2], const Shape& shape, const Affine& affine, const Noise& noise) {
  return affine.terms >= 1 && affine.terms <= kMostQuickTerms && affine.weights_at == nullptr && drawn(noise) &&
         in_pairs(tensors[0], affine.term, affine.terms) && in_quads(tensors, 2, shape) &&
         in_quads(affine.term, affine.terms, shape) && in_quads(&affine.by_element, 1, shape);
}

}  // namespace

void cuda::affine_noise(const Operand tensors[2], const Shape& shape, const Affine& affine, const Noise& noise,
                        const Where& where) {
  const bool weighted = affine.by_element.data != nullptr;
  if (!quick(tensors, shape, affine, noise)) {
    const AffineArguments a = {{tensors[0], tensors[1]}, shape, 0, affine, noise};
    return launch("affine_noise", weighted ? affine_kernel<true> : affine_kernel<false>, a, where);
  }
  QuickAffineArguments a = {
      {tensors[0], tensors[1]}, static_cast<uint32_t>(shape.elements), 0, {}, {}, affine.by_element, {}};
  std::copy_n(affine.term, affine.terms, a.term);
  std::copy_n(affine.weights, affine.terms + 2, a.weights);
  with_terms(affine.terms, [&](auto terms) {
    const auto launch_of = [&](auto kernel) { launch_quick("affine_noise", kernel, a, shape.samples, noise, where); };
    with_bool(affine.noisy, [&](auto noisy) {
      with_bool(affine.noisy && keyed(noise), [&](auto key) {
        constexpr bool kKeyed = noisy() && key();
        with_types(tensors[0].dtype, affine.term[0].dtype, [&](auto state, auto others) {
          if (weighted) return launch_of(quick_weighted_kernel<terms(), noisy(), kKeyed, state(), others()>);
          launch_of(quick_affine_kernel<terms(), noisy(), kKeyed, state(), others()>);
        });
      });
    });
  });
}

void cuda::philox(const Operand& out, const Shape& shape, const Noise& noise, uint32_t stream, bool normal,
                  const Where& where) {
  if (!in_quads(&out, 1, shape)) {
    return launch("philox", philox_kernel, PhiloxArguments{out, shape, 0, noise, stream, normal}, where);
  }
  const QuickPhiloxArguments a = {out, static_cast<uint32_t>(shape.elements), 0, stream, {}};
  with_bool(normal, [&](auto is_normal) {
    with_bool(keyed(noise), [&](auto key) {
      with_type(out.dtype, [&](auto type) {
        launch_quick("philox", quick_philox_kernel<is_normal(), key(), type()>, a, shape.samples, noise, where);
      });
    });
  });
}

const Table kCuda = {cuda::gms_step, cuda::sample_mixture, cuda::fit_mixture, cuda::affine_noise, cuda::philox};

}  // namespace gms
