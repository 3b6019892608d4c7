// SPDX-License-Identifier: MIT
// gms_step on a GPU.
#include "cuda/network.cuh"
#include "cuda/table.h"

namespace gms {
namespace {

template <typename A>
struct Watched : A {  // tensors: x, e1, e2, e3, e1 without condition, out
  Watch watch;
};
using StepArguments = Watched<Arguments<6>>;
using QuickStepArguments = Watched<QuickArguments<6>>;

template <Fit kFit, Moments kMoments, bool kCentral>
__global__ void __launch_bounds__(kThreads, 4) step_kernel(const __grid_constant__ StepArguments a) {
  const Place p = any_place(a);
  const Values u = kFit == Fit::kGaussian ? Values{} : uniforms(a.noise, a.shape, p);
  if (p.sample >= a.shape.samples) return;
  const StepCoefficients<float> k = a.scheme.coefficients_from(a.numbers);
  const Values x = load(a.tensors[0], a.shape, p), e1 = load(a.tensors[1], a.shape, p),
               e2 = load(a.tensors[2], a.shape, p), e3 = load(a.tensors[3], a.shape, p);
  look(a.watch, 0, e1, a.shape, p);
  look(a.watch, 1, e2, a.shape, p);
  look(a.watch, 2, e3, a.shape, p);
  const Values to = guided(
      e1, a.tensors[4], a.scheme.guidance, [&](const Operand& t) { return load(t, a.shape, p); },
      [&](const Values& without) { look(a.watch, 0, without, a.shape, p); });
  const Values z = normals(a.noise, a.shape, p);
  Values out;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    out.v[j] = gms_step<kFit, kMoments, kCentral>(x.v[j], e1.v[j], e2.v[j], e3.v[j], to.v[j], z.v[j], u.v[j], k,
                                                  a.scheme.parameters);
  }
  finish(a.tensors[5], a.shape, p, out, a.watch);
}

// If one is not, a thread's results are unreliable: they are computed again one by one, and recorded there.
__device__ void expect_finite(Quick& math, const Values& values) {
  float most = 0.0f;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) most = larger(most, std::fabs(values.v[j]));
  math.not_huge(most);
}

// Not inlined: the compiler would load what it reads into registers before the branch.
template <Fit kFit, bool kCentral, bool kElement, bool kKeyed>
__device__ __noinline__ void redo_step(const QuickStepArguments& a, float shared) {
  const Place p = quick_place(a);
  const Source<kKeyed> source(a.draws, static_cast<uint32_t>(p.sample));
  const auto network = [&](int tensor, int32_t which, int64_t i) {
    const float value = load_one(a.tensors[tensor], i);
    look(a.watch, which, value);
    return value;
  };
  one_by_one(p, Flat(p, a.elements), [&](int64_t i, uint32_t quad, int j) {
    const float z = draw_one(source, kNormals, quad, j, true);
    const float u = kElement ? draw_one(source, kUniforms, quad, j, false) : shared;
    const float x = load_one(a.tensors[0], i), e1 = network(1, 0, i), e2 = network(2, 1, i), e3 = network(3, 2, i);
    const float to = a.tensors[4].data == nullptr ? e1 : led(e1, network(4, 0, i), a.scheme.guidance);
    const float result = gms_step<kFit, Moments::kCumulant, kCentral>(x, e1, e2, e3, to, z, u, a.scheme.coefficients,
                                                                      a.scheme.parameters);
    look(a.watch, kWritten, result, a.tensors[5].dtype);
    store_one(a.tensors[5], i, result);
  });
}

// Least number of blocks per processor, measured on an H200 (docs/decisions.md, 39).
constexpr int blocks_of_step(Fit fit, bool element, DType moments) {
  if (fit == Fit::kFree || element) return kBlocksHeld;
  return moments == DType::kBFloat16 ? 9 : 8;
}

template <Fit kFit, bool kCentral, bool kElement, bool kKeyed, DType kState, DType kMoments>
__global__ void __launch_bounds__(kThreads, blocks_of_step(kFit, kElement, kMoments))
    quick_step_kernel(const __grid_constant__ QuickStepArguments a) {
  constexpr bool kGaussian = kFit == Fit::kGaussian;
  const Place p = quick_place(a);
  const Flat flat(p, a.elements);
  const Fetched<kState> x(a.tensors[0], flat);
  const Fetched<kMoments> e1(a.tensors[1], flat), e2(a.tensors[2], flat, kGaussian),
      e3(a.tensors[kGaussian ? 1 : 3], flat);
  const Source<kKeyed> source(a.draws, static_cast<uint32_t>(p.sample));
  const Uniforms<!kGaussian, kElement> uniforms(source, p);
  Quick math;
  const Values z = draw(source, kNormals, p, true, math);
  const bool watched = a.watch.first != nullptr;
  const Values vx = x.values(), v1 = e1.values(), v2 = e2.values(), v3 = e3.values();
  if (watched) {
    expect_finite(math, hidden(e1).values());
    expect_finite(math, hidden(e2).values());
    if (!kGaussian) {
      expect_finite(math, hidden(e3).values());
    } else if (a.tensors[3].data != nullptr) {  // which the step itself does not need
      expect_finite(math, Fetched<kMoments>(a.tensors[3], flat).values());
    }
  }
  const Values to = guided(
      v1, a.tensors[4], a.scheme.guidance, [&](const Operand& t) { return Fetched<kMoments>(t, flat).values(); },
      [&](const Values& without) {
        if (watched) expect_finite(math, without);
      });
  const Values u = uniforms.values();
  Values out;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) {
    out.v[j] = math.not_huge(gms_step<kFit, Moments::kCumulant, kCentral>(
        vx.v[j], v1.v[j], v2.v[j], v3.v[j], to.v[j], z.v[j], u.v[j], a.scheme.coefficients, a.scheme.parameters, math));
  }
  if (math.reliable()) {
    if (a.tensors[5].dtype == DType::kFloat16)
      look(a.watch, kWritten, out, flat, DType::kFloat16);  // else none is huge
    store(a.tensors[5], flat, out);
  } else {
    redo_step<kFit, kCentral, kElement, kKeyed>(a, u.v[0]);
  }
}

template <Fit kFit>
auto step_kernel_of(const Scheme& s) {
  if (s.moments == Moments::kReleased) {
    return s.central ? step_kernel<kFit, Moments::kReleased, true> : step_kernel<kFit, Moments::kReleased, false>;
  }
  return s.central ? step_kernel<kFit, Moments::kCumulant, true> : step_kernel<kFit, Moments::kCumulant, false>;
}

bool quick(const Operand* t, const Shape& shape, const Scheme& s, const float* numbers, const Noise& noise) {
  return s.moments == Moments::kCumulant && s.fit != Fit::kAdan && numbers == nullptr && drawn(noise) &&
         in_pairs(t[0], t + 1, 4) && in_quads(t, 6, shape) && in_reach(s);
}

template <Fit kFit>
void quick_step(const QuickStepArguments& a, const Shape& shape, const Noise& noise, const Where& where) {
  constexpr bool kGaussian = kFit == Fit::kGaussian;
  with_bool(a.scheme.central, [&](auto central) {
    with_bool(noise.element && !kGaussian, [&](auto element) {
      with_bool(keyed(noise), [&](auto key) {
        with_types(a.tensors[0].dtype, a.tensors[1].dtype, [&](auto state, auto moments) {
          launch_quick("gms_step",
                       quick_step_kernel<kFit, central(), element() && !kGaussian, key(), state(), moments()>, a,
                                                                                       shape.samples, noise, where);
        });
      });
    });
  });
}

}  // namespace

void cuda::gms_step(const Operand tensors[6], const Shape& shape, const Scheme& scheme, const float* numbers,
                    const Noise& noise, const Watch& watch, const Where& where) {
  with_fit(scheme.fit, [&](auto fit) {
    constexpr Fit kFit = decltype(fit)::value;
    if constexpr (kFit != Fit::kAdan) {
      if (quick(tensors, shape, scheme, numbers, noise)) {
        const QuickStepArguments a = {quick_arguments_of<6>(tensors, shape, scheme), watch};
        return quick_step<kFit>(a, shape, noise, where);
      }
    }
    const StepArguments a = {arguments_of<6>(tensors, shape, scheme, numbers, noise), watch};
    launch("gms_step", step_kernel_of<kFit>(scheme), a, where);
  });
}

}  // namespace gms
