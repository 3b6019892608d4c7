// SPDX-License-Identifier: MIT
// linear_step and philox on a GPU.
#include "cuda/network.cuh"
#include "cuda/table.h"

namespace gms {
namespace {

constexpr int kMostQuickTerms = 3;  // what multistep solvers of order four need

struct LinearArguments {
  Operand x;
  Shape shape;
  int64_t first_sample;
  Linear step;
  Noise noise;
};

struct QuickLinearArguments {
  Operand x;
  uint32_t elements, first_sample;
  Linear step;
  Draws draws;
};

// ---- Sums, which start at -0: the first product keeps its bits ----

__device__ void add(Values& sum, const Values& weights, const Values& values) {
#pragma unroll
  for (int j = 0; j < kGroup; ++j) sum.v[j] = fma(weights.v[j], values.v[j], sum.v[j]);
}

__device__ void add(Values& sum, const Values& values) {
#pragma unroll
  for (int j = 0; j < kGroup; ++j) sum.v[j] += values.v[j];
}

__device__ Values estimated(const Reading& r, const Values& x, const Values& y) {
  Values m;
#pragma unroll
  for (int j = 0; j < kGroup; ++j) m.v[j] = data_estimate(x.v[j], y.v[j], r.of_x, r.of_output, r.lo, r.hi);
  return m;
}

// The results of a linear step: sums of the inputs taken, each read once.
template <bool kByElement>
struct Sums {
  static constexpr int kCount = kByElement ? kMaxResults : 1;
  const Linear& step;
  Values of[kCount];
  int taken = 0;

  __device__ explicit Sums(const Linear& step) : step(step) {
#pragma unroll
    for (int r = 0; r < kCount; ++r) of[r] = splat(-0.0f);
  }
  // row: fetches one of the weights by element.
  template <typename F>
  __device__ void take(int column, const Values& values, const F& row) {
    if (!kByElement) add(of[0], splat(step.weight(taken++)), values);
#pragma unroll
    for (int r = 0; kByElement && r < kCount; ++r) {
      if (step.has(r, column)) add(of[r], row(step.row(r, column)), values);
    }
  }
  template <typename F>
  __device__ void take_added(const F& row) {
#pragma unroll
    for (int r = 0; kByElement && r < kCount; ++r) {
      if (step.has(r, Linear::kAdded)) add(of[r], row(step.row(r, Linear::kAdded)));
    }
  }
  template <typename F>
  __device__ void finish(const F& store) const {
#pragma unroll
    for (int r = 0; r < kCount; ++r) {
      if (r < step.results) store(step.result[r], of[r]);
    }
  }
};

// ---- Any ----

__device__ Values estimate(const LinearArguments& a, const Place& p, const Values& x) {
  const Linear& step = a.step;
  const Reading r = step.read();
  const Values y = load(step.output, a.shape, p);
  look(step.watch, 0, y, a.shape, p);
  const Values led = guided(
      y, step.unconditional, r.guidance, [&](const Operand& t) { return load(t, a.shape, p); },
      [&](const Values& without) { look(step.watch, 0, without, a.shape, p); });
  const Values m = estimated(r, x, led);
  if (step.kept.data != nullptr) finish(step.kept, a.shape, p, m, step.watch);
  return m;
}

template <bool kByElement>
__global__ void __launch_bounds__(kThreads) linear_kernel(const __grid_constant__ LinearArguments a) {
  const Place p = any_place(a);
  if (p.sample >= a.shape.samples) return;
  const Linear& step = a.step;
  const auto row = [&](int i) { return load(step.by_element, a.shape, Place{i, p.quad, p.stride}); };
  Sums<kByElement> sums(step);
  const Values x = load(a.x, a.shape, p);
  sums.take(0, x, row);
  if (step.reads_output()) sums.take(1, estimate(a, p, x), row);
  if (step.results == 0) return;
  for (int i = 0; i < step.terms; ++i) sums.take(i + 2, load(step.term[i], a.shape, p), row);
  sums.take_added(row);
  if (step.noisy) add(sums.of[0], splat(step.std()), normals(a.noise, a.shape, p));
  sums.finish([&](const Operand& out, const Values& sum) { finish(out, a.shape, p, sum, step.watch); });
}

// ---- Quick ----

template <bool kNoisy, bool kKeyed>
__device__ Values quick_normals(const Draws& draws, const Place& p) {
  if (!kNoisy) return {};
  return draw(Source<kKeyed>(draws, static_cast<uint32_t>(p.sample)), kNormals, p, true, Quick{});
}

template <DType kOutput>
__device__ Values quick_estimate(const Linear& step, const Flat& flat, const Values& x, const Values& y) {
  look(step.watch, 0, y, flat);
  const Values led = guided(
      y, step.unconditional, step.reading.guidance,
      [&](const Operand& t) { return Fetched<kOutput>(t, flat).values(); },
      [&](const Values& without) { look(step.watch, 0, without, flat); });
  const Values m = estimated(step.reading, x, led);
  if (step.kept.data != nullptr) finish(step.kept, flat, m, step.watch);
  return m;
}

// kOutput: with a network's output, whose type is then kOthers, and that of the terms kState; else kOthers is theirs.
template <bool kOutput, int kTerms, bool kNoisy, bool kKeyed, DType kState, DType kOthers>
__global__ void __launch_bounds__(kThreads, kBlocksHeld)
    quick_linear_kernel(const __grid_constant__ QuickLinearArguments a) {
  constexpr DType kTerm = kOutput ? kState : kOthers;
  constexpr int kInputs = kOutput ? 2 : 1;  // besides the terms
  const Linear& step = a.step;
  const Place p = quick_place(a);
  const Flat flat(p, a.elements);
  const Fetched<kState> x(a.x, flat);
  Fetched<kOthers> y;
  if (kOutput) y = Fetched<kOthers>(step.output, flat);
  Fetched<kTerm> terms[kMostQuickTerms];
#pragma unroll
  for (int i = 0; i < kTerms; ++i) terms[i] = Fetched<kTerm>(step.term[i], flat);
  const Values z = quick_normals<kNoisy, kKeyed>(a.draws, p);
  Values sum = splat(-0.0f);
  add(sum, splat(step.weights[0]), x.values());
  if (kOutput) add(sum, splat(step.weights[1]), quick_estimate<kOthers>(step, flat, x.values(), y.values()));
  if (step.results == 0) return;
#pragma unroll
  for (int i = 0; i < kTerms; ++i) add(sum, splat(step.weights[kInputs + i]), terms[i].values());
  if (kNoisy) add(sum, splat(step.weights[kInputs + kTerms]), z);
  finish(step.result[0], flat, sum, step.watch);
}

// Weights of each element, for any number of terms.
template <bool kOutput, bool kNoisy, DType kState, DType kOthers>
__global__ void __launch_bounds__(kThreads, 4) quick_weighted_kernel(const __grid_constant__ QuickLinearArguments a) {
  constexpr DType kTerm = kOutput ? kState : kOthers;
  const Linear& step = a.step;
  const Place p = quick_place(a);
  const Flat flat(p, a.elements);
  const auto row = [&](int i) {
    Flat in_row = flat;
    in_row.sample = static_cast<uint64_t>(i) * a.elements;
    return Fetched<DType::kFloat32>(step.by_element, in_row).values();
  };
  Sums<true> sums(step);
  const Values x = Fetched<kState>(a.x, flat).values();
  sums.take(0, x, row);
  if (kOutput) {
    const Values y = Fetched<kOthers>(step.output, flat).values();
    sums.take(1, quick_estimate<kOthers>(step, flat, x, y), row);
  }
  for (int i = 0; i < step.terms; ++i) sums.take(i + 2, Fetched<kTerm>(step.term[i], flat).values(), row);
  sums.take_added(row);
  if (kNoisy) add(sums.of[0], splat(step.std()), quick_normals<kNoisy, true>(a.draws, p));
  sums.finish([&](const Operand& out, const Values& sum) { finish(out, flat, sum, step.watch); });
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
  switch (terms) {
    case 0: return body(std::integral_constant<int, 0>());
    case 1: return body(std::integral_constant<int, 1>());
    case 2: return body(std::integral_constant<int, 2>());
    default: return body(std::integral_constant<int, 3>());
  }
}

bool of_one_shape(const Operand& x, const Linear& s, const Shape& shape) {
  const Operand others[] = {x, s.output, s.unconditional, s.kept, s.by_element};
  return in_quads(others, std::size(others), shape) && in_quads(s.term, s.terms, shape) &&
         in_quads(s.result, s.results, shape);
}

// Of the output and the terms, or of the terms alone.
bool of_known_types(const Operand& x, const Linear& s) {
  if (!s.reads_output()) return s.terms > 0 && in_pairs(x, s.term, s.terms);
  const Operand of_network[] = {s.output, s.unconditional};
  return in_pairs(x, of_network, 2) && all_of_type(s.term, s.terms, x.dtype);
}

bool quick(const Operand& x, const Shape& shape, const Linear& s, const Noise& noise) {
  const bool weighted = s.by_element.data != nullptr;
  return (weighted || (s.terms <= kMostQuickTerms && s.results <= 1)) && s.numbers == nullptr &&
         (!s.noisy || drawn(noise)) && of_known_types(x, s) && of_one_shape(x, s, shape);
}

// Calls body(with a network's output, noisy, keyed, type of the state, of the others).
template <typename F>
void with_kind(const Operand& x, const Linear& s, const Noise& noise, const F& body) {
  with_bool(s.reads_output(), [&](auto output) {
    with_bool(s.noisy, [&](auto noisy) {
      with_bool(s.noisy && keyed(noise), [&](auto key) {
        const Operand& others = output() ? s.output : s.term[0];
        with_types(x.dtype, others.dtype, [&](auto state, auto type) { body(output, noisy, key, state, type); });
      });
    });
  });
}

}  // namespace

void cuda::linear_step(const Operand& x, const Shape& shape, const Linear& step, const Noise& noise,
                       const Where& where) {
  const char* const name = "linear_step";
  const bool weighted = step.by_element.data != nullptr;
  if (!quick(x, shape, step, noise)) {
    const LinearArguments a = {x, shape, 0, step, noise};
    return launch(name, weighted ? linear_kernel<true> : linear_kernel<false>, a, where);
  }
  const QuickLinearArguments a = {x, static_cast<uint32_t>(shape.elements), 0, step, {}};
  with_kind(x, step, noise, [&](auto output, auto noisy, auto key, auto state, auto others) {
    const auto launch_of = [&](auto kernel) { launch_quick(name, kernel, a, shape.samples, noise, where); };
    if (weighted) return launch_of(quick_weighted_kernel<output(), noisy(), state(), others()>);
    with_terms(step.results == 0 ? 0 : step.terms, [&](auto terms) {
      constexpr int kTerms = output() ? terms() : std::max(terms(), 1);
      launch_of(quick_linear_kernel < output(), kTerms, noisy(), noisy() && key(), state(), others() >);
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

const Table kCuda = {cuda::gms_step, cuda::sample_mixture, cuda::fit_mixture, cuda::linear_step, cuda::philox};

}  // namespace gms
