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

// The widest instruction set that this processor runs, or the one that the caller named.
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
  std::array<gms::Operand, tensors::kMost> operands;

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
                        const std::array<double, gms::kNumbers + 2>& n, int moments, bool central, double guidance) {
  const auto& [kind, given, iterations, lr, eps] = fit;
  const double weight = narrow(given);  // the one that a mixture stores: with it the moments are right
  const double spread = weight * (1 - weight), skew = spread * (1 - 2 * weight);
  gms::Scheme s = {};
  s.fit = static_cast<gms::Fit>(kind);
  s.parameters = {narrow(weight), narrow(spread), narrow(1 / spread), narrow(1 / skew),
                  narrow(lr),     narrow(eps),    iterations};
  s.moments = static_cast<gms::Moments>(moments);
  s.central = central;
  s.floor = narrow(floor), s.guidance = narrow(guidance);
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

// First arguments of every op: whether it runs on the GPU, the stream there or the number of threads, the tensors and
// their layout.
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

// watch: (int32 tensor (1,), code), or None.
gms::Watch watch_of(py::handle watch) {
  if (watch.is_none()) return {nullptr, 0};
  const py::tuple given = py::reinterpret_borrow<py::tuple>(watch);
  return {tensors::data_of<int32_t>(PyTuple_GET_ITEM(given.ptr(), 0)), given[1].cast<int32_t>()};
}

void gms_step(bool gpu, uintptr_t where, const py::tuple& given, const Layout& layout, const gms::Scheme& scheme,
              py::handle numbers, const py::tuple& draws, py::handle watch) {
  const Tensors t(given, layout);
  const gms::Noise noise = noise_of(draws);
  const float* const at = tensors::data_of<float>(numbers.ptr());
  const gms::Watch seen = watch_of(watch);
  const py::gil_scoped_release release;
  table_of(gpu).gms_step(t.operands.data(), t.shape, scheme, at, noise, seen, where_of(gpu, where));
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

// A linear step without its tensors, prepared once for many calls: the number of tensors, and the operation.
struct Linear {
  gms::Linear step;
  bool reads, keeps;  // an output of the network; whether E[x_0|x_t] is kept
};

// reading: of_x, of_output, guidance, lo, hi, or None where no network's output is read; weights: of x, of E[x_0|x_t]
// if it is read, of the terms, of the noise.
Linear make_linear(const std::optional<std::array<double, 5>>& reading, const std::vector<double>& weights, int terms,
                   int results, bool keeps, bool noisy, uint64_t present) {
  Linear linear = {{}, reading.has_value(), keeps};
  gms::Linear& s = linear.step;
  if (terms < 0 || terms > gms::kMaxTerms) throw std::invalid_argument("too many terms");
  if (results < 0 || results > gms::kMaxResults) throw std::invalid_argument("too many results");
  if (weights.size() > std::size(s.weights)) throw std::invalid_argument("too many weights");
  if (reading) {
    const auto& r = *reading;
    s.reading = {narrow(r[0]), narrow(r[1]), narrow(r[2]), narrow(r[3]), narrow(r[4])};
  }
  s.terms = terms, s.results = results, s.noisy = noisy, s.present = present;
  std::transform(weights.begin(), weights.end(), s.weights, narrow);
  s.output = s.unconditional = s.kept = s.by_element = tensors::kAbsent;
  return linear;
}

// Adds its operands, in the order x, output, unconditional, terms, results, kept; missing ones are null.
gms::Linear placed(const Linear& linear, const gms::Operand* operands) {
  gms::Linear s = linear.step;
  s.output = operands[1], s.unconditional = operands[2];
  std::copy_n(operands + 3, s.terms, s.term);
  std::copy_n(operands + 3 + s.terms, s.results, s.result);
  if (linear.keeps) s.kept = operands[3 + s.terms + s.results];
  return s;
}

// numbers: (weights,) or by element (rows, *), or None.
void set_numbers(gms::Linear& s, py::handle numbers) {
  float* const at = tensors::data_of<float>(numbers.ptr());
  const bool by_element = at != nullptr && tensors::dimensions_of(numbers.ptr()) > 1;
  s.numbers = by_element ? nullptr : at;
  s.by_element.data = by_element ? at : nullptr;
}

// tensors: x, output, unconditional, terms, results, and kept if E[x_0|x_t] is.
void linear_step(bool gpu, uintptr_t where, const py::tuple& given, const Layout& layout, const Linear& linear,
                 py::handle numbers, const py::tuple& draws, py::handle watch) {
  const Tensors t(given, layout);
  gms::Linear step = placed(linear, t.operands.data());
  set_numbers(step, numbers);
  step.watch = watch_of(watch);
  const gms::Noise noise = noise_of(draws);
  const py::gil_scoped_release release;
  table_of(gpu).linear_step(t.operands[0], t.shape, step, noise, where_of(gpu, where));
}

void philox(bool gpu, uintptr_t where, const py::tuple& given, const Layout& layout, const py::tuple& draws,
            uint32_t stream, bool normal) {
  const Tensors t(given, layout);
  const gms::Noise noise = noise_of(draws);
  const py::gil_scoped_release release;
  table_of(gpu).philox(t.operands[0], t.shape, noise, stream, normal, where_of(gpu, where));
}

// ---- The same into new tensors, from unchecked tensors and draws. The functions return None if a tensor is not plain,
// draws are given, or an argument is wrong. The caller then checks in detail. ----

// Draws from counters in their ranges: integers, or tensors of integers on the same device.
std::optional<gms::Noise> counted_noise(const py::tuple& draws, const tensors::Alike& t) {
  const auto field = [&](DrawsField i) { return PyTuple_GET_ITEM(draws.ptr(), i); };
  if (field(kZ) != Py_None || field(kU) != Py_None || !PyUnicode_Check(field(kComponent))) return {};
  gms::Noise n = {};
  bool row = false;
  if (PyLong_CheckExact(field(kSeed))) {
    n.seed = PyLong_AsUnsignedLongLongMask(field(kSeed));
  } else {
    n.seeds = reinterpret_cast<uint64_t*>(tensors::integers(field(kSeed), t.first(), t.samples(), row));
    n.shared = !row;
    if (n.seeds == nullptr) return {};
  }
  const auto in = [&](DrawsField i, int64_t end) {
    int overflow = 0;
    const long long value = PyLong_AsLongLongAndOverflow(field(i), &overflow);
    return overflow == 0 && value >= 0 && value < end ? value : -1;
  };
  if (!PyLong_CheckExact(field(kSampleOffset)) || !PyLong_CheckExact(field(kStep))) return {};
  const int64_t step = in(kStep, int64_t{1} << 32), offset = in(kSampleOffset, (int64_t{1} << 56) - t.samples() + 1);
  if (step < 0 || offset < 0) return {};
  n.step = static_cast<uint32_t>(step), n.sample_offset = static_cast<uint64_t>(offset);
  n.element = is(field(kComponent), "element");
  if (!n.element && !is(field(kComponent), "sample")) return {};
  return n;
}

// Calls run(operands, shape) with `t` followed by new tensors like its first, and returns those.
template <typename F>
py::object into_new(tensors::Alike& t, const py::tuple& given, int results, const F& run) {
  py::tuple made(results);
  for (int i = 0; i < results; ++i) {
    made[i] = tensors::empty_like(PyTuple_GET_ITEM(given.ptr(), 0));
    t.add(PyTuple_GET_ITEM(made.ptr(), i));
  }
  gms::Shape shape;
  std::array<gms::Operand, tensors::kMost> operands;
  if (!t.place(shape, operands)) return py::none();
  {
    const py::gil_scoped_release release;
    run(operands.data(), shape);
  }
  return made;  // with the GIL, which counts references
}

// The only one of them.
py::object single(const py::object& made) {
  return made.is_none() ? made : py::reinterpret_borrow<py::object>(PyTuple_GET_ITEM(made.ptr(), 0));
}

// tensors: x, e1, e2, e3, e1 without condition or None.
py::object new_gms_step(bool gpu, uintptr_t where, const py::tuple& given, const gms::Scheme& scheme,
                        const py::tuple& draws, py::handle watch) {
  const bool gaussian = scheme.fit == gms::Fit::kGaussian && scheme.moments == gms::Moments::kCumulant;
  tensors::Alike t;
  if (!t.read(given, gaussian ? 0b11100 : 0b10000)) return py::none();
  const std::optional<gms::Noise> noise = counted_noise(draws, t);
  if (!noise) return py::none();
  const gms::Watch seen = watch_of(watch);
  return single(into_new(t, given, 1, [&](const gms::Operand* all, const gms::Shape& shape) {
    table_of(gpu).gms_step(all, shape, scheme, nullptr, *noise, seen, where_of(gpu, where));
  }));
}

py::object new_sample_mixture(bool gpu, uintptr_t where, const py::tuple& given, const gms::Scheme& scheme,
                              const py::tuple& draws) {
  tensors::Alike t;
  if (!t.read(given)) return py::none();
  const std::optional<gms::Noise> noise = counted_noise(draws, t);
  if (!noise) return py::none();
  return single(into_new(t, given, 1, [&](const gms::Operand* all, const gms::Shape& shape) {
    table_of(gpu).sample_mixture(all, shape, scheme, *noise, where_of(gpu, where));
  }));
}

py::object new_fit_mixture(bool gpu, uintptr_t where, const py::tuple& given, const gms::Scheme& scheme) {
  tensors::Alike t;
  if (!t.read(given)) return py::none();
  return into_new(t, given, 4, [&](const gms::Operand* all, const gms::Shape& shape) {
    table_of(gpu).fit_mixture(all, shape, scheme, where_of(gpu, where));
  });
}

// tensors: x, output, unconditional, terms. numbers: rows of weights by element, checked, or None. Returns the results,
// followed by E[x_0|x_t] if it is kept.
py::object new_linear_step(bool gpu, uintptr_t where, const py::tuple& given, const Linear& linear, py::handle numbers,
                           const py::tuple& draws, py::handle watch) {
  tensors::Alike t;
  if (!t.read(given, linear.reads ? 0b100 : 0b110)) return py::none();
  const std::optional<gms::Noise> noise = counted_noise(draws, t);  // also where none is wanted: it is checked
  if (!noise) return py::none();
  const gms::Watch seen = watch_of(watch);
  const int results = linear.step.results + static_cast<int>(linear.keeps);
  gms::Linear weights = linear.step;
  set_numbers(weights, numbers);
  return into_new(t, given, results, [&](const gms::Operand* all, const gms::Shape& shape) {
    gms::Linear step = placed(linear, all);
    step.numbers = weights.numbers, step.by_element = weights.by_element, step.watch = seen;
    table_of(gpu).linear_step(all[0], shape, step, *noise, where_of(gpu, where));
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
  py::class_<Linear>(m, "Linear", py::module_local(), "Which linear step, prepared for many calls.")
      .def(py::init(&make_linear));
  m.def("set_torch", &tensors::set_torch);
  m.def("alike", &tensors::alike);
  m.def("gms_step", &gms_step);
  m.def("new_gms_step", &new_gms_step);
  m.def("sample_mixture", &sample_mixture);
  m.def("new_sample_mixture", &new_sample_mixture);
  m.def("fit_mixture", &fit_mixture);
  m.def("new_fit_mixture", &new_fit_mixture);
  m.def("linear_step", &linear_step);
  m.def("new_linear_step", &new_linear_step);
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
