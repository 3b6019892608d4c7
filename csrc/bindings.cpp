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
#include "tensors.h"

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

// Sizes inside a sample, and for each tensor its four strides, or none where it is dense.
using Layout = std::optional<std::pair<std::array<int64_t, 3>, std::vector<std::optional<std::array<int64_t, 4>>>>>;

struct Tensors {
  gms::Shape shape;
  size_t count;
  std::array<gms::Operand, gms::kMaxTerms + 2> operands;

  // Checked tensors, or None; the first sets the shape.
  Tensors(const py::tuple& given, const Layout& layout)
      : shape(tensors::shape_of(given[0].ptr())), count(given.size()), operands{} {
    if (count > operands.size()) throw std::invalid_argument("too many tensors");
    if (layout) std::copy_n(layout->first.begin(), 3, shape.sizes);
    for (size_t i = 0; i < count; ++i) {
      operands[i] = tensors::operand_of(given[i].ptr());
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
  const auto& [kind, given, iterations, lr, eps] = fit;
  const double weight = narrow(given);  // the one that a mixture stores: with it the moments are right
  const double spread = weight * (1 - weight), skew = spread * (1 - 2 * weight);
  gms::Scheme s = {};
  s.fit = static_cast<gms::Fit>(kind);
  s.parameters = {narrow(weight), narrow(spread), narrow(1 / spread), narrow(1 / skew),
                  narrow(lr),     narrow(eps),    iterations};
  s.moments = static_cast<gms::Moments>(moments);
  s.central = central;
  s.floor = narrow(floor);
  s.coefficients = {narrow(n[0]), narrow(n[1]), narrow(n[2]), narrow(n[3]), narrow(n[4]),  narrow(n[5]),
                    narrow(n[6]), narrow(n[7]), narrow(n[8]), narrow(n[9]), narrow(n[10]), narrow(n[11])};
  return s;
}

// The fields of a `Draws` of gms_fast/ops/types.py.
enum DrawsField { kSeed, kStep, kSampleOffset, kComponent, kZ, kU };

bool is(PyObject* text, const char* wanted) { return PyUnicode_CompareWithASCIIString(text, wanted) == 0; }

// Checked draws: seed and step are integers, or tensors that hold them.
gms::Noise noise_of(const py::tuple& draws) {
  const auto field = [&](DrawsField i) { return PyTuple_GET_ITEM(draws.ptr(), i); };
  gms::Noise n = {};
  if (PyLong_Check(field(kSeed))) {
    n.seed = PyLong_AsUnsignedLongLongMask(field(kSeed));
  } else {
    n.seeds = tensors::data_of<uint64_t>(field(kSeed));
    n.shared = tensors::dimensions_of(field(kSeed)) == 0;
  }
  if (PyLong_Check(field(kStep))) {
    n.step = static_cast<uint32_t>(PyLong_AsUnsignedLongMask(field(kStep)));
  } else {
    n.step_at = tensors::data_of<int64_t>(field(kStep));
  }
  n.sample_offset = PyLong_AsUnsignedLongLongMask(field(kSampleOffset));
  n.element = is(field(kComponent), "element");
  n.z = tensors::data_of<float>(field(kZ));
  n.u = tensors::data_of<float>(field(kU));
  if (PyErr_Occurred()) throw py::error_already_set();
  return n;
}

// Every op starts with: whether it runs on the GPU, the stream there or the number of threads, the tensors and their
// layout.
const gms::Table& table_of(bool gpu) {
#ifdef GMS_WITH_CUDA
  if (gpu) return gms::kCuda;
#endif
  if (gpu) throw std::runtime_error("built without CUDA kernels");
  return *chosen.table;
}
gms::Where where_of(bool gpu, uintptr_t where) {
  if (gpu) return {1, reinterpret_cast<void*>(where)};
  return {static_cast<int32_t>(where), nullptr};
}

void gms_step(bool gpu, uintptr_t where, const py::tuple& given, const Layout& layout, const gms::Scheme& scheme,
              py::handle numbers, const py::tuple& draws) {
  const Tensors t(given, layout);
  const gms::Noise noise = noise_of(draws);
  const float* const at = tensors::data_of<float>(numbers.ptr());
  const py::gil_scoped_release release;
  table_of(gpu).gms_step(t.operands.data(), t.shape, scheme, at, noise, where_of(gpu, where));
}

void sample_mixture(bool gpu, uintptr_t where, const py::tuple& given, const Layout& layout, const gms::Scheme& scheme,
                    const py::tuple& draws) {
  const Tensors t(given, layout);
  const gms::Noise noise = noise_of(draws);
  const py::gil_scoped_release release;
  table_of(gpu).sample_mixture(t.operands.data(), t.shape, scheme, noise, where_of(gpu, where));
}

void fit_mixture(bool gpu, uintptr_t where, const py::tuple& given, const Layout& layout, const gms::Scheme& scheme) {
  const Tensors t(given, layout);
  const py::gil_scoped_release release;
  table_of(gpu).fit_mixture(t.operands.data(), t.shape, scheme, where_of(gpu, where));
}

// Weights in the order x, terms, noise; `numbers` has them, or None.
gms::Affine affine_of(const std::vector<double>& weights, size_t terms, py::handle numbers, bool noisy) {
  gms::Affine affine = {};
  affine.terms = static_cast<int32_t>(terms);
  if (weights.size() > std::size(affine.weights)) throw std::invalid_argument("too many weights");
  std::transform(weights.begin(), weights.end(), affine.weights, narrow);
  float* const at = tensors::data_of<float>(numbers.ptr());
  const bool by_element = at != nullptr && tensors::dimensions_of(numbers.ptr()) > 1;
  affine.weights_at = by_element ? nullptr : at;
  affine.by_element = {by_element ? at : nullptr, gms::DType::kFloat32, true, {}};
  affine.noisy = noisy;
  return affine;
}

// tensors: x, terms, out.
void affine_noise(bool gpu, uintptr_t where, const py::tuple& given, const Layout& layout,
                  const std::vector<double>& weights, py::handle numbers, bool noisy, const py::tuple& draws) {
  const Tensors t(given, layout);
  gms::Affine affine = affine_of(weights, t.count - 2, numbers, noisy);
  std::copy_n(t.operands.begin() + 1, affine.terms, affine.term);
  const gms::Operand ends[2] = {t.operands[0], t.operands[t.count - 1]};
  const gms::Noise noise = noise_of(draws);
  const py::gil_scoped_release release;
  table_of(gpu).affine_noise(ends, t.shape, affine, noise, where_of(gpu, where));
}

void philox(bool gpu, uintptr_t where, const py::tuple& given, const Layout& layout, const py::tuple& draws,
            uint32_t stream, bool normal) {
  const Tensors t(given, layout);
  const gms::Noise noise = noise_of(draws);
  const py::gil_scoped_release release;
  table_of(gpu).philox(t.operands[0], t.shape, noise, stream, normal, where_of(gpu, where));
}

// ---- The same into a new tensor, tensors and draws unchecked: None where tensors do not lie as kernels take them,
// draws come from tensors, or anything is not as it must be. The caller then looks closer. ----

// Draws from counters that are integers in their ranges.
std::optional<gms::Noise> counted_noise(const py::tuple& draws, int64_t samples) {
  const auto field = [&](DrawsField i) { return PyTuple_GET_ITEM(draws.ptr(), i); };
  if (field(kZ) != Py_None || field(kU) != Py_None || !PyUnicode_Check(field(kComponent))) return {};
  for (const DrawsField integer : {kSeed, kStep, kSampleOffset}) {
    if (!PyLong_CheckExact(field(integer))) return {};
  }
  gms::Noise n = {};
  n.seed = PyLong_AsUnsignedLongLongMask(field(kSeed));
  const auto in = [&](DrawsField i, int64_t end) {
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(field(i), &overflow);
    return overflow == 0 && value >= 0 && value < end ? value : -1;
  };
  const int64_t step = in(kStep, int64_t{1} << 32), offset = in(kSampleOffset, (int64_t{1} << 56) - samples + 1);
  if (step < 0 || offset < 0) return {};
  n.step = static_cast<uint32_t>(step), n.sample_offset = static_cast<uint64_t>(offset);
  n.element = is(field(kComponent), "element");
  if (!n.element && !is(field(kComponent), "sample")) return {};
  return n;
}

// run(tensors, out, noise)
template <typename F>
py::object into_new(const py::tuple& given, size_t optional, const py::tuple& draws, const F& run) {
  tensors::Alike t;
  if (!t.read(given, optional)) return py::none();
  const std::optional<gms::Noise> noise = counted_noise(draws, t.samples());
  if (!noise) return py::none();
  py::object out = tensors::empty_like(PyTuple_GET_ITEM(given.ptr(), 0));
  const gms::Operand into = tensors::operand_of(out.ptr());
  const py::gil_scoped_release release;
  run(t, into, *noise);
  return out;
}

py::object new_gms_step(bool gpu, uintptr_t where, const py::tuple& given, const gms::Scheme& scheme,
                        const py::tuple& draws) {
  const bool gaussian = scheme.fit == gms::Fit::kGaussian && scheme.moments == gms::Moments::kCumulant;
  return into_new(given, gaussian ? 2 : 4, draws, [&](const auto& t, const gms::Operand& out, const auto& noise) {
    const gms::Operand all[5] = {t.operand(0), t.operand(1), t.operand(2), t.operand(3), out};
    table_of(gpu).gms_step(all, t.shape(), scheme, nullptr, noise, where_of(gpu, where));
  });
}

py::object new_sample_mixture(bool gpu, uintptr_t where, const py::tuple& given, const gms::Scheme& scheme,
                              const py::tuple& draws) {
  return into_new(given, 3, draws, [&](const auto& t, const gms::Operand& out, const auto& noise) {
    const gms::Operand all[4] = {t.operand(0), t.operand(1), t.operand(2), out};
    table_of(gpu).sample_mixture(all, t.shape(), scheme, noise, where_of(gpu, where));
  });
}

py::object new_fit_mixture(bool gpu, uintptr_t where, const py::tuple& given, const gms::Scheme& scheme) {
  tensors::Alike t;
  if (!t.read(given, given.size())) return py::none();
  gms::Operand all[7] = {t.operand(0), t.operand(1), t.operand(2)};
  py::tuple out(4);
  for (int i = 0; i < 4; ++i) {
    out[i] = tensors::empty_like(PyTuple_GET_ITEM(given.ptr(), 0));
    all[3 + i] = tensors::operand_of(PyTuple_GET_ITEM(out.ptr(), i));
  }
  {
    const py::gil_scoped_release release;
    table_of(gpu).fit_mixture(all, t.shape(), scheme, where_of(gpu, where));
  }
  return out;
}

// tensors: x, terms.
py::object new_affine_noise(bool gpu, uintptr_t where, const py::tuple& given, const std::vector<double>& weights,
                            const py::tuple& draws) {
  gms::Affine affine = affine_of(weights, given.size() - 1, py::none(), weights.back() > 0);
  return into_new(given, given.size(), draws, [&](const auto& t, const gms::Operand& out, const auto& noise) {
    for (int32_t i = 0; i < affine.terms; ++i) affine.term[i] = t.operand(i + 1);
    const gms::Operand ends[2] = {t.operand(0), out};
    table_of(gpu).affine_noise(ends, t.shape(), affine, noise, where_of(gpu, where));
  });
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
  py::class_<gms::Scheme>(m, "Scheme", py::module_local(), "Which fit and which step, prepared for many calls.")
      .def(py::init(&make_scheme));
  m.def("set_torch", &tensors::set_torch);
  m.def("alike", &tensors::alike);
  m.def("gms_step", &gms_step);
  m.def("new_gms_step", &new_gms_step);
  m.def("sample_mixture", &sample_mixture);
  m.def("new_sample_mixture", &new_sample_mixture);
  m.def("fit_mixture", &fit_mixture);
  m.def("new_fit_mixture", &new_fit_mixture);
  m.def("affine_noise", &affine_noise);
  m.def("new_affine_noise", &new_affine_noise);
  m.def("philox", &philox);
  m.def("elementary", &elementary, "One of the float32 functions of csrc/gms/elementary.h, for tests.");
  m.def("instruction_set", [] { return chosen.name; });
  m.def("set_instruction_set", &set_instruction_set);
  m.def("instruction_sets", [] {
    std::vector<std::string> names;
    for (const Isa& isa : supported()) names.emplace_back(isa.name);
    return py::tuple(py::cast(names));
  });
#ifdef GMS_WITH_CUDA
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
#ifndef GMS_CUDA_ARCHITECTURES
#define GMS_CUDA_ARCHITECTURES ""
#endif
  m.attr("cuda_architectures") = GMS_CUDA_ARCHITECTURES;  // as CMake names them: "80-real,90"
}
