// SPDX-License-Identifier: MIT
// Python binding on raw pointers: no torch headers, the GIL released around every loop.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "ops.h"

namespace py = pybind11;

namespace {

// The widest instruction set that this processor runs, or the one named by the caller.
struct Isa {
  const char* name;
  const gms::Table* table;
};

std::vector<Isa> supported() {
  std::vector<Isa> found;
#ifdef GMS_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl")) {
    found.push_back({"avx512", &gms::kAvx512});
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back({"avx2", &gms::kAvx2});
#endif
  found.push_back({"baseline", &gms::kBaseline});
  return found;
}

Isa chosen = supported().front();

void set_instruction_set(const std::string& name) {
  for (const Isa& isa : supported()) {
    if (name == isa.name) {
      chosen = isa;
      return;
    }
  }
  throw std::invalid_argument("instruction set " + name + " is not supported by this processor");
}

// (data_ptr or 0, dtype code) of each tensor.
using Buffers = std::vector<std::pair<uintptr_t, int>>;
// Sizes inside a sample, and for each tensor its four strides, or none where it is dense.
using Layout = std::optional<std::pair<std::array<int64_t, 3>, std::vector<std::optional<std::array<int64_t, 4>>>>>;

struct Tensors {
  gms::Shape shape;
  std::array<gms::Operand, gms::kMaxTerms + 2> operands;

  Tensors(const Buffers& buffers, int64_t samples, int64_t elements, const Layout& layout)
      : shape{samples, elements, {1, 1, elements}}, operands{} {
    if (buffers.size() > operands.size()) throw std::invalid_argument("too many tensors");
    if (layout) std::copy_n(layout->first.begin(), 3, shape.sizes);
    for (size_t i = 0; i < buffers.size(); ++i) {
      operands[i] = {reinterpret_cast<void*>(buffers[i].first), static_cast<gms::DType>(buffers[i].second), true, {}};
      if (!layout || !layout->second.at(i)) continue;
      operands[i].dense = false;
      std::copy_n(layout->second[i]->begin(), 4, operands[i].strides);
    }
  }
};

float narrow(double x) { return static_cast<float>(x); }

// fit: (kind, weight, iterations, lr, eps); numbers: those of StepCoefficients in order, then lo, hi.
gms::Scheme make_scheme(std::tuple<int, double, int, double, double> fit, double floor,
                        const std::array<double, gms::kNumbers + 2>& n, int moments, bool central) {
  const auto& [kind, weight, iterations, lr, eps] = fit;
  const double spread = weight * (1 - weight), skew = spread * (1 - 2 * weight);
  gms::Scheme s = {};
  s.fit = static_cast<gms::Fit>(kind);
  s.parameters = {narrow(weight), narrow(spread), narrow(1 / spread), narrow(1 / skew), narrow(lr), narrow(eps),
                  iterations};
  s.moments = static_cast<gms::Moments>(moments);
  s.central = central;
  s.floor = narrow(floor);
  s.coefficients = {narrow(n[0]), narrow(n[1]), narrow(n[2]), narrow(n[3]), narrow(n[4]),  narrow(n[5]),
                    narrow(n[6]), narrow(n[7]), narrow(n[8]), narrow(n[9]), narrow(n[10]), narrow(n[11])};
  return s;
}

// seeds, step_at, z and u are data pointers, 0 for none.
gms::Noise make_noise(uint64_t seed, uintptr_t seeds, bool shared, uint64_t sample_offset, uint32_t step,
                      uintptr_t step_at, uintptr_t z, uintptr_t u, bool element) {
  return {seed, reinterpret_cast<const uint64_t*>(seeds), shared, sample_offset, step,
          reinterpret_cast<const int64_t*>(step_at), reinterpret_cast<const float*>(z),
          reinterpret_cast<const float*>(u), element};
}

// Where a call runs: (on the GPU, number of threads or stream).
using Device = std::pair<bool, uintptr_t>;

const gms::Table& table_of(const Device& device) {
#ifdef GMS_WITH_CUDA
  if (device.first) return gms::kCuda;
#endif
  if (device.first) throw std::runtime_error("built without CUDA kernels");
  return *chosen.table;
}
gms::Where where_of(const Device& device) {
  if (device.first) return {1, reinterpret_cast<void*>(device.second)};
  return {static_cast<int32_t>(device.second), nullptr};
}

void gms_step(const Device& device, const Buffers& buffers, int64_t samples, int64_t elements, const Layout& layout,
              const gms::Scheme& scheme, uintptr_t numbers, const gms::Noise& noise) {
  const Tensors t(buffers, samples, elements, layout);
  const py::gil_scoped_release release;
  table_of(device).gms_step(t.operands.data(), t.shape, scheme, reinterpret_cast<const float*>(numbers), noise,
                            where_of(device));
}

void sample_mixture(const Device& device, const Buffers& buffers, int64_t samples, int64_t elements,
                    const Layout& layout, const gms::Scheme& scheme, const gms::Noise& noise) {
  const Tensors t(buffers, samples, elements, layout);
  const py::gil_scoped_release release;
  table_of(device).sample_mixture(t.operands.data(), t.shape, scheme, noise, where_of(device));
}

void fit_mixture(const Device& device, const Buffers& buffers, int64_t samples, int64_t elements,
                 const Layout& layout, const gms::Scheme& scheme) {
  const Tensors t(buffers, samples, elements, layout);
  const py::gil_scoped_release release;
  table_of(device).fit_mixture(t.operands.data(), t.shape, scheme, where_of(device));
}

// buffers: x, terms, out.
void affine_noise(const Device& device, const Buffers& buffers, int64_t samples, int64_t elements,
                  const Layout& layout, const std::vector<double>& weights, uintptr_t weights_at, bool noisy,
                  const gms::Noise& noise) {
  const Tensors t(buffers, samples, elements, layout);
  gms::Affine affine = {};
  affine.terms = static_cast<int32_t>(buffers.size()) - 2;
  std::copy_n(t.operands.begin() + 1, affine.terms, affine.term);
  const gms::Operand ends[2] = {t.operands[0], t.operands[buffers.size() - 1]};
  std::transform(weights.begin(), weights.end(), affine.weights, narrow);
  affine.weights_at = reinterpret_cast<const float*>(weights_at);
  affine.noisy = noisy;
  const py::gil_scoped_release release;
  table_of(device).affine_noise(ends, t.shape, affine, noise, where_of(device));
}

void philox(const Device& device, const Buffers& buffers, int64_t samples, int64_t elements, const Layout& layout,
            const gms::Noise& noise, uint32_t stream, bool normal) {
  const Tensors t(buffers, samples, elements, layout);
  const py::gil_scoped_release release;
  table_of(device).philox(t.operands[0], t.shape, noise, stream, normal, where_of(device));
}

float elementary(const std::string& name, float x) {
  float s, c;
  gms::sincos_turn(x, s, c);
  if (name == "sin_turn") return s;
  if (name == "cos_turn") return c;
  if (name == "minus_two_log") return gms::minus_two_log(x);
  if (name == "cbrt") return gms::cbrt_newton(x);
  throw std::invalid_argument("no elementary function " + name);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of gms_fast; called through gms_fast.ops, which checks and marshals arguments.";
  // module_local: tests load a second build of this module.
  py::class_<gms::Scheme>(m, "Scheme", py::module_local(), "Which fit and which step, prepared for many calls.").def(py::init(&make_scheme));
  py::class_<gms::Noise>(m, "Noise", py::module_local(), "Where the draws of a call come from.").def(py::init(&make_noise));
  m.def("gms_step", &gms_step);
  m.def("sample_mixture", &sample_mixture);
  m.def("fit_mixture", &fit_mixture);
  m.def("affine_noise", &affine_noise);
  m.def("philox", &philox);
  m.def("elementary", &elementary, "One of the float32 functions of csrc/gms/elementary.h, for tests.");
  m.def("instruction_set", [] { return chosen.name; });
  m.def("set_instruction_set", &set_instruction_set);
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const Isa& isa : supported()) names.emplace_back(isa.name);
    return py::tuple(py::cast(names));
  });
  m.attr("max_terms") = gms::kMaxTerms;
#ifdef GMS_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
}
