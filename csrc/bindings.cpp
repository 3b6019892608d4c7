// SPDX-License-Identifier: MIT
// Python binding on raw pointers: no torch headers, the GIL released around every loop.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "cpu/ops.h"
#ifdef GMS_WITH_CUDA
#include "cuda/ops.h"
#endif

namespace py = pybind11;
using gms::DType;

namespace {

using Buffer = std::tuple<uintptr_t, int>;  // data_ptr (0: none) and dtype code

gms::Input input(const Buffer& b) {
  return {reinterpret_cast<const void*>(std::get<0>(b)), static_cast<DType>(std::get<1>(b))};
}
gms::Output output(const Buffer& b) {
  return {reinterpret_cast<void*>(std::get<0>(b)), static_cast<DType>(std::get<1>(b))};
}

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

// (seed, seeds, sample_offset, step, z, u, element); seeds, z, u are data pointers, 0 for none.
using NoiseArguments = std::tuple<uint64_t, uintptr_t, uint64_t, uint32_t, uintptr_t, uintptr_t, bool>;

gms::Noise noise_of(const NoiseArguments& a) {
  const auto& [seed, seeds, offset, step, z, u, element] = a;
  return {seed, reinterpret_cast<const uint64_t*>(seeds), offset,  step, reinterpret_cast<const float*>(z),
          reinterpret_cast<const float*>(u),              element};
}

// (alpha_t, sigma_t, A, B, c, var_max, lo, hi)
using StepArguments = std::tuple<double, double, double, double, double, double, double, double>;

gms::Stepping stepping_of(const StepArguments& a, int moments, bool central) {
  const auto& [alpha, sigma, A, B, c, var_max, lo, hi] = a;
  auto f = [](double x) { return static_cast<float>(x); };
  return {{f(1 / alpha), f(sigma / alpha), f(A), f(B), f(c), f(var_max), f(lo), f(hi)},
          static_cast<gms::Moments>(moments),
          central};
}

using FitArguments = std::tuple<int, double, int, double, double>;  // fit, weight, iterations, lr, eps

gms::Fitting fitting_of(const FitArguments& a) {
  const auto& [fit, weight, iterations, lr, eps] = a;
  const double spread = weight * (1 - weight), skew = spread * (1 - 2 * weight);
  auto f = [](double x) { return static_cast<float>(x); };
  return {static_cast<gms::Fit>(fit),
          {f(weight), f(spread), f(1 / spread), f(1 / skew), f(lr), f(eps), iterations}};
}

gms::Shape shape_of(int64_t samples, int64_t elements, int threads) { return {samples, elements, threads}; }

void gms_step(Buffer x, Buffer e1, Buffer e2, Buffer e3, Buffer out, int64_t samples, int64_t elements, int threads,
              StepArguments step, int moments, bool central, FitArguments fit, NoiseArguments noise) {
  const py::gil_scoped_release release;
  chosen.table->gms_step(input(x), input(e1), input(e2), input(e3), output(out), shape_of(samples, elements, threads),
                         stepping_of(step, moments, central), fitting_of(fit), noise_of(noise));
}

void sample_mixture(Buffer mean, Buffer var, Buffer third, Buffer out, int64_t samples, int64_t elements, int threads,
                    double floor, FitArguments fit, NoiseArguments noise) {
  const py::gil_scoped_release release;
  chosen.table->sample_mixture(input(mean), input(var), input(third), output(out),
                               shape_of(samples, elements, threads), static_cast<float>(floor), fitting_of(fit),
                               noise_of(noise));
}

void fit_mixture(Buffer mean, Buffer var, Buffer third, Buffer weight, Buffer mean_a, Buffer mean_b, Buffer out_var,
                 int64_t samples, int64_t elements, int threads, double floor, FitArguments fit) {
  const py::gil_scoped_release release;
  chosen.table->fit_mixture(input(mean), input(var), input(third), output(weight), output(mean_a), output(mean_b),
                            output(out_var), shape_of(samples, elements, threads), static_cast<float>(floor),
                            fitting_of(fit));
}

void philox(Buffer out, int64_t samples, int64_t elements, int threads, NoiseArguments noise, uint32_t stream,
            bool normal) {
  const py::gil_scoped_release release;
  chosen.table->philox(output(out), shape_of(samples, elements, threads), noise_of(noise), stream, normal);
}

#ifdef GMS_WITH_CUDA
// The same calls with a CUDA stream in the place of the number of threads.
void cuda_gms_step(Buffer x, Buffer e1, Buffer e2, Buffer e3, Buffer out, int64_t samples, int64_t elements,
                   uintptr_t stream, StepArguments step, int moments, bool central, FitArguments fit,
                   NoiseArguments noise) {
  const py::gil_scoped_release release;
  gms::cuda_gms_step(input(x), input(e1), input(e2), input(e3), output(out), shape_of(samples, elements, 1),
                     stepping_of(step, moments, central), fitting_of(fit), noise_of(noise),
                     reinterpret_cast<void*>(stream));
}

void cuda_sample_mixture(Buffer mean, Buffer var, Buffer third, Buffer out, int64_t samples, int64_t elements,
                         uintptr_t stream, double floor, FitArguments fit, NoiseArguments noise) {
  const py::gil_scoped_release release;
  gms::cuda_sample_mixture(input(mean), input(var), input(third), output(out), shape_of(samples, elements, 1),
                           static_cast<float>(floor), fitting_of(fit), noise_of(noise),
                           reinterpret_cast<void*>(stream));
}

void cuda_fit_mixture(Buffer mean, Buffer var, Buffer third, Buffer weight, Buffer mean_a, Buffer mean_b,
                      Buffer out_var, int64_t samples, int64_t elements, uintptr_t stream, double floor,
                      FitArguments fit) {
  const py::gil_scoped_release release;
  gms::cuda_fit_mixture(input(mean), input(var), input(third), output(weight), output(mean_a), output(mean_b),
                        output(out_var), shape_of(samples, elements, 1), static_cast<float>(floor), fitting_of(fit),
                        reinterpret_cast<void*>(stream));
}

void cuda_philox(Buffer out, int64_t samples, int64_t elements, uintptr_t stream, NoiseArguments noise,
                 uint32_t stream_id, bool normal) {
  const py::gil_scoped_release release;
  gms::cuda_philox(output(out), shape_of(samples, elements, 1), noise_of(noise), stream_id, normal,
                   reinterpret_cast<void*>(stream));
}
#endif

float elementary(const std::string& name, float x) {
  float s, c;
  gms::sincos_turn(x, s, c);
  if (name == "sin_turn") return s;
  if (name == "cos_turn") return c;
  if (name == "log_unit") return gms::log_unit(x);
  if (name == "cbrt") return gms::cbrt_newton(x);
  throw std::invalid_argument("no elementary function " + name);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Compiled kernels of gms_fast; called through gms_fast.ops, which checks and marshals arguments.";
  m.def("gms_step", &gms_step);
  m.def("sample_mixture", &sample_mixture);
  m.def("fit_mixture", &fit_mixture);
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
  m.def("cuda_gms_step", &cuda_gms_step);
  m.def("cuda_sample_mixture", &cuda_sample_mixture);
  m.def("cuda_fit_mixture", &cuda_fit_mixture);
  m.def("cuda_philox", &cuda_philox);
  m.attr("with_cuda") = true;
#else
  m.attr("with_cuda") = false;
#endif
}
