// SPDX-License-Identifier: MIT
// Access to torch's tensors without torch's headers. Where torch has DLPack's exchange table (2.10 and later), one call
// describes a tensor; else its attributes are read, as Python does.
#pragma once

#include <pybind11/pybind11.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "ops.h"

namespace tensors {

namespace py = pybind11;

// As much of DLPack 1.x as is needed (https://dmlc.github.io/dlpack): tensors, and the table of functions.
struct DLTensor {
  void* data;
  int32_t device_type, device_id;
  int32_t dimensions;
  uint8_t code, bits;
  uint16_t lanes;
  int64_t* shape;
  int64_t* strides;
  uint64_t byte_offset;
};
struct DLPackExchangeAPI {
  uint32_t major, minor;
  DLPackExchangeAPI* previous;
  void *allocate, *from_object, *to_object;
  int (*read)(void* object, DLTensor* out);  // borrows; no reference is taken
  void* stream;
};

struct Torch {
  PyObject* tensor = nullptr;  // the class
  std::array<PyObject*, 3> dtypes = {};  // in the order of gms::DType
  PyObject* module = nullptr;
  const DLPackExchangeAPI* dlpack = nullptr;
  PyObject* shape = PyUnicode_InternFromString("shape");
  PyObject* dtype = PyUnicode_InternFromString("dtype");
  PyObject* requires_grad = PyUnicode_InternFromString("requires_grad");
  PyObject* is_neg = PyUnicode_InternFromString("is_neg");
  PyObject* data_ptr = PyUnicode_InternFromString("data_ptr");
  PyObject* empty_like = PyUnicode_InternFromString("empty_like");
};

inline Torch& torch() {
  static Torch* const known = new Torch;  // lives as long as the process
  return *known;
}

// The module torch, the class of tensors, and the dtypes float32, bfloat16 and float16.
inline void set_torch(const py::object& module, const py::object& tensor, const std::array<py::object, 3>& dtypes) {
  torch().module = module.inc_ref().ptr();
  torch().tensor = tensor.inc_ref().ptr();
  for (size_t i = 0; i < dtypes.size(); ++i) torch().dtypes[i] = dtypes[i].inc_ref().ptr();
  torch().dlpack = nullptr;
  if (!py::hasattr(tensor, "__dlpack_c_exchange_api__")) return;
  const auto* table = static_cast<const DLPackExchangeAPI*>(
      PyCapsule_GetPointer(tensor.attr("__dlpack_c_exchange_api__").ptr(), "dlpack_exchange_api"));
  if (table == nullptr) throw py::error_already_set();
  if (table->major == 1 && table->read != nullptr) torch().dlpack = table;
}

inline py::object checked(PyObject* result) {
  if (result == nullptr) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(result);
}
inline py::object attribute(PyObject* object, PyObject* name) { return checked(PyObject_GetAttr(object, name)); }
inline py::object call(PyObject* object, PyObject* method) {
  return checked(PyObject_CallMethodNoArgs(object, method));
}

inline py::object empty_like(PyObject* tensor) {
  return checked(PyObject_CallMethodOneArg(torch().module, torch().empty_like, tensor));
}

// False, with Python's error set, for tensors that are not strided memory.
inline bool try_read(PyObject* tensor, DLTensor& t) {
  if (torch().dlpack->read(tensor, &t) != 0) return false;
  t.data = static_cast<char*>(t.data) + t.byte_offset;
  return true;
}
inline DLTensor read(PyObject* tensor) {
  DLTensor t = {};
  if (!try_read(tensor, t)) throw py::error_already_set();
  return t;
}

// The code of a dtype, -1 for one that kernels do not take.
inline int dtype_of(const DLTensor& t) {
  constexpr uint8_t kFloat = 2, kBFloat = 4;
  if (t.lanes != 1) return -1;
  if (t.code == kFloat) return t.bits == 32 ? 0 : t.bits == 16 ? 2 : -1;
  return t.code == kBFloat && t.bits == 16 ? 1 : -1;
}
inline int dtype_of(PyObject* tensor) {
  const py::object dtype = attribute(tensor, torch().dtype);
  for (size_t i = 0; i < torch().dtypes.size(); ++i) {
    if (dtype.ptr() == torch().dtypes[i]) return static_cast<int>(i);
  }
  return -1;
}

// True for a tensor that is contiguous and not empty.
inline bool dense(const DLTensor& t) {
  int64_t room = 1;
  for (int32_t d = t.dimensions - 1; d >= 0; --d) {
    if (t.shape[d] != 1 && t.strides[d] != room) return false;
    room *= t.shape[d];
  }
  return room > 0;
}

// (samples, elements of one) of a tensor with a first dimension.
inline gms::Shape shape_of(const DLTensor& t) {
  gms::Shape s = {t.shape[0], 1, {1, 1, 1}};
  for (int32_t d = 1; d < t.dimensions; ++d) s.elements *= t.shape[d];
  s.sizes[2] = s.elements;
  return s;
}

constexpr gms::Operand kAbsent = {nullptr, gms::DType::kFloat32, true, {}};
inline gms::Operand operand_of(const DLTensor& t) { return {t.data, static_cast<gms::DType>(dtype_of(t)), true, {}}; }

constexpr size_t kMost = gms::kMaxTerms + gms::kMaxResults + 4;  // tensors of an op

// Sizes inside a sample, with neighbouring dimensions merged where all tensors allow it, and the strides of each tensor
// that is not dense. Other backends use gms_fast/ops/layout.py for this. False if more than three dimensions remain.
inline bool lay_out(const DLTensor* const* given, size_t count, gms::Shape& shape, gms::Operand* operands) {
  const DLTensor& first = *given[0];
  int64_t sizes[3] = {1, 1, 1};
  int64_t strides[kMost][3] = {};
  int at = 3;  // the outermost dimension so far
  for (int32_t d = first.dimensions - 1; d > 0; --d) {
    if (first.shape[d] == 1) continue;
    bool merges = at < 3;
    for (size_t i = 0; merges && i < count; ++i) merges = given[i]->strides[d] == strides[i][at] * sizes[at];
    if (merges) {
      sizes[at] *= first.shape[d];
      continue;
    }
    if (--at < 0) return false;
    sizes[at] = first.shape[d];
    for (size_t i = 0; i < count; ++i) strides[i][at] = given[i]->strides[d];
  }
  std::copy_n(sizes, 3, shape.sizes);
  for (size_t i = 0; i < count; ++i) {
    if (dense(*given[i])) continue;
    operands[i].dense = false;
    operands[i].strides[0] = given[i]->strides[0];
    std::copy_n(strides[i], 3, operands[i].strides + 1);
  }
  return true;
}

// Plain tensors that a kernel reads in place: not empty, with a first dimension, of one shape and device, float32 or
// narrower, without gradient. Some may be None; they then have no data.
class Alike {
 public:
  // False if a tensor is of another kind, or if one call cannot tell. may_lack: bit mask of those that may be None.
  bool read(const py::tuple& given, uint32_t may_lack = 0) {
    if (torch().dlpack == nullptr || given.empty() || given.size() > kMost) return false;
    for (size_t i = 0; i < given.size(); ++i) {
      PyObject* const p = PyTuple_GET_ITEM(given.ptr(), i);
      if (p == Py_None && (may_lack >> i & 1) != 0) continue;
      if (!read(p, at[i])) return false;
      all_dense = all_dense && dense(at[i]);
    }
    count = given.size();
    return true;
  }
  bool are_dense() const { return all_dense; }
  int64_t samples() const { return at[0].shape[0]; }
  const DLTensor& first() const { return at[0]; }

  // The operands, in order, after results of the same shape were added.
  void add(PyObject* result) {
    at[count] = tensors::read(result);
    all_dense = all_dense && dense(at[count]);
    ++count;
  }
  bool place(gms::Shape& shape, std::array<gms::Operand, kMost>& operands) const {
    shape = shape_of(at[0]);
    const DLTensor* there[kMost];
    gms::Operand placed[kMost];
    size_t n = 0;
    for (size_t i = 0; i < count; ++i) {
      if (at[i].data == nullptr) continue;
      there[n] = &at[i], placed[n++] = operand_of(at[i]);
    }
    if (!all_dense && !lay_out(there, n, shape, placed)) return false;
    for (size_t i = 0, j = 0; i < count; ++i) operands[i] = at[i].data == nullptr ? kAbsent : placed[j++];
    return true;
  }

 private:
  bool read(PyObject* p, DLTensor& t) const {
    if (reinterpret_cast<PyObject*>(Py_TYPE(p)) != torch().tensor) return false;
    if (attribute(p, torch().requires_grad).ptr() != Py_False) return false;
    if (call(p, torch().is_neg).ptr() != Py_False) return false;
    if (!try_read(p, t)) return PyErr_Clear(), false;  // sparse, or what a transform has wrapped
    if (dtype_of(t) < 0 || t.dimensions == 0) return false;
    const DLTensor& first = at[0];
    return t.data != nullptr && t.device_type == first.device_type && t.device_id == first.device_id &&
           t.dimensions == first.dimensions && std::memcmp(t.shape, first.shape, sizeof(int64_t) * t.dimensions) == 0 &&
           t.shape[0] > 0 && shape_of(t).elements > 0;
  }

  std::array<DLTensor, kMost> at = {};
  size_t count = 0;
  bool all_dense = true;
};

// Data of a plain int64 tensor on the device of `like`, with one number or `count`; null for any other tensor.
inline int64_t* integers(PyObject* tensor, const DLTensor& like, int64_t count, bool& row) {
  if (torch().dlpack == nullptr || reinterpret_cast<PyObject*>(Py_TYPE(tensor)) != torch().tensor) return nullptr;
  DLTensor t = {};
  if (!try_read(tensor, t)) return PyErr_Clear(), nullptr;
  constexpr uint8_t kInteger = 0;
  row = t.dimensions == 1;
  const bool fits = t.dimensions == 0 || (row && t.shape[0] == count && (count == 1 || t.strides[0] == 1));
  const bool there = t.device_type == like.device_type && t.device_id == like.device_id;
  return t.code == kInteger && t.bits == 64 && t.lanes == 1 && fits && there ? static_cast<int64_t*>(t.data) : nullptr;
}

inline int64_t alike(const py::tuple& given) {
  Alike tensors;
  return tensors.read(given) && tensors.are_dense() ? tensors.samples() : 0;
}

inline gms::Shape shape_of(PyObject* tensor) {
  if (torch().dlpack != nullptr) return shape_of(read(tensor));
  const py::tuple sizes = attribute(tensor, torch().shape);
  gms::Shape s = {sizes[0].cast<int64_t>(), 1, {1, 1, 1}};
  for (size_t d = 1; d < sizes.size(); ++d) s.elements *= sizes[d].cast<int64_t>();
  s.sizes[2] = s.elements;
  return s;
}

// The address; null only if there is no tensor.
inline void* some(void* data, PyObject* tensor) {
  if (data != nullptr) return data;
  throw std::runtime_error(std::string("a tensor without data reached the kernels: ") + Py_TYPE(tensor)->tp_name);
}
inline void* address_of(PyObject* tensor) {
  return reinterpret_cast<void*>(call(tensor, torch().data_ptr).cast<uintptr_t>());
}

// A checked tensor as a dense operand, or None as one without data.
inline gms::Operand operand_of(PyObject* tensor) {
  if (tensor == Py_None) return kAbsent;
  if (torch().dlpack == nullptr) {
    return {some(address_of(tensor), tensor), static_cast<gms::DType>(dtype_of(tensor)), true, {}};
  }
  const DLTensor t = read(tensor);
  some(t.data, tensor);
  return operand_of(t);
}

// Address of the numbers that a kernel reads; null for None.
template <typename T>
T* data_of(PyObject* tensor) {
  if (tensor == Py_None) return nullptr;
  return static_cast<T*>(some(torch().dlpack != nullptr ? read(tensor).data : address_of(tensor), tensor));
}

inline size_t dimensions_of(PyObject* tensor) {
  if (torch().dlpack != nullptr) return read(tensor).dimensions;
  return py::tuple(attribute(tensor, torch().shape)).size();
}

}  // namespace tensors
